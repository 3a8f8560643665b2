"""Which resolvers a guest behind passt is given."""

from dataclasses import replace

import pytest

from vmlib.net.passt import passt_argv, resolvers_in
from vmlib.resources import StreamNic

STUB = "# by systemd-resolved\nnameserver 127.0.0.53\noptions edns0\n"


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (("nameserver 10.1.1.1\nnameserver 10.1.1.2\nsearch example.org\n",), ("10.1.1.1", "10.1.1.2")),
        (("nameserver 127.0.0.1\nnameserver 10.1.1.2\n",), ("10.1.1.2",)),
        ((STUB, "nameserver 10.1.1.1\n"), ("10.1.1.1",)),
        ((STUB, ""), ()),
        (("nameserver 2001:db8::1\nnameserver\nnameserver 10.1\nnonsense\n", ""), ()),
        (("", ""), ()),
    ],
)
def test_resolvers_are_those_that_a_guest_can_ask(texts: tuple[str, ...], found: tuple[str, ...]) -> None:
    assert resolvers_in(*texts) == found


@pytest.mark.parametrize(
    ("resolvers", "options"),
    [
        (("10.1.1.1", "10.1.1.2"), ["--dns", "10.1.1.1", "--dns", "10.1.1.2"]),
        ((), ["--dns", "none"]),
    ],
)
def test_a_guest_is_given_resolvers_or_none(resolvers: tuple[str, ...], options: list[str]) -> None:
    nic = StreamNic(name="net0", mac="52:54:00:12:34:56")
    argv = passt_argv("passt", nic, resolvers=resolvers)
    assert argv[argv.index("10.0.2.2") + 1 :] == options
    own = passt_argv("passt", replace(nic, dns=("2001:db8::1", "10.2.2.2")), resolvers=resolvers)
    assert own[own.index("10.0.2.2") + 1 :] == ["--dns", "10.2.2.2"]
