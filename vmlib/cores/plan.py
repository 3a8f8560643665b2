"""Who runs where: from what a machine wants and who is there already to a placement, and from all placements to the
CPUs of every thread. Pure: topology, policy and ledger come in as values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from vmlib.cores.allocate import NoFitError, Request, Unit, UnitMap, units_of
from vmlib.cores.cpulist import format_cpus
from vmlib.cores.topology import Topology
from vmlib.cores.words import Confinement, Entry, Level, Placement, Source
from vmlib.errors import HostError, NoCapacityError, SpecError, VmError
from vmlib.spec import CoresSpec

_FLOATS = "{why}, vCPUs float over housekeeping"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What operator and scheduler decided about this host's CPUs."""

    usable: frozenset[int] | None = None  # CPUs that the scheduler shares out; None: nobody does, all that are online
    dedicated: frozenset[int] = frozenset()  # whole cores for machines, withheld from the scheduler
    dedicated_only: bool = False  # an exclusive machine gets dedicated cores or fails
    housekeeping: frozenset[int] = frozenset()  # where VMM threads run; empty = what is left
    smt: Literal["core", "thread"] = "core"
    tokens: bool = False  # dedicated cores go only to machines that hold tokens
    partition: Literal["", "root", "isolated"] = ""  # the kernel keeps everybody else off the dedicated cores (v2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One moment of this host."""

    topology: Topology
    policy: Policy = field(default_factory=Policy)
    reserved: frozenset[int] = frozenset()  # CPUs that the scheduler has given away whole

    @property
    def dedicated(self) -> frozenset[int]:
        """Without those that the scheduler shares out all the same: they are nobody's alone."""
        usable = self.policy.usable or frozenset()
        return (self.policy.dedicated & self.topology.online) - usable

    @property
    def shared_out(self) -> frozenset[int]:
        """CPUs that other tasks of the scheduler may run on."""
        usable = self.topology.online if self.policy.usable is None else self.policy.usable & self.topology.online
        return usable - self.policy.dedicated

    @property
    def distances(self) -> dict[int, Mapping[int, int]]:
        return {node.id: node.distances for node in self.topology.nodes}

    def units(self, within: frozenset[int]) -> tuple[Unit, ...]:
        return units_of(self.topology, smt=self.policy.smt, within=within)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a machine gets, and who has to make room for it."""

    placement: Placement
    moved: tuple[Entry, ...] = ()


# -- what is free ----------------------------------------------------------------------------------------------------


def held(entries: Iterable[Entry]) -> frozenset[int]:
    return frozenset(cpu for entry in entries for cpu in entry.placement.cpus)


def housekeeping(host: Host, entries: Iterable[Entry]) -> frozenset[int]:
    """CPUs for VMM threads and for machines that float; empty when the scheduler's reservations leave none."""
    taken = held(entries)
    chosen = (host.policy.housekeeping & host.topology.online) - taken
    return chosen or host.shared_out - taken - host.reserved


def _pool(host: Host, entries: Iterable[Entry], without: frozenset[int] = frozenset()) -> frozenset[int]:
    taken = held(entries) | host.reserved | host.policy.housekeeping | without
    return host.shared_out - taken


def free_dedicated(host: Host, entries: Iterable[Entry]) -> tuple[Unit, ...]:
    return host.units(host.dedicated - held(entries))


# -- one machine -----------------------------------------------------------------------------------------------------


def decide(wanted: CoresSpec, vcpus: int, host: Host, entries: Sequence[Entry]) -> Decision:
    """Where a new machine runs. Raises SpecError (never), HostError (not on this node) or NoCapacityError (not now)."""
    if not wanted.exclusive:
        return _floating(host, entries)
    per_unit = 2 if wanted.expose else 1
    count = -(-vcpus // per_unit) + (1 if wanted.isolate_emulator else 0)
    if wanted.given:
        return _given(wanted, vcpus, host, entries)
    if wanted.tokens:
        if sum(wanted.tokens.values()) != count:
            raise SpecError(f"vcpus = {vcpus}: expected what {sum(wanted.tokens.values())} chv/core devices give")
        request = Request(count=count, numa=wanted.numa, per_node=dict(wanted.tokens))
        return Decision(placement=_dedicated(request, "tokens", wanted, vcpus, host, entries))
    request = Request(count=count, numa=wanted.numa)
    if host.policy.dedicated_only:
        if host.policy.tokens:
            raise SpecError(
                "the dedicated cores of this node go to jobs that hold tokens",
                hint='ask for device "chv/core" in resources, or set placement = "shared"',
            )
        return Decision(placement=_dedicated(request, "dedicated", wanted, vcpus, host, entries))
    return Decision(placement=_from_pool(request, wanted, vcpus, host, entries))


def _floating(host: Host, entries: Sequence[Entry]) -> Decision:
    """A machine without cores of its own needs a CPU that nobody has alone."""
    if not (host.shared_out or host.policy.housekeeping & host.topology.online):
        raise HostError(
            'placement = "shared": this node has no CPU that is not dedicated, name some in cores.housekeeping'
        )
    placement = Placement()
    newcomer = Entry(id="", name="", owner="", boot_id="", run_dir="", placement=placement)
    return Decision(placement=placement, moved=_make_room(host, [*entries, newcomer]))


def _given(wanted: CoresSpec, vcpus: int, host: Host, entries: Sequence[Entry]) -> Decision:
    """The scheduler chose the CPUs; machines that only had them as long as nobody reserved them make room."""
    gone = wanted.given - host.topology.online
    if gone:
        raise HostError(f"cores = {format_cpus(wanted.given)}: CPU {format_cpus(gone)} is not online")
    holders = [entry for entry in entries if wanted.given & set(entry.placement.cpus)]
    if stuck := [entry for entry in holders if entry.placement.source != "pool"]:
        _raise_taken(f"CPU {format_cpus(wanted.given)}, which the scheduler chose,", stuck)
    cores, singles = host.topology.split(wanted.given)
    units = [Unit(id=core.id, cpus=core.cpus, core=core.id, node=core.node, l3=core.l3) for core in cores]
    for cpu in singles:
        core = host.topology.core_of(cpu)
        assert core is not None
        units.append(Unit(id=cpu, cpus=(cpu,), core=core.id, node=core.node, l3=core.l3))
    units.sort(key=lambda unit: (unit.node, unit.l3, unit.id))
    placement = _placement(units, "given", wanted, vcpus, host)
    left = [entry for entry in entries if entry not in holders]
    now_reserved = replace(host, reserved=host.reserved | wanted.given)
    moved: list[Entry] = []
    for entry in holders:
        moved.append(_yielded(entry, now_reserved, [*left, *moved], _reserved_words(entry, wanted.given)))
    return Decision(placement=placement, moved=tuple(moved))


def _dedicated(
    request: Request, source: Source, wanted: CoresSpec, vcpus: int, host: Host, entries: Sequence[Entry]
) -> Placement:
    everywhere = host.units(host.dedicated)
    free = {unit.id for unit in free_dedicated(host, entries)}
    try:
        units = UnitMap(everywhere, host.distances).allocate(free, request)
    except NoFitError as exc:
        what = f"{_cores(request.count)} of dedicated {format_cpus(host.policy.dedicated)}"
        if both := host.policy.dedicated & (host.policy.usable or frozenset()):
            what += f", of which the scheduler still shares out {format_cpus(both)},"
        raise _exhausted(what, exc, entries, host, host.dedicated, request) from exc
    return _placement(units, source, wanted, vcpus, host)


def _from_pool(request: Request, wanted: CoresSpec, vcpus: int, host: Host, entries: Sequence[Entry]) -> Placement:
    units = host.units(_pool(host, entries))
    try:
        chosen = _choose(host, units, request)
        if not housekeeping(host, entries) - {cpu for unit in chosen for cpu in unit.cpus}:
            raise NoFitError(
                wanted=request.count,
                free=len(units) - 1,
                largest_block=len(units) - 1,
                nodes=0,
                message=f"{_cores(len(units) - 1)} free beside the last one, which stays for housekeeping",
            )
    except NoFitError as exc:
        raise _exhausted(_cores(request.count), exc, entries, host, host.shared_out, request) from exc
    return _placement(chosen, "pool", wanted, vcpus, host)


def _choose(host: Host, free: Sequence[Unit], request: Request) -> tuple[Unit, ...]:
    """Among all that could be free, so that it is seen which caches and cores are broken already. Raises NoFitError."""
    everywhere = UnitMap(host.units(host.shared_out), host.distances)
    return everywhere.allocate({unit.id for unit in free}, request)


def _placement(units: Sequence[Unit], source: Source, wanted: CoresSpec, vcpus: int, host: Host) -> Placement:
    emulator = units[-1].cpus if wanted.isolate_emulator else ()
    runners = units[:-1] if wanted.isolate_emulator else units
    places = [cpu for unit in runners for cpu in (unit.cpus[:2] if wanted.expose else unit.cpus[:1])]
    if len(places) < vcpus:
        raise SpecError(f"vcpus = {vcpus}: expected at most {len(places)}, which is what {_cores(len(units))} give")
    cpus = tuple(sorted(cpu for unit in units for cpu in unit.cpus))
    return Placement(
        level=_level(source, cpus, host),
        source=source,
        vcpus=tuple(places[:vcpus]),
        cpus=cpus,
        emulator=emulator,
        nodes=tuple(sorted({unit.node for unit in units})) if len(host.topology.nodes) > 1 else (),
        expose=wanted.expose,
    )


def _level(source: Source, cpus: Iterable[int], host: Host) -> Level:
    if source == "pool":
        return "driver"
    return "node (thread)" if host.topology.split(frozenset(cpus))[1] else "node"


# -- making room -----------------------------------------------------------------------------------------------------


def rearrange(host: Host, entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The entries that have to change because of what the scheduler has reserved meanwhile, and of CPUs that went."""
    changed: dict[str, Entry] = {}
    for entry in entries:
        if _source_now(entry.placement, host) != "pool":
            continue
        if overlap := host.reserved & set(entry.placement.cpus):
            why = _reserved_words(entry, overlap)
        elif gone := _offline(entry.placement, host):
            why = f"CPU {format_cpus(gone)} went offline"
        else:
            continue
        others = [changed.get(other.id, other) for other in entries if other.id != entry.id]
        changed[entry.id] = _yielded(entry, host, others, why)
    for entry in _make_room(host, [changed.get(entry.id, entry) for entry in entries]):
        changed[entry.id] = entry
    return tuple(changed.values())


def _source_now(placement: Placement, host: Host) -> Source:
    """Where its cores come from today: those that are dedicated no more are only the pool's."""
    if placement.source in ("dedicated", "tokens") and set(placement.cpus) - host.policy.dedicated:
        return "pool"
    return placement.source


def _offline(placement: Placement, host: Host) -> frozenset[int]:
    return frozenset(placement.cpus) - host.topology.online


def _reserved_words(entry: Entry, taken: frozenset[int]) -> str:
    return f"the scheduler reserved CPU {format_cpus(taken & set(entry.placement.cpus))}"


def _yielded(entry: Entry, host: Host, others: Sequence[Entry], why: str) -> Entry:
    """The entry on other cores, or without any. Never raises: one machine must not keep all others from their cores."""
    before = entry.placement
    wanted = CoresSpec(exclusive=True, expose=before.expose, isolate_emulator=bool(before.emulator))
    count = -(-len(before.vcpus) // (2 if before.expose else 1)) + (1 if before.emulator else 0)
    try:
        chosen = _choose(host, host.units(_pool(host, others)), Request(count=count))
        now = _placement(chosen, "pool", wanted, len(before.vcpus), host)
    except (NoFitError, SpecError):  # the latter when SMT was switched off meanwhile
        return _floats(entry, f"{why} and nothing else is free")
    if not housekeeping(host, others) - {cpu for unit in chosen for cpu in unit.cpus}:
        return _floats(entry, f"{why} and the last core stays for housekeeping")
    # Its memory stays where it is: moving it would hold the guest up.
    now = replace(now, nodes=tuple(sorted({*now.nodes, *before.nodes})))
    return replace(entry, placement=now, yielded=f"{why}, moved to {format_cpus(now.cpus)}")


def _floats(entry: Entry, why: str) -> Entry:
    return replace(entry, placement=Placement(nodes=entry.placement.nodes), yielded=_FLOATS.format(why=why))


def _make_room(host: Host, entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Machines that float need a CPU; where machines at level driver hold every one, the newest of those gives way.

    Where the scheduler itself has reserved all, they float over all of them instead.
    """
    floating = any(not entry.placement.cpus for entry in entries)
    moved: list[Entry] = []
    now = list(entries)
    while floating and not housekeeping(host, now) and host.shared_out - host.reserved:
        last = next((entry for entry in reversed(now) if entry.placement.source == "pool"), None)
        if last is None:
            break
        moved.append(_floats(last, "a machine without cores of its own needs a CPU"))
        now[now.index(last)] = moved[-1]
    return tuple(moved)


# -- every thread ----------------------------------------------------------------------------------------------------


def confinements(host: Host, entries: Sequence[Entry]) -> dict[str, Confinement]:
    """Where every thread of every machine belongs, by id of the machine's start."""
    rest = housekeeping(host, entries)
    everywhere = rest or host.shared_out or host.topology.online
    return {
        entry.id: _confinement(
            entry.placement, host.topology.online, rest, everywhere, within=in_partition(host, entry.placement)
        )
        for entry in entries
    }


def in_partition(host: Host, placement: Placement) -> bool:
    """Whether the machine's VMM is in the partition of the dedicated cores, outside of which it then has no CPU."""
    return bool(host.policy.partition) and placement.source in ("dedicated", "tokens")


def _confinement(
    placement: Placement,
    online: frozenset[int],
    rest: frozenset[int],
    everywhere: frozenset[int],
    *,
    within: bool,
) -> Confinement:
    nodes = frozenset(placement.nodes)
    own = online.intersection(placement.cpus)
    if not own:
        # With a number of vCPUs, a machine whose own CPUs are all offline keeps its thread groups.
        vcpus = (everywhere,) * len(placement.vcpus)
        return Confinement(cpus=everywhere, vcpus=vcpus, emulator=everywhere, keeper=everywhere, nodes=nodes)
    outside = frozenset[int]() if within else rest
    emulator = online.intersection(placement.emulator) or outside or online.intersection(placement.vcpus) or own
    return Confinement(
        cpus=own | emulator,
        # A vCPU whose CPU is offline runs beside the VMM's other threads until it is back.
        vcpus=tuple(frozenset({cpu}) if cpu in online else emulator for cpu in placement.vcpus),
        emulator=emulator,
        keeper=rest or emulator,
        nodes=nodes,
    )


def level_now(entry: Entry, host: Host, entries: Sequence[Entry]) -> Level:
    """The level that a machine really has."""
    return _lowered(entry, host, entries)[0]


def level_words(entry: Entry, host: Host, entries: Sequence[Entry]) -> str:
    """The event of a machine whose level has changed."""
    level, why = _lowered(entry, host, entries)
    return f"cores: level {level} now: {why}" if why else f"cores: level {level} again"


def _lowered(entry: Entry, host: Host, entries: Sequence[Entry]) -> tuple[Level, str]:
    """With the reason when it is less than what the machine was given."""
    placement = entry.placement
    if gone := _offline(placement, host) & {*placement.vcpus}:
        return "shared", f"CPU {format_cpus(gone)} went offline"
    if _source_now(placement, host) != placement.source:
        return "driver", f"CPU {format_cpus(set(placement.cpus) - host.policy.dedicated)} is dedicated no more"
    floating = any(not other.placement.cpus for other in entries)
    if placement.source == "given" and floating and not housekeeping(host, entries):
        return "driver", "machines without cores float here, the scheduler has reserved all"
    return placement.level, ""


def describe(entry: Entry, host: Host, entries: Sequence[Entry], vcpus: int) -> str:
    """The machine's `cores` event."""
    placement = entry.placement
    rest = housekeeping(host, entries)
    if not placement.cpus:
        over = format_cpus(rest or host.shared_out or host.topology.online)
        return f"cores: shared, {_count(vcpus, 'vCPU')} over CPU {over}"
    pins = ", ".join(f"vCPU {vcpu} on {cpu}" for vcpu, cpu in enumerate(placement.vcpus))
    words = [f"cores: {pins}; level {level_now(entry, host, entries)}"]
    if placement.level == "node (thread)":
        words.append('a sibling set is split, a stranger runs beside it: device "chv/core" gives whole cores')
    if placement.emulator:
        words.append(f"VMM threads on {format_cpus(placement.emulator)} of its own")
    elif in_partition(host, placement):
        words.append("VMM threads on its own cores, because a partition has no other")
    elif rest:
        words.append(f"VMM threads on {format_cpus(rest)}")
    else:
        words.append("VMM threads on its own cores, because no other is left")
    if placement.nodes:
        words.append(f"memory on NUMA node {format_cpus(placement.nodes)}")
    return "; ".join(words)


# -- words -----------------------------------------------------------------------------------------------------------


def _exhausted(
    what: str, why: NoFitError, entries: Sequence[Entry], host: Host, area: frozenset[int], request: Request
) -> VmError:
    """Worth another try only where enough is about to come free."""
    holders = [entry for entry in entries if area & set(entry.placement.cpus)]
    strict = ' (numa = "strict")' if request.numa == "strict" else ""
    message = f"{what} wanted{strict}: {why}; {_holders(holders)}"
    coming = frozenset(cpu for entry in holders if entry.draining for cpu in entry.placement.cpus)
    if coming and why.free + len(host.units(coming)) >= request.count:
        return NoCapacityError(message)
    return HostError(message)


def _raise_taken(what: str, holders: Sequence[Entry]) -> None:
    message = f"{what} is taken: {_holders(holders)}"
    if all(entry.draining for entry in holders):
        raise NoCapacityError(message)
    raise HostError(message)


def _holders(holders: Sequence[Entry]) -> str:
    if not holders:
        return "no machine holds any"
    return ", ".join(
        f"{entry.name} ({entry.owner}) holds {format_cpus(entry.placement.cpus)}"
        + (" and is about to end" if entry.draining else "")
        for entry in holders
    )


def _cores(count: int) -> str:
    return _count(count, "core")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
