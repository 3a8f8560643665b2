"""The pictures in docs/cores.md are what `chv cores` draws of what the driver decides; --regen draws anew."""

from pathlib import Path

import pytest

from driver.cli.cores import view_of
from driver.cli.cores_picture import draw
from tests.fakes.sysfs import sysfs_files
from vmlib.cores.plan import Host, Policy, decide, level_now
from vmlib.cores.topology import parse_topology
from vmlib.cores.words import Entry
from vmlib.spec import CoresSpec

PAGE = Path(__file__).parents[2] / "docs/cores.md"
# Four cores of two threads in two packages.
NODE = parse_topology(sysfs_files(packages=2, cores_per_l3=2, threads=2, numbering="adjacent"))
EXCLUSIVE = CoresSpec(exclusive=True)
PACKAGE_1 = frozenset({4, 5, 6, 7})
DEDICATED = Policy(usable=NODE.online - PACKAGE_1, dedicated=PACKAGE_1, dedicated_only=True)

# Each picture stands below its first line on the page: the job's wishes, and what the operator has set up.
PICTURES: dict[str, tuple[Policy, CoresSpec, int, frozenset[int]]] = {
    "cpu = MHz, vcpus = 2": (Policy(), EXCLUSIVE, 2, frozenset()),
    "cores = 4": (Policy(), CoresSpec(exclusive=True, given=frozenset({2, 3, 4, 5})), 2, frozenset({2, 3, 4, 5})),
    'cpu = MHz, vcpus = 2, dedicated = "4-7"': (DEDICATED, EXCLUSIVE, 2, frozenset()),
    'vcpus = 2, threads = "expose", emulator = "isolate", dedicated = "4-7"': (
        *(DEDICATED, CoresSpec(exclusive=True, expose=True, isolate_emulator=True), 2, frozenset()),
    ),
    'placement = "shared"': (Policy(), CoresSpec(), 2, frozenset()),
}


def picture(policy: Policy, wanted: CoresSpec, vcpus: int, reserved: frozenset[int]) -> str:
    host = Host(topology=NODE, policy=policy, reserved=reserved)
    placement = decide(wanted, vcpus, host, []).placement
    name = "1f0a7c52-…/vm"
    entry = Entry(
        id="1",
        name=name,
        owner="nomad",
        boot_id="b",
        run_dir="/run/chv/m/1",
        placement=placement,
        level=placement.level,
    )
    assert level_now(entry, host, [entry]) == placement.level
    text = draw(view_of(NODE, policy=policy, entries=(entry,), reserved=reserved))
    return text[text.index("package 0") :]


@pytest.mark.parametrize("title", PICTURES)
def test_a_picture_on_the_page_is_what_the_driver_decides(title: str, request: pytest.FixtureRequest) -> None:
    page = PAGE.read_text()
    begin = f"```\n# {title}\n\n"
    assert begin in page
    before, _, rest = page.partition(begin)
    shown, _, after = rest.partition("```\n")
    drawn = picture(*PICTURES[title])
    if request.config.getoption("--regen"):
        PAGE.write_text(f"{before}{begin}{drawn}```\n{after}")
        shown = drawn
    assert shown == drawn
