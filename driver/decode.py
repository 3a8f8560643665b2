"""From msgpack to plain values by the tables of `driver.schema`, with all complaints at once.

What a value means (a size, a path, a range of uids) is for the `driver.config_*` modules.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from driver.schema import Block, Key, Members, Value
from vmlib.errors import VmError

_SHOWN_CHARACTERS = 120
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Complaint:
    """What is wrong with one key: `value` as it is shown, "" for none worth showing."""

    key: str
    value: str
    expected: str

    def __str__(self) -> str:
        match self.value:
            case "":
                return f"{self.key}: {self.expected}"
            case "{ … }":
                return f"{self.key} {{ … }}: {self.expected}"
        return f"{self.key} = {self.value}: {self.expected}"


class Complaints:
    """Collects what is wrong, so that a job's author need not find it out one by one.

    Of `settled` keys nothing is said, nor of what follows from them: they have drawn their complaint elsewhere, or the
    value is not known yet.
    """

    def __init__(self, settled: Iterable[str] = ()) -> None:
        self.found: list[Complaint] = []
        self._settled = frozenset(settled)
        self._about: set[str] = set(self._settled)

    @property
    def lines(self) -> list[str]:
        return list(map(str, self.found))

    def add(self, key: str, expected: str, *, value: object = None, secret: bool = False) -> None:
        """One line: the key, its value (None: it has none worth showing) and what was expected."""
        if not self._is_settled(key):
            self._about.add(key)
            self.found.append(Complaint(key, "" if value is None else show(value, secret=secret), expected))

    def any_about(self, *keys: str) -> bool:
        """True when one of these keys has its complaint already: what follows from its value is not worth saying."""
        return not self._about.isdisjoint(keys)

    def _is_settled(self, key: str) -> bool:
        return any(key == one or key.startswith((f"{one}[", f"{one}.")) for one in self._settled)

    def raise_as(self, error: type[VmError]) -> None:
        """Raise them all as one error, a line each, when there are any."""
        if self.found:
            raise error("\n".join(self.lines))


def show(value: object, *, secret: bool = False) -> str:
    """A value for a message, in one line and never too long."""
    if secret:
        return f"({len(value.encode())} bytes)" if isinstance(value, str) else "(not shown)"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"


def one_of(words: tuple[object, ...]) -> str:
    """`expected a, b or c`"""
    names = [str(word) if word != "" else '""' for word in words]
    return "expected " + (f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0])


def decode(data: bytes, members: Members, complaints: Complaints, *, with_hidden: bool = False) -> dict[str, Any]:
    """Every key of the table by name, nested as its blocks are. What is absent or complained about has its default."""
    # Imported here to keep the plugin's cold start short.
    import msgspec

    try:
        raw = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        complaints.add("config", f"not msgpack ({exc})")
        raw = {}
    return _Decoder(complaints, with_hidden).members(raw, members, "")


def path_of_label(prefix: str, label: str) -> str:
    """How a labelled block is called in messages: `network.lan`, `network['a b']`."""
    return f"{prefix}.{label}" if _PLAIN_NAME.fullmatch(label) else f"{prefix}[{show(label)}]"


class _Decoder:
    def __init__(self, complaints: Complaints, with_hidden: bool) -> None:
        self._complaints = complaints
        self._with_hidden = with_hidden

    def members(self, raw: object, members: Members, prefix: str) -> dict[str, Any]:
        if raw is None:
            raw = {}
        if not isinstance(raw, Mapping):
            self._complaints.add(prefix.rstrip(".") or "config", "expected a block", value=raw)
            raw = {}
        for name in sorted(raw.keys() - {member.name for member in members}, key=str):
            plain = isinstance(name, str) and _PLAIN_NAME.fullmatch(name)
            self._complaints.add(f"{prefix}{name if plain else show(name)}", "no such key")
        return {
            member.name: (
                self._block(raw.get(member.name), member, prefix + member.name)
                if isinstance(member, Block)
                else self._key(raw.get(member.name), member, prefix + member.name)
            )
            for member in members
        }

    def _block(self, raw: object, block: Block, path: str) -> object:
        if block.form == "one":
            return self.members(raw, block.members, f"{path}.")
        empty: object = [] if block.form == "list" else {}
        if not raw:
            return empty
        if isinstance(raw, list | Mapping) and len(raw) > block.max_items:
            self._complaints.add(path, f"{len(raw)} blocks, expected at most {block.max_items}")
            return empty
        if block.form == "list" and isinstance(raw, list):
            return [self.members(one, block.members, f"{path}[{index}].") for index, one in enumerate(raw)]
        if block.form == "map" and isinstance(raw, Mapping):
            return {
                str(label): self.members(one, block.members, f"{path_of_label(path, str(label))}.")
                for label, one in raw.items()
            }
        self._complaints.add(path, f"expected {'blocks' if block.form == 'list' else 'blocks with labels'}", value=raw)
        return empty

    def _key(self, raw: object, key: Key, path: str) -> Value:
        if raw is None:
            raw = key.default
        if raw is None:
            return None
        value, complaint = _typed(raw, key)
        complaint = complaint or next(_faults(value, key), "")
        if complaint:
            self._complaints.add(path, complaint, value=raw, secret=key.secret)
            return key.default
        works = key.works
        if works is not None and self._with_hidden:
            works += key.hidden
        if works is not None and value not in works:
            self._complaints.add(path, one_of(works), value=value)
            return key.default
        return value


def _typed(raw: object, key: Key) -> tuple[Value, str]:
    """The value in its type, or a complaint."""
    match key.kind:
        case "string":
            return (raw, "") if isinstance(raw, str) else (None, "expected text")
        case "bool":
            return (raw, "") if isinstance(raw, bool) else (None, "expected true or false")
        case "number":
            number = _whole(raw)
            return number, "" if number is not None else "expected a whole number"
        case "strings":
            if isinstance(raw, list | tuple) and all(isinstance(one, str) for one in raw):
                return tuple(raw), ""
            return None, "expected a list of texts"


def _whole(raw: object) -> int | None:
    """A number comes as an integer, as a float or, when neither holds it exactly, as a decimal string."""
    if isinstance(raw, bool):
        return None
    if isinstance(raw, int):
        return raw
    if isinstance(raw, float) and raw.is_integer():
        return int(raw)
    if isinstance(raw, str) and len(raw) <= 40 and raw.removeprefix("-").isdecimal():
        return int(raw)
    return None


def _faults(value: Value, key: Key) -> Iterator[str]:
    texts = (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ()
    if isinstance(value, tuple) and len(value) > key.max_items:
        yield f"{len(value)} entries, expected at most {key.max_items}"
    for index, text in enumerate(texts):
        which = f"entry {index}: " if isinstance(value, tuple) else ""
        if (size := len(text.encode(errors="surrogatepass"))) > key.max_bytes:
            yield f"{which}{size} bytes, expected at most {key.max_bytes}"
        if not key.many_lines and any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
            yield f"{which}holds a control character, expected one line of text"
