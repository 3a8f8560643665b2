"""What our links are called and how they are marked, so that nobody's but ours is ever deleted. Pure."""

from pathlib import Path

from vmlib.paths import run_key

MAX_NAME_BYTES = 15
_MARK = "chv"


def link_name(machine_id: str, index: int) -> str:
    """The host's name for interface number `index` of one start of a machine: `chv`, ten hex digits, two digits."""
    return f"chv{run_key(machine_id)[:10]}{index:02d}"


def link_mark(owner: str, run_dir: Path) -> str:
    """What stands in the alias of a link: whose it is, and the run directory of the start that it was made for."""
    return f"{_MARK} {owner} {run_dir}"


def read_mark(alias: str) -> tuple[str, Path] | None:
    """Owner and run directory; None for a link of somebody else's."""
    words = alias.split(" ", 2)
    return (words[1], Path(words[2])) if len(words) == 3 and words[0] == _MARK else None


def port_mac(guest_mac: str) -> str:
    """The MAC of the host's end of a tap: not the guest's, to which the bridge would then deliver nothing.

    A high one, because a bridge without a MAC of its own takes the lowest among its ports.
    """
    first = "fa" if guest_mac.startswith("fe") else "fe"
    return first + guest_mac[2:]
