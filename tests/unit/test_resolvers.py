"""Which name servers of the host a guest is given."""

from pathlib import Path

import pytest

from vmlib.resolvers import host_name_servers, name_servers


def test_name_servers_of_the_host_are_those_that_others_reach() -> None:
    text = """# by somebody
nameserver 127.0.0.53
nameserver 192.0.2.1
nameserver 192.0.2.1
nameserver 2001:DB8::1
nameserver fe80::1%eth0
nameserver
nameserver x
search example.org
options edns0
"""
    assert name_servers(text) == ("192.0.2.1", "2001:db8::1")


def test_what_stands_behind_a_server_on_the_loopback_is_found(tmp_path: Path) -> None:
    (tmp_path / "stub").write_text("nameserver 127.0.0.53\n")
    (tmp_path / "behind").write_text("nameserver 192.0.2.1\n")
    assert host_name_servers((tmp_path / "stub", tmp_path / "none", tmp_path / "behind")) == ("192.0.2.1",)
    assert host_name_servers((tmp_path / "stub", tmp_path / "none")) == ()


@pytest.mark.parametrize("text", ["", "nameserver 2001:db8::1\nnameserver\nnameserver 10.1\nnonsense\n"])
def test_a_router_of_ipv4_goes_on_to_the_file_that_names_one_of_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "first").write_text(text)
    (tmp_path / "second").write_text("nameserver 192.0.2.1\nnameserver 2001:db8::1\n")
    assert host_name_servers((tmp_path / "first", tmp_path / "second"), only_ipv4=True) == ("192.0.2.1",)
