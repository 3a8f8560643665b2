"""What doctor says of user networks."""

import pytest

from driver.cli.doctor_user import user_lines
from vmlib import probe
from vmlib.probe import Program


@pytest.mark.parametrize(
    ("passt", "verdict", "says", "cure"),
    [
        (
            Program(path="passt", why_not="passt is not installed"),
            "warning",
            "by QEMU: guests reach the loop",
            "install",
        ),
        (Program(path="/usr/bin/passt"), "warning", "by passt: 10.0.2.2 is not the loopback", "install a later passt"),
        (Program(path="/usr/bin/passt", version="20250503"), "ok", "by passt: guests reach what listens on", ""),
    ],
)
def test_the_router_of_each_network_and_what_guests_reach_by_it(
    passt: Program, verdict: str, says: str, cure: str
) -> None:
    lines = user_lines(["nat", "other"], passt)
    assert [line[0] for line in lines] == ["network nat", "network other"]
    assert {line[1] for line in lines} == {verdict}
    assert lines[0][2].startswith(f"user mode {says}")
    assert lines[0][3].startswith(cure)
    assert bool(lines[0][3]) == bool(cure)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("passt unknown version\nCopyright Red Hat\n", ""),
        ("passt 2024_06_24.1ee2eca\n", "20240624"),
        ("passt 0.0~git20250503.587980c-2\n", "20250503"),
        ("pasta 2024_06_24\n", ""),
    ],
)
def test_the_day_of_a_passt(text: str, version: str) -> None:
    assert probe.parse_passt_version(text) == version
    assert probe.passt_drops_forged(version) == bool(version)
