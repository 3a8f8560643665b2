"""Which signal does what to a machine. Pure."""

from typing import Literal

Action = Literal["power button", "pause", "resume", "kill", "agent"]

_ENOUGH_S = 30.0  # for a guest to power off

_ACTIONS: dict[str, Action] = {
    "SIGTERM": "power button",
    "SIGINT": "power button",
    "SIGSTOP": "pause",
    "SIGCONT": "resume",
    "SIGKILL": "kill",
    "SIGHUP": "agent",
    "SIGUSR1": "agent",
    "SIGUSR2": "agent",
}


def signal_action(name: str) -> Action | None:
    """What `nomad alloc signal -s NAME` means for a machine; None for a signal that means nothing to one."""
    return _ACTIONS.get(full_name(name))


def full_name(name: str) -> str:
    """`SIGHUP` for what a person may have written as `hup`."""
    wanted = name.upper()
    return wanted if wanted.startswith("SIG") else f"SIG{wanted}"


def stops_at_once(kill_signal: str) -> bool:
    """Whether a task with that `kill_signal` is ended without asking its guest."""
    return signal_action(kill_signal) == "kill"


def asks_to_stop(kill_signal: str) -> bool:
    """False for one that means something else to a machine, or nothing: a stop comes to pass all the same."""
    return not kill_signal or signal_action(kill_signal) == "power button"


def short_time(timeout_s: float) -> str:
    """What to do about a `kill_timeout` that is short for a guest, which nobody tells us when the task starts."""
    if timeout_s >= _ENOUGH_S:
        return ""
    return f"most guests need a kill_timeout of {_ENOUGH_S:g} s, Nomad's default is 5 s"


def understood() -> str:
    """The list for a refusal: what every machine understands."""
    by_action: dict[str, list[str]] = {}
    for name, action in _ACTIONS.items():
        by_action.setdefault(action, []).append(name)
    return ", ".join(f"{' '.join(names)} ({action})" for action, names in by_action.items() if action != "agent")
