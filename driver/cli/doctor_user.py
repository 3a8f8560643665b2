"""What `chv doctor` says of user networks: who their router is, and what guests reach of this host by it. Pure."""

from collections.abc import Iterable
from typing import Literal

from vmlib import probe

Line = tuple[str, Literal["ok", "warning"], str, str]  # check, verdict, text, cure

_ACLS = "give it only to jobs that you trust with that, or turn on Nomad's ACLs"
_FORGED = (
    "what root in a guest sends to 127.0.0.1 gets there, since this passt is older than June 2024 or does not say its"
    " version"
)


def user_lines(networks: Iterable[str], passt: probe.Program) -> list[Line]:
    return [(f"network {name}", *_line(passt)) for name in networks]


def _line(passt: probe.Program) -> tuple[Literal["ok", "warning"], str, str]:
    if passt.why_not:
        return (
            "warning",
            "user mode by QEMU: guests reach the loopback of this host at 10.0.2.2, where Nomad's API listens",
            f"{probe.PASST_CURE}, or {_ACLS}",
        )
    if not probe.passt_drops_forged(passt.version):
        return (
            "warning",
            f"user mode by passt: 10.0.2.2 is not the loopback of this host, but {_FORGED}",
            f"install a later passt, or {_ACLS}",
        )
    return "ok", "user mode by passt: guests reach what listens on this host's addresses, not its loopback", ""
