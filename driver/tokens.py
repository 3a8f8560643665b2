"""The tokens that a task holds: what the device plugin `chv-cores` puts into its device environment, and back. Pure."""

import re
from collections.abc import Iterable, Mapping

from vmlib.errors import SpecError

PREFIX = "CHV_CORES_"
_KEY = re.compile(r"CHV_CORES_NUMA([0-9]{1,4})_[0-9]{1,7}")
_TOKEN = re.compile(r"core-[0-9]{1,7}")


def token(unit_id: int) -> str:
    """The name of one dedicated unit as a device. It stands for any unit of its node."""
    return f"core-{unit_id}"


def env_of(node: int, unit_ids: Iterable[int]) -> dict[str, str]:
    """What a task gets for these units of one node, of which there is at least one.

    A task may have several device blocks, also of one node, and their environments become one: the lowest id in the
    name keeps them apart.
    """
    ids = sorted(set(unit_ids))
    return {f"{PREFIX}NUMA{node}_{ids[0]}": ",".join(map(token, ids))}


def tokens_of(device_env: Mapping[str, str]) -> dict[int, int]:
    """NUMA node -> how many of its dedicated cores the scheduler gave. Raises SpecError on what it cannot read."""
    found: dict[int, set[str]] = {}
    for key, value in device_env.items():
        if not key.startswith(PREFIX):
            continue
        match, tokens = _KEY.fullmatch(key), value.split(",")
        if match is None or not all(_TOKEN.fullmatch(one) for one in tokens):
            raise SpecError(f"{key[:64]} = {value[:64]!r}: expected what the device plugin chv-cores writes")
        found.setdefault(int(match[1]), set()).update(tokens)
    return {node: len(tokens) for node, tokens in sorted(found.items())}
