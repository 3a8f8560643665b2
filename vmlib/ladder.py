"""How a machine is stopped: asked first, and only then forced, step by step. Pure."""

import math
from dataclasses import dataclass
from typing import Literal

Step = Literal["power button", "quit", "terminate", "kill"]


@dataclass(frozen=True, slots=True)
class Rung:
    """One step, and how long its effect is awaited before the next one, in seconds."""

    step: Step
    wait_s: float

    @property
    def forced(self) -> bool:
        return self.step != "power button"

    @property
    def asks(self) -> bool:
        """True for a step that the VMM has to answer, which it may never do."""
        return self.step in ("power button", "quit")


# A guest that is still booting misses the button; one that shuts down already does not mind another press.
_PRESS_AGAIN_S = 5.0


def ladder(timeout_s: float) -> tuple[Rung, ...]:
    """The guest has the whole `timeout_s` for the power button; what forces it takes five seconds at most."""
    presses = max(1, math.ceil(timeout_s / _PRESS_AGAIN_S))
    waits = [min(_PRESS_AGAIN_S, timeout_s - press * _PRESS_AGAIN_S) for press in range(presses)]
    return (
        *(Rung("power button", wait_s) for wait_s in waits),
        Rung("quit", 2.0),
        Rung("terminate", 1.5),
        Rung("kill", 1.5),
    )


def sentence(rung: Rung, timeout_s: float, *, advice: str = "") -> str:
    """The event of a forced step, and the message of an end by force. `advice` is what its reader may do about it."""
    tail = f"; {advice}" if advice else ""
    how = {"quit": "the VMM was told to quit", "terminate": "SIGTERM to the VMM", "kill": "SIGKILL to the VMM"}
    if timeout_s <= 0:
        return f"forced off: the guest had no time to power off, {how[rung.step]}{tail}"
    return f"forced off: the guest did not power off within {timeout_s:g} s, {how[rung.step]}{tail}"
