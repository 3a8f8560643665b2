"""The line between a keeper and the language of its VMM: what a keeper needs of each, and what it does for them."""

from typing import Protocol

from vmlib.keeper.console import Typing
from vmlib.keeper.helpers import Helpers
from vmlib.keeper.loop import Loop
from vmlib.keeper.plan import KeeperPlan
from vmlib.keeper.relay import Relay
from vmlib.keeper.verdict import Evidence
from vmlib.paths import RunPaths


class House(Protocol):
    """The keeper as a dialect sees it: what was understood is said here, in words that do not depend on the VMM."""

    @property
    def plan(self) -> KeeperPlan: ...

    @property
    def run_paths(self) -> RunPaths: ...

    @property
    def loop(self) -> Loop: ...

    @property
    def helpers(self) -> Helpers: ...

    @property
    def vmm_fd(self) -> int:
        """A pidfd of the VMM, once it lives."""

    @property
    def evidence(self) -> Evidence:
        """To be written as well; `save_state` after it."""

    def console_said(self, data: bytes) -> None: ...

    def vmm_said(self, data: bytes) -> None:
        """For the task's log, and for the message of a VMM that fails."""

    def guest_said(self, line: bytes) -> None:
        """A line on the guest channel."""

    def guest_runs(self) -> None:
        """It was let go for the first time, or again after a pause."""

    def guest_paused(self) -> None: ...

    def guest_rebooted(self, by: str) -> None: ...

    def guest_panicked(self) -> bool:
        """Tell of it, with the console's last words. True when it shall be the end, which is left to the caller."""

    def button_pressed(self) -> None: ...

    def save_state(self) -> None: ...

    def end_vmm(self) -> None:
        """Ask the VMM to end, and see to it."""

    def kill_vmm(self) -> None: ...


class Dialect(Protocol):
    """One VMM's language."""

    @property
    def relay(self) -> Relay:
        """The guest channel, for whoever serves the guest's agent."""

    @property
    def typing(self) -> Typing:
        """Input for the guest's console."""

    def make(self) -> None:
        """Make what must be there before the VMM, beside the FIFOs of its standard streams."""

    def open(self) -> None:
        """Take hold of the streams, whether the VMM is still to come or runs already."""

    def inherited(self) -> dict[str, int]:
        """What the VMM inherits beside the plan's files and listeners, by name; the caller closes it."""

    def connect(self, *, adopted: bool) -> None:
        """The VMM lives: listen to it. One that is ending already does not answer; its process then says the rest."""

    def arm_writers(self) -> None:
        """Ask for writability exactly where something waits."""

    def take_console(self, path: str) -> str:
        """Read the console there from now on. Returns why not, or ""."""

    def read_console(self) -> None:
        """Pass on all that the guest has said until now."""

    def drain(self) -> None:
        """The VMM has ended: read all that is left, and see what it means."""
