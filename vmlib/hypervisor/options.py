"""Words of a VMM's command line from untrusted values: the one place that escapes."""

import json
from collections.abc import Mapping

from vmlib.errors import SpecError

_PLACEHOLDER = "{fd:"


class Inherited(str):
    """A value that holds a placeholder on purpose: the launcher puts the number of a descriptor there."""

    __slots__ = ()


def inherited(name: str, before: str = "") -> Inherited:
    """The number of the descriptor of that name, after the text `before`."""
    return Inherited(f"{before}{_PLACEHOLDER}{name}}}")


def plain(value: str, *, key: str, max_bytes: int) -> str:
    """A word that stands alone. Raises SpecError for what would not reach the VMM as it is."""
    size = len(value.encode(errors="surrogateescape"))
    if size > max_bytes:
        raise SpecError(f"{key}: {size} bytes long, expected at most {max_bytes}")
    if "\0" in value:
        raise SpecError(f"{key} = {value!r}: holds a NUL byte")
    if _PLACEHOLDER in value and not isinstance(value, Inherited):
        raise SpecError(f"{key} = {value!r}: holds {_PLACEHOLDER!r}, which cannot be passed on")
    return value


def option(first: str, *pairs: tuple[str, str]) -> str:
    """`first,name=value,…` with the commas in each value doubled, which is how QEMU reads a literal one."""
    words = [f"{name}={plain(value, key=name, max_bytes=1024).replace(',', ',,')}" for name, value in pairs]
    return ",".join([first, *words] if first else words)


def json_option(value: Mapping[str, object]) -> str:
    """An option as a JSON object, where `null` can be said and nothing needs escaping."""
    return json.dumps(value, separators=(",", ":"))
