"""The watch over a task, with a keeper that is made up: what it says in halves or wrongly must not end the watch."""

import asyncio
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from driver._pb import driver_pb2 as pb
from driver.events import EventHub
from driver.offload import Offload
from driver.store import Store
from vmlib.process import Identity, identify
from vmlib.record import ExitRecord
from vmlib.running import Machine

END = {"id": "a/t/0", "at": 1.0, "exit_code": 3, "signal": 0, "message": "", "oom_killed": False}
EXIT = json.dumps({"exit": END}).encode() + b"\n"


@dataclass
class Keeper:
    """Says one of `words` to each who connects, and hangs up; the last one again and again."""

    control: Path
    words: list[bytes]
    settled: int = 0
    run: Any = field(init=False)
    record: Any = field(default_factory=lambda: SimpleNamespace(started_at=0.0))

    def __post_init__(self) -> None:
        self.run = SimpleNamespace(control=self.control)

    @property
    def vmm_identity(self) -> Identity:
        """A VMM that runs as long as the test."""
        me = identify(os.getpid())
        assert me is not None
        return me

    def running(self) -> bool:
        return True

    def exit_record(self) -> None:
        return None

    def settle(self) -> None:
        self.settled += 1

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(self.words.pop(0) if len(self.words) > 1 else self.words[0])
        writer.close()


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b'{"event": {"seq": 1, "ki',
        b"\xff\xfe\n",
        b'{"exit": {"id": "a/t/0", "from": "a later version"}}\n',
        b"[1]\n",
    ],
    ids=["nothing", "half a line", "no text", "unknown record", "no object"],
)
async def test_nonsense_of_a_keeper_does_not_end_the_watch(tmp_path: Path, nonsense: bytes) -> None:
    keeper = Keeper(tmp_path / "k", [nonsense, EXIT])
    async with await asyncio.start_unix_server(keeper.answer, keeper.control):
        store = Store(EventHub(), Offload())
        task = store.add(pb.TaskConfig(id="a/t/0"), cast(Machine, keeper))
        async with asyncio.timeout(10):
            record = await asyncio.shield(task.ended)
        assert record == ExitRecord(id="a/t/0", at=1.0, exit_code=3)
        assert keeper.settled == 1
        await store.forget(task.id)


async def test_a_keeper_that_lives_and_says_nothing_is_no_busy_loop(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "k", [b""])
    async with await asyncio.start_unix_server(keeper.answer, keeper.control):
        store = Store(EventHub(), Offload())
        task = store.add(pb.TaskConfig(id="a/t/0"), cast(Machine, keeper))
        await asyncio.sleep(0.5)
        assert 1 <= keeper.settled <= 12
        await store.forget(task.id)
