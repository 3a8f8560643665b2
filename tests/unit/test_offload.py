"""Where blocking work of the plugin goes."""

import asyncio
import threading

from driver.offload import _THREADS, Offload
from vmlib.ladder import ladder


async def test_a_lane_that_is_full_holds_up_no_other_lane() -> None:
    offload, release = Offload(), threading.Event()
    stuck = [asyncio.ensure_future(offload("vmm", release.wait)) for _ in range(_THREADS["vmm"] + 1)]
    try:
        for lane in _THREADS:
            if lane != "vmm":
                assert await offload(lane, lambda: "done") == "done"
        assert not any(one.done() for one in stuck)
    finally:
        release.set()
        await asyncio.gather(*stuck)


def test_the_steps_that_end_a_vmm_ask_it_nothing() -> None:
    assert {rung.step: rung.asks for rung in ladder(5.0)} == {
        "power button": True,
        "quit": True,
        "terminate": False,
        "kill": False,
    }
