"""Plays the keepers and guests of many machines, in a process of its own: `many_agents.py DIRECTORY COUNT`."""

import asyncio
import resource
import sys
from pathlib import Path
from typing import Any

from tests.integration.agent_keepers import Played, Script
from vmlib.guest import wire

_NOTES_S = 15.0  # as often as a real one says how its guest is


def environment_is_set(number: int, wanted: dict[str, Any]) -> bytes:
    return wire.encode_json(wire.EXITED, number, {"code": 0})


async def main(base: Path, count: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    one = Played(base)
    scripts = [Script({"boot_s": 1, "addresses": ["10.0.0.5"]}, environment_is_set) for _ in range(count)]
    for number, script in enumerate(scripts):
        await one.keep(f"t{number}", script)
    print("ready", flush=True)
    turn = 0
    while True:
        for script in scripts:
            await asyncio.sleep(_NOTES_S / count)
            turn += 1
            if script.writer is not None:
                memory = {"total_bytes": 1 << 30, "available_bytes": turn}
                script.note(load=[turn % 100 / 100, 0.5, 0.5], memory=memory, uptime_s=turn)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
