"""Whether a machine whose RAM shall be of huge pages finds enough of them on its memory nodes. Reads sysfs only."""

from collections.abc import Collection
from pathlib import Path

from vmlib.errors import NoCapacityError

_SIZE_KIB = 2048


def free_pages(node: int | None, size_kib: int = _SIZE_KIB, root: Path = Path("/sys")) -> int:
    """How many huge pages are free on a memory node, or on the whole host (None): those that nobody was promised.

    0 where the kernel has none of that size. A kernel without NUMA has no nodes in sysfs: the whole host is node 0.
    """
    name = f"hugepages-{size_kib}kB"
    host = root / "kernel/mm/hugepages" / name
    if node is not None and (root / f"devices/system/node/node{node}").is_dir():
        return _number(root / f"devices/system/node/node{node}/hugepages" / name / "free_hugepages")
    # What is promised and not yet taken is counted for the host only.
    return max(0, _number(host / "free_hugepages") - _number(host / "resv_hugepages"))


def check(memory_mib: int, nodes: Collection[int], root: Path = Path("/sys")) -> None:
    """Raises NoCapacityError when these nodes (none: the whole host) have fewer free pages than the RAM needs."""
    needed = -(-memory_mib * 1024 // _SIZE_KIB)
    free = free_pages(None, root=root)
    where = "on this host"
    if nodes:
        free = min(free, sum(free_pages(node, root=root) for node in nodes))
        where = f"on memory node{'' if len(nodes) == 1 else 's'} {', '.join(map(str, sorted(nodes)))}"
    if free < needed:
        raise NoCapacityError(
            f"hugepages = true: {memory_mib} MiB need {needed} free huge pages of 2 MiB {where}, found {free}",
            hint="the operator sets them aside with vm.nr_hugepages, or for one node in its nr_hugepages in sysfs",
        )


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
