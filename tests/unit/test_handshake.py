import pytest

from driver.goplugin.handshake import (
    SOCKET_DIR_VARIABLE,
    VERSIONS_VARIABLE,
    Handshake,
    HandshakeError,
    Line,
    choose_version,
    parse_line,
    socket_dirs,
)
from driver.main import NOMAD


def test_line_is_five_fields_and_a_newline() -> None:
    assert Line(version=2, address="/tmp/chv-abc/p.sock").render() == "1|2|unix|/tmp/chv-abc/p.sock|grpc\n"


@pytest.mark.parametrize("address", ["/tmp/a|b", "/tmp/a\nb"])
def test_a_path_that_would_break_the_line_is_refused(address: str) -> None:
    with pytest.raises(HandshakeError, match="cannot stand in the handshake line"):
        Line(version=2, address=address).render()


def test_a_host_reads_what_a_plugin_writes() -> None:
    line = Line(version=2, address="/run/x/p.sock")
    assert parse_line(line.render()) == line


def test_a_host_passes_over_certificate_and_multiplexing() -> None:
    assert parse_line("1|2|tcp|127.0.0.1:10000|grpc||true\n") == Line(
        version=2, network="tcp", address="127.0.0.1:10000"
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "expected CORE"),
        ("1|2|unix", "expected CORE"),
        ("hello", "expected CORE"),
        ("one|2|unix|/x|grpc", "expected CORE"),
        ("2|2|unix|/x|grpc", "core protocol 2: expected 1"),
    ],
)
def test_a_host_says_what_is_wrong_with_a_line(line: str, words: str) -> None:
    with pytest.raises(HandshakeError, match=words):
        parse_line(line)


@pytest.mark.parametrize(
    ("listed", "ours", "chosen"),
    [
        ("2", (2,), 2),
        ("1,2,3", (1, 2), 2),
        (" 2 , 1 ", (1, 2, 3), 2),
        ("x,,2", (2,), 2),
        ("", (1, 2), 1),
        (None, (2,), 2),
        ("3", (1, 2), 2),  # nothing in common: the host refuses it and names both
    ],
)
def test_newest_common_version_is_chosen(listed: str | None, ours: tuple[int, ...], chosen: int) -> None:
    environ = {} if listed is None else {VERSIONS_VARIABLE: listed}
    assert choose_version(environ, ours) == chosen


@pytest.mark.parametrize("environ", [{}, {"C": ""}, {"C": "other"}, {"c": "right"}])
def test_without_the_cookie_it_is_no_plugin(environ: dict[str, str]) -> None:
    assert not Handshake(cookie_name="C", cookie_value="right", versions=(1,)).greets(environ)


def test_nomads_cookie_is_known() -> None:
    cookie = "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255"
    assert NOMAD.greets({"NOMAD_PLUGIN_MAGIC_COOKIE": cookie})
    assert NOMAD.versions == (2,)


def test_socket_goes_where_the_host_wants_it() -> None:
    assert [str(path) for path in socket_dirs({SOCKET_DIR_VARIABLE: "/run/sockets"}, "/var/tmp")] == ["/run/sockets"]


def test_socket_goes_to_the_temporary_directory_else_to_tmp() -> None:
    assert [str(path) for path in socket_dirs({SOCKET_DIR_VARIABLE: ""}, "/var/tmp")] == ["/var/tmp", "/tmp"]
    assert [str(path) for path in socket_dirs({}, "/tmp")] == ["/tmp"]
