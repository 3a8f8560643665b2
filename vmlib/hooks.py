"""Hooks: how an operator's own volume system gives machines what it has, and takes it back. The surface for its author.

A hook is a class that a package names as an entry point of the group `chv.hooks`; docs/hooks.md tells the rest. What
runs it, in a process of its own, is `vmlib.hook_run`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vmlib.errors import HostError
from vmlib.spec import DiskFormat, MachineSpec

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "chv.hooks"
MAX_DISKS = 16  # that one hook may give

_HINT = "install the package that has it where chv is installed, or take it out of hooks in the plugin block"


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenDisk:
    """A further disk of the machine: this very file, which stays the hook's. It comes after those of the job."""

    name: str  # as in a job: a lower case letter, then at most 15 of a-z 0-9 _ -
    path: Path  # of a regular file
    format: DiskFormat = "raw"
    readonly: bool = False
    serial: str = ""  # what the guest knows it by


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a preflight gives."""

    disks: tuple[GivenDisk, ...] = ()
    spec: MachineSpec | None = None  # the machine as it shall be instead; None = as it was


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """For which machine a hook is called."""

    machine: str  # its name, the same over its restarts
    machine_id: str  # this start of it
    labels: Mapping[str, str]  # what the caller knows it by; empty in a postflight
    note: Callable[[Mapping[str, str]], None] = field(repr=False)  # see Hook.preflight


class Hook(Protocol):
    """One volume system. A new object, in a new process, for each call; what is to be kept is in the noted state.

    What it raises of vmlib.errors comes to whom it concerns: SpecError to the job's author, HostError to the operator,
    NoCapacityError to the restart policy, which tries again. Anything else is a HostError.
    """

    def preflight(self, spec: MachineSpec, context: Context) -> Prepared:
        """Before the machine is made. `spec` is what the job asked for and earlier hooks made of it.

        Calls `context.note(state)` before it makes a thing: when that returns, the state is on disk, and from then on
        `postflight` is called with it, whatever becomes of the machine, this process and the node.
        """

    def postflight(self, state: Mapping[str, str], context: Context) -> None:
        """Take back what `state` tells of: after the machine has ended, or when it never came to run.

        Succeeds when the thing was never made or is gone already. When it raises it is called again later.
        """


def split(wanted: str) -> tuple[str, str]:
    """`NAME` or `NAME:ARGUMENT`, as the operator selects a hook."""
    name, _, argument = wanted.partition(":")
    return name, argument


def find_hook(name: str) -> "EntryPoint":
    """Where an installed package has the hook of that name; nothing of it is imported. Raises HostError."""
    # Imported here to keep the plugin's cold start short.
    from importlib.metadata import entry_points

    found = {one.value: one for one in entry_points(group=GROUP, name=name)}
    if not found:
        raise HostError(f"no installed package has an entry point of that name in the group {GROUP}", hint=_HINT)
    if len(found) > 1:
        named = ", ".join(sorted(found))
        raise HostError(f"several entry points have that name in the group {GROUP}: {named}", hint=_HINT)
    return next(iter(found.values()))


def load_hook(wanted: str) -> Hook:
    """The hook of that name, made with its argument. Raises HostError."""
    name, argument = split(wanted)
    found = find_hook(name)
    try:
        make = found.load()
        hook: Hook = make(argument) if argument else make()
    except Exception as exc:  # foreign code: whatever it raises, its operator has to know which one it was
        raise HostError(f"{found.value} cannot be made: {type(exc).__name__}: {exc}", hint=_HINT) from exc
    return hook
