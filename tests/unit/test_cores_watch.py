"""The watch over the cores goes on looking, whatever fails."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest

from driver.watch import CoresWatch
from vmlib.cores.service import Notice
from vmlib.errors import HostError


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), HostError("no cgroup")])
async def test_without_a_file_to_watch_it_looks_all_the_same(failure: Exception) -> None:
    looks = 0
    told: list[Notice] = []
    both = asyncio.Event()

    async def look() -> list[Notice]:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise HostError("a bad look")
        both.set()
        return [Notice("m", "cores repaired", "cores repaired: x")]

    async def paths() -> Iterable[Path]:
        raise failure

    watch = CoresWatch(look, told.append, paths)
    watch.start()
    await asyncio.sleep(0)
    watch.wake()
    await asyncio.wait_for(both.wait(), 10)
    await asyncio.sleep(0)
    assert [notice.kind for notice in told] == ["cores repaired"]


async def test_a_repair_that_writes_and_fails_is_not_tried_without_a_rest(tmp_path: Path) -> None:
    file = tmp_path / "cpuset.cpus"
    file.touch()
    looks = 0

    async def look() -> list[Notice]:
        nonlocal looks
        looks += 1
        file.write_text("0")
        raise HostError("it is not so afterwards")

    async def paths() -> Iterable[Path]:
        return [file]

    CoresWatch(look, lambda _: None, paths).start()
    await asyncio.sleep(1.5)
    assert 2 <= looks <= 6  # after 0.1, 0.2, 0.4 and 0.8 s; a slow host has fewer
