"""Which resolvers a guest behind passt is given."""

from dataclasses import replace

import pytest

from vmlib.net.passt import passt_argv
from vmlib.resources import StreamNic

MANY = tuple(f"10.1.1.{number}" for number in range(5))


@pytest.mark.parametrize(
    ("resolvers", "options"),
    [
        (("10.1.1.1", "10.1.1.2"), ["--dns", "10.1.1.1", "--dns", "10.1.1.2"]),
        ((), ["--dns", "none"]),
        (MANY, ["--dns", "10.1.1.0", "--dns", "10.1.1.1", "--dns", "10.1.1.2"]),
    ],
)
def test_a_guest_is_given_resolvers_or_none(resolvers: tuple[str, ...], options: list[str]) -> None:
    nic = StreamNic(name="net0", mac="52:54:00:12:34:56")
    argv = passt_argv("passt", nic, resolvers=resolvers)
    assert argv[argv.index("10.0.2.2") + 1 :] == options
    own = passt_argv("passt", replace(nic, dns=("2001:db8::1", "10.2.2.2")), resolvers=resolvers)
    assert own[own.index("10.0.2.2") + 1 :] == ["--dns", "10.2.2.2"]
