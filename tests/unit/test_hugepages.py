"""Free huge pages of memory nodes, from sysfs trees as kernels show them."""

from pathlib import Path

import pytest

from vmlib import hugepages
from vmlib.errors import NoCapacityError

SIZE = "hugepages-2048kB"


def tree(root: Path, nodes: dict[int, int], *, free: int | None = None, promised: int = 0) -> Path:
    """A host with so many free pages on each node."""
    host = root / "kernel/mm/hugepages" / SIZE
    host.mkdir(parents=True)
    (host / "free_hugepages").write_text(f"{sum(nodes.values()) if free is None else free}\n")
    (host / "resv_hugepages").write_text(f"{promised}\n")
    for node, pages in nodes.items():
        directory = root / f"devices/system/node/node{node}/hugepages" / SIZE
        directory.mkdir(parents=True)
        (directory / "free_hugepages").write_text(f"{pages}\n")
    return root


def test_each_node_is_counted_by_itself(tmp_path: Path) -> None:
    root = tree(tmp_path, {0: 10, 1: 300}, promised=5)
    assert [hugepages.free_pages(node, root=root) for node in (0, 1, None)] == [10, 300, 305]


def test_a_kernel_without_numa_counts_for_the_host(tmp_path: Path) -> None:
    root = tree(tmp_path, {}, free=64, promised=4)
    assert hugepages.free_pages(0, root=root) == 60


def test_a_kernel_without_huge_pages_has_none(tmp_path: Path) -> None:
    assert hugepages.free_pages(0, root=tmp_path) == hugepages.free_pages(None, root=tmp_path) == 0


def test_another_size_is_not_counted(tmp_path: Path) -> None:
    assert hugepages.free_pages(0, 1048576, root=tree(tmp_path, {0: 10})) == 0


@pytest.mark.parametrize(
    ("memory_mib", "nodes"),
    [(20, {0}), (20, ()), (600, {1}), (620, {0, 1}), (620, ()), (1, {0})],
)
def test_enough_pages_pass(tmp_path: Path, memory_mib: int, nodes: set[int]) -> None:
    hugepages.check(memory_mib, nodes, tree(tmp_path, {0: 10, 1: 300}))


@pytest.mark.parametrize(
    ("memory_mib", "nodes", "message"),
    [
        (22, {0}, "hugepages = true: 22 MiB need 11 free huge pages of 2 MiB on memory node 0, found 10"),
        (622, {1, 0}, "hugepages = true: 622 MiB need 311 free huge pages of 2 MiB on memory nodes 0, 1, found 310"),
        (622, (), "hugepages = true: 622 MiB need 311 free huge pages of 2 MiB on this host, found 310"),
        (21, {0}, "hugepages = true: 21 MiB need 11 free huge pages of 2 MiB on memory node 0, found 10"),
        (2, {7}, "hugepages = true: 2 MiB need 1 free huge pages of 2 MiB on memory node 7, found 0"),
    ],
)
def test_too_few_are_refused_with_both_numbers(tmp_path: Path, memory_mib: int, nodes: set[int], message: str) -> None:
    root = tree(tmp_path, {0: 10, 1: 300})
    (root / f"devices/system/node/node7/hugepages/{SIZE}").mkdir(parents=True)
    with pytest.raises(NoCapacityError) as caught:
        hugepages.check(memory_mib, nodes, root)
    assert str(caught.value) == message
    assert "vm.nr_hugepages" in caught.value.hint


def test_pages_promised_to_another_machine_are_not_free(tmp_path: Path) -> None:
    """It has mapped its RAM and not touched it yet, which no node's count shows."""
    root = tree(tmp_path, {0: 100}, promised=60)
    hugepages.check(80, {0}, root)
    with pytest.raises(NoCapacityError, match="found 40"):
        hugepages.check(82, {0}, root)
