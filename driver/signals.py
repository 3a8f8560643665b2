"""Which signal does what to a machine. Pure."""

from typing import Literal

Action = Literal["power button", "pause", "resume", "kill", "agent"]

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
    wanted = name.upper()
    return _ACTIONS.get(wanted if wanted.startswith("SIG") else f"SIG{wanted}")


def understood() -> str:
    """The list for the refusal."""
    by_action: dict[str, list[str]] = {}
    for name, action in _ACTIONS.items():
        by_action.setdefault(action, []).append(name)
    return ", ".join(f"{' '.join(names)} ({action})" for action, names in by_action.items() if action != "agent")
