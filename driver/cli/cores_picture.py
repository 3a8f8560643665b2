"""The picture that `chv cores` draws: packages, NUMA nodes, L3s and cores in 100 columns of plain text."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from driver.cli.cores_view import CoresView, Use, Word, uses
from vmlib.cores.cpulist import format_cpus
from vmlib.cores.topology import Core, Topology
from vmlib.cores.words import Entry

WIDTH = 100
_ONE_BY_ONE = 64  # with more cores, those alike are drawn as one
_RUN_WIDTH = 40  # of the CPU list of such a run

_MARKS: Mapping[Word, str] = {
    "reserved": "#",
    "dedicated": "+",
    "housekeeping": ".",
    "shared": "o",
    "withheld": "x",
}
_SMT = {"notsupported": "not supported", "notimplemented": "not implemented", "forceoff": "forced off"}
_LEGEND: Mapping[str, str] = {
    "#": "reserved by the scheduler for a task with cores",
    "+": "dedicated, free",
    ".": "housekeeping: VMM threads, machines without cores",
    "o": "shared out by the scheduler, no housekeeping",
    "x": "withheld from the scheduler, not dedicated",
}


def draw(view: CoresView) -> str:
    """At most 100 columns, no colour."""
    use = uses(view)
    letters = _letters(view.entries)
    blocks = [_summary(view), _picture(view.topology, use, letters), _machines(view.entries, letters)]
    blocks.append(_legend(view.topology, use, letters))
    return "\n\n".join("\n".join(lines) for lines in blocks if lines) + "\n"


def _letters(entries: Iterable[Entry]) -> dict[str, str]:
    """A to Z, AA to ZZ, … by entry id, for those that have cores."""
    holders = [entry.id for entry in entries if entry.placement.cpus]
    return {id_: _letter(index) for index, id_ in enumerate(holders)}


def _letter(index: int) -> str:
    before, last = divmod(index, 26)
    return (_letter(before - 1) if before else "") + chr(ord("A") + last)


def _summary(view: CoresView) -> list[str]:
    topology = view.topology
    kinds: dict[str, list[int]] = {}
    for core in topology.cores:
        kinds.setdefault(core.kind, []).extend(core.cpus)
    smt = _SMT.get(topology.smt_control, topology.smt_control) or ("on" if topology.smt_active else "")
    head = [
        f"{len(topology.online)} of {_count(len(topology.present), 'CPU')} online",
        _count(len(topology.cores), "core"),
        _count(len(topology.nodes), "NUMA node"),
        *([f"SMT {smt}"] if smt else []),
    ]
    rows = {
        "usable": view.usable,
        "dedicated": view.dedicated,
        "housekeeping": view.housekeeping,
        "reserved": view.reserved_by_nomad,
    }
    rare = {
        "offline": topology.offline,
        "isolcpus": topology.isolated,
        "nohz_full": topology.nohz_full,
        "performance": kinds.get("performance", ()),
        "efficiency": kinds.get("efficiency", ()),
    }
    lines = [", ".join(head)]
    for name, cpus in {**rows, **{name: cpus for name, cpus in rare.items() if cpus}}.items():
        lines += _hanging(f"{name:<12}  ", format_cpus(cpus) or "none")
    return lines


def _picture(topology: Topology, use: Mapping[int, Use], letters: Mapping[str, str]) -> list[str]:
    compact = len(topology.cores) > _ONE_BY_ONE
    # (package, node) -> rows of a label and cells; all are needed before the first can be aligned.
    parts: dict[tuple[int, int], list[tuple[str, list[str]]]] = {}
    ordered = sorted(topology.cores, key=lambda core: (core.package, core.node, core.l3, core.id))
    for place, cores in groupby(ordered, key=lambda core: (core.package, core.node)):
        l3s = [list(group) for _, group in groupby(cores, key=lambda core: core.l3)]
        if compact:
            parts[place] = _compact_rows(l3s, use, letters)
        else:
            parts[place] = [(f"L3 {l3[0].l3}", [_cell(core, use, letters) for core in l3]) for l3 in l3s]
    rows = [row for part in parts.values() for row in part]
    label_width = max((len(label) for label, _ in rows), default=0)
    cell_width = 0 if compact else max((len(cell) for _, cells in rows for cell in cells), default=0)
    memory = {node.id: node.memory_bytes for node in topology.nodes}
    lines: list[str] = []
    for package, group in groupby(parts, key=lambda place: place[0]):
        lines.append(f"package {package}")
        for place in group:
            lines.append(f"  node {place[1]}{_memory(memory.get(place[1], 0))}")
            for label, cells in parts[place]:
                lines += _flowing(f"    {label:<{label_width}}  ", [cell.ljust(cell_width) for cell in cells])
    lines += [f"node {node.id}{_memory(node.memory_bytes)}, no CPUs" for node in topology.nodes if not node.cpus]
    return lines


def _cell(core: Core, use: Mapping[int, Use], letters: Mapping[str, str]) -> str:
    return f"[{format_cpus(core.cpus)} {_mark([use[cpu] for cpu in core.cpus], letters)}]"


def _compact_rows(
    l3s: Sequence[Sequence[Core]], use: Mapping[int, Use], letters: Mapping[str, str]
) -> list[tuple[str, list[str]]]:
    """Neighbouring cores alike in one cell, neighbouring L3s in which all cores are alike in one row."""

    def plain(core: Core) -> str:
        return _mark([use[cpu] for cpu in core.cpus], letters, pins=False)

    def alike(l3: Sequence[Core]) -> str:
        marks = {plain(core) for core in l3}
        return marks.pop() if len(marks) == 1 else f"L3 {l3[0].l3}"  # no mark has a space: such an L3 stays alone

    rows = []
    for _, group in groupby(l3s, key=alike):
        same = list(group)
        label = f"L3 {same[0][0].l3}" + (f" and {len(same) - 1} more" if len(same) > 1 else "")
        cells = []
        for mark, cores in groupby((core for l3 in same for core in l3), key=plain):
            for run in _runs(cores):
                cpus = format_cpus(cpu for core in run for cpu in core.cpus)
                cells.append(f"[{cpus} {mark} x{len(run)}]" if len(run) > 1 else _cell(run[0], use, letters))
        rows.append((label, cells))
    return rows


def _runs(cores: Iterable[Core]) -> list[list[Core]]:
    """Cut where the CPU list gets long: some hosts number their CPUs in turn over the packages."""
    runs: list[list[Core]] = []
    for core in cores:
        longer = [*runs[-1], core] if runs else [core]
        if runs and len(format_cpus(cpu for one in longer for cpu in one.cpus)) <= _RUN_WIDTH:
            runs[-1] = longer
        else:
            runs.append([core])
    return runs


def _mark(of: Sequence[Use], letters: Mapping[str, str], *, pins: bool = True) -> str:
    """One word without a space for all CPUs of a core; CPUs that are not of one holder are told apart by a slash."""
    entries = {use.entry.id if use.entry is not None else "" for use in of}
    if len(entries) == 1 and of[0].entry is not None:
        numbers = ",".join(str(use.vcpu) for use in of if use.vcpu is not None) if pins else ""
        emulator = "e" if pins and not numbers and any(use.emulator for use in of) else ""
        contested = "!" if any(use.contested for use in of) else ""
        return f"{letters[of[0].entry.id]}{numbers}{emulator}{contested}"
    if len(of) == 1:
        return _MARKS[of[0].word]
    marks = [_mark([use], letters, pins=pins) for use in of]
    return marks[0] if len(set(marks)) == 1 else "/".join(marks)


def _machines(entries: Sequence[Entry], letters: Mapping[str, str]) -> list[str]:
    if not entries:
        return ["no machine has cores"]
    head = ("", "MACHINE", "OWNER", "LEVEL")
    rows = [
        (letters.get(entry.id, "-"), _clip(entry.name, 45), _clip(entry.owner, 10), entry.level) for entry in entries
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [_columns(head, widths) + "CPUS"]
    for row, entry in zip(rows, entries, strict=True):
        lines += _hanging(_columns(row, widths), format_cpus(entry.placement.cpus) or "floats")
        notes = [
            *(["draining"] if entry.draining else []),
            *([_count(entry.repairs, "drift") + " repaired"] if entry.repairs else []),
            *([f"yielded: {entry.yielded}"] if entry.yielded else []),
        ]
        indent = " " * (widths[0] + 4)
        lines += textwrap.wrap(", ".join(notes), WIDTH, initial_indent=indent, subsequent_indent=indent)
    return lines


def _columns(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{cell:<{width}}  " for cell, width in zip(cells, widths, strict=True))


def _legend(topology: Topology, use: Mapping[int, Use], letters: Mapping[str, str]) -> list[str]:
    """Only what the picture has."""
    compact = len(topology.cores) > _ONE_BY_ONE
    seen = use.values()
    words = {one.word for one in seen}
    lines = [f"{mark}    {_LEGEND[mark]}" for word, mark in _MARKS.items() if word in words]
    if letters:
        lines.append("A0   vCPU 0 of machine A; A alone: a core or thread that it keeps idle")
        if compact:
            lines[-1] = "A0   vCPU 0 of machine A; A alone: cores of it"
    if any(one.emulator for one in seen):
        lines.append("Ae   VMM threads of machine A")
    if any(one.contested for one in seen):
        lines.append("A!   the scheduler has reserved it as well: machine A makes room")
    if any("/" in _mark([use[cpu] for cpu in core.cpus], letters) for core in topology.cores):
        lines.append("A/#  the threads of one core, which are not of one holder")
    if compact:
        lines.append("x8   8 cores alike")
    return lines


# -- text ------------------------------------------------------------------------------------------------------------


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _memory(memory_bytes: int) -> str:
    if not memory_bytes:
        return ""
    return f", {memory_bytes / (1 << 30):.0f} GiB" if memory_bytes >= 10 << 30 else f", {memory_bytes >> 20} MiB"


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _hanging(label: str, cpus: str) -> list[str]:
    """A CPU list behind its label, broken after commas."""
    parts = cpus.split(",")
    return _flowing(label, [f"{part}," for part in parts[:-1]] + parts[-1:], gap="")


def _flowing(label: str, cells: Sequence[str], gap: str = " ") -> list[str]:
    """Cells behind their label, as many on a line as fit."""
    lines = []
    line = label
    empty = True
    for cell in cells:
        if not empty and len(line) + len(gap) + len(cell.rstrip()) > WIDTH:
            lines.append(line.rstrip())
            line, empty = " " * len(label), True
        line += cell if empty else gap + cell
        empty = False
    return [*lines, line.rstrip()]
