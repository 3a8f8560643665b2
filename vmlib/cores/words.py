"""What a machine was given: the values that allocator, ledger, confinement and their users hand to one another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

# `node`: nobody else on this node runs there. `node (thread)`: the same beside a stranger on a split sibling set.
# `driver`: no other machine runs there, other tasks of the scheduler may. `shared`: no core of its own.
Level = Literal["node", "node (thread)", "driver", "shared"]

# Where its cores come from: `given` by the scheduler (cores = N), `tokens` of chv/core devices, the operator's
# `dedicated` cores, the `pool` that the scheduler shares out; "" for a machine without cores of its own.
Source = Literal["given", "tokens", "dedicated", "pool", ""]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where one machine runs."""

    level: Level = "shared"
    source: Source = ""
    vcpus: tuple[int, ...] = ()  # the CPU of each vCPU, by vCPU; () = they float
    cpus: tuple[int, ...] = ()  # every CPU that is its own, idle siblings and the emulator's included; ascending
    emulator: tuple[int, ...] = ()  # CPUs of its own for the VMM's other threads; () = housekeeping
    nodes: tuple[int, ...] = ()  # NUMA nodes of its cores, for its memory; () = any
    expose: bool = False  # two vCPUs on each core, one on each of its threads

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Placement":
        """Raises KeyError, TypeError or ValueError on what is no placement."""
        return cls(
            level=cast(Level, str(data["level"])),
            source=cast(Source, str(data["source"])),
            expose=bool(data.get("expose", False)),
            **{key: tuple(int(n) for n in data[key]) for key in ("vcpus", "cpus", "emulator", "nodes")},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One start of a machine in the ledger. One without cores of its own is there too: it has to be moved along."""

    id: str  # of this start of the machine
    name: str
    owner: str
    boot_id: str
    run_dir: str  # of this start
    placement: Placement
    level: Level = "shared"  # what it really has now; placement.level is what it was given
    draining: bool = False  # it is being stopped, or has ended: its cores come free
    repairs: int = 0  # drifts that were repaired
    renews: bool = False  # its VMM makes all threads anew at each reboot of the guest
    warned: str = ""  # what was last said of the partition it is in; "" = it is valid, or there is none
    yielded: str = ""  # why it no longer has the cores it had; "" = it has


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """Which CPUs each thread of one machine may run on. `cpus` holds all of the VMM's at any time."""

    cpus: frozenset[int]  # of the VMM's group
    vcpus: tuple[frozenset[int], ...]  # by vCPU
    emulator: frozenset[int]  # of every other thread of the VMM's
    keeper: frozenset[int]
    nodes: frozenset[int] = frozenset()  # memory; empty = any
    # The VMM pins threads of its own: to what is not in the group where they are born they cannot go.
    wide: bool = False
