"""This node as the driver knows it: the operator's config, what the host can do, and the machines on it."""

import asyncio
import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from driver import links
from driver._pb import base_pb2
from driver.config_network import MacvtapNetwork, UserNetwork
from driver.config_plugin import PluginConfig, decode_plugin_config
from driver.core_health import core_facts, core_findings
from driver.cores_file import publish
from driver.damage import damage
from driver.fingerprint import CoreFacts, NodeFacts
from driver.handle import Handle
from driver.network_health import NetworkFacts, network_facts, parents
from driver.offload import Offload
from driver.partitions import find as find_partitions
from driver.partitions import nomad_cpus, reserved_cpus, watch_paths
from vmlib import cgroup, credentials, process, version, vfio
from vmlib.cores.ledger import read_entries
from vmlib.cores.plan import Policy
from vmlib.cores.service import Cores, CoreSettings, Notice
from vmlib.cores.topology import Topology
from vmlib.disk import nfs_probe
from vmlib.errors import HostError, NoCapacityError
from vmlib.hypervisor.base import Hypervisor
from vmlib.hypervisor.select import HypervisorSettings, Offer, attach, choose, probe_offers
from vmlib.machine import Machines
from vmlib.net import guard
from vmlib.net.look import look
from vmlib.net.shim import Mine, Shim, ensure
from vmlib.paths import Layout
from vmlib.probe import find_program, user_router
from vmlib.process import Identity
from vmlib.record import MachineRecord
from vmlib.running import Machine
from vmlib.settings import HostSettings
from vmlib.spec import MachineSpec
from vmlib.sweep import Sweeper
from vmlib.vfio import Lack

log = logging.getLogger(__name__)

Owner = Literal["nomad", "dev", "run"]

_SWEEP_S = 20.0
_GONE_S = 60.0  # Nomad removes an alloc's directory and may still talk about the task


def owner_of_this_process() -> Owner:
    """Whose machines this plugin starts and sweeps: the embedded host says so in the environment."""
    owner = os.environ.get("CHV_OWNER", "nomad")
    if owner not in ("nomad", "dev", "run"):
        raise HostError(f"CHV_OWNER = {owner!r}: expected nomad, dev or run")
    return cast(Owner, owner)


def hypervisor_settings(config: PluginConfig) -> HypervisorSettings:
    return HypervisorSettings(
        hypervisor=config.hypervisor,
        ch_binary=config.ch_binary,
        ch_firmware=config.ch_firmware,
        qemu_binary=config.qemu_binary,
        accel=config.qemu_accel,
    )


def unprivileged_warning(config: PluginConfig) -> str:
    """What to say when no user was set up for the VMMs; empty when one was."""
    if config.vm_uids is not None or credentials.for_user(config.vm_user) is not None:
        return ""
    return f"machines run as uid {os.getuid()}: set vm_uids in the plugin block, or create the user {config.vm_user!r}"


def core_policy(
    config: PluginConfig, topology: Topology, *, usable: frozenset[int], withheld: frozenset[int]
) -> Policy:
    """What operator and agent decided; without an agent everything that is online is shared out."""
    cores = config.cores
    dedicated = withheld & topology.online if cores.dedicated_auto else cores.dedicated
    return Policy(
        usable=usable or None,
        dedicated=dedicated,
        dedicated_only=bool(dedicated),
        housekeeping=cores.housekeeping or frozenset(),
        smt=cores.smt,
        tokens=cores.tokens,
        partition=cores.partition,
    )


def shims(config: PluginConfig) -> tuple[Shim, ...]:
    """Where the operator wants the host to be among its guests."""
    return tuple(
        Shim(network=one.name, parent=one.parent, address=one.host_shim)
        for one in config.networks.values()
        if isinstance(one, MacvtapNetwork) and one.host_shim
    )


def _runs(record: MachineRecord) -> bool:
    return record.boot_id == process.boot_id() and process.alive(Identity(record.vmm_pid, record.vmm_start_time))


class Node:
    """Set up by SetConfig, probed in the background. Everything in here follows from config and host."""

    def __init__(self, offload: Offload) -> None:
        self.owner = owner_of_this_process()
        self.offload = offload
        self.config = decode_plugin_config(b"\x80")
        self.mhz = 0.0
        self.nomad = nomad_cpus(None)
        self._claim_lock = threading.Lock()
        self._claims: dict[str, MachineSpec] = {}  # what starts at this moment
        self._can_guard = False  # not found out yet, or not so
        self._offers: Offer | None = None
        self._probing = asyncio.Lock()
        self._sweeping: asyncio.Task[None] | None = None

    def configure(self, config: PluginConfig, nomad: base_pb2.NomadConfig | None = None) -> None:
        """Same verdict on every launch: nothing of the host is looked at here."""
        self.config = config
        self.nomad = nomad_cpus(nomad)
        self._offers = None

    @property
    def layout(self) -> Layout:
        return Layout(self.config.data_dir, self.config.run_dir)

    def handle(self, machine: Machine) -> Handle:
        return Handle(
            data_dir=str(machine.layout.data_dir), run_dir=str(machine.layout.run_dir), name=machine.record.name
        )

    # -- machines ------------------------------------------------------------------------------------------------

    def machines(self, layout: Layout | None = None) -> Machines:
        """The machines of our data directory, or of the one that an older handle names."""
        settings = HostSettings(
            layout=layout or self.layout,
            vm_uids=self.config.vm_uids,
            vm_user=self.config.vm_user,
            image_max_size_bytes=self.config.image_max_size_bytes,
            hooks=self.config.hooks,
            cores=self.core_settings(),
        )
        return Machines(settings, self._choose, attach)

    def start(self, spec: MachineSpec) -> Machine:
        """Start a machine, unless one that runs here has its place on a network. Called from threads."""
        machines = self.machines()
        if not links.shared(spec):
            return machines.start(spec)  # without a look at every other machine's record
        with self._claim_lock:
            running = [(record.name, record.nics) for record in machines.records() if record.nics and _runs(record)]
            starting = [(other.name, other.nics) for other in self._claims.values()]
            if why := links.taken(spec, [*running, *starting]):
                raise NoCapacityError(why)
            self._claims[spec.id] = spec
        try:
            return machines.start(spec)
        finally:
            with self._claim_lock:
                self._claims.pop(spec.id, None)

    @property
    def mhz_floor(self) -> int:
        """What Nomad counts for the slowest CPU of this node; 0 when nobody says."""
        return min(self.nomad.mhz.values(), default=int(self.mhz))

    @property
    def cores(self) -> Cores:
        return self.machines().cores

    def core_settings(self) -> CoreSettings:
        return CoreSettings(
            policy=self._policy,
            reserved=lambda: reserved_cpus(find_partitions()),
            rules=self.owner == "nomad",
        )

    def _policy(self, topology: Topology) -> Policy:
        return core_policy(self.config, topology, usable=self.nomad.usable, withheld=self.nomad.withheld)

    async def watched(self) -> list[Path]:
        """Files whose change may take a machine off its cores."""
        return await self.offload("cores", self._watched)

    def _watched(self) -> list[Path]:
        return [*watch_paths(find_partitions()), *cgroup.cpuset_files(cgroup.read_layout())]

    def _choose(self, spec: MachineSpec) -> tuple[Hypervisor, str]:
        """Called from the threads that start machines."""
        if self._offers is None:
            self._offers = probe_offers(hypervisor_settings(self.config))
        return choose(spec, self._offers)

    def note(self, notice: Notice) -> None:
        """Have the keeper of a machine tell it, for whoever serves that machine."""
        entry = next((one for one in read_entries(self.layout.ledger) if one.id == notice.machine_id), None)
        machine = None if entry is None else self.machines().find(entry.name)
        if machine is not None and machine.id == notice.machine_id:
            machine.note(notice.kind, notice.text)

    # -- facts ---------------------------------------------------------------------------------------------------

    def refusal(self) -> str:
        """Why nothing in our data directory is ours to touch, in a sentence; "" when all is well."""
        try:
            version.expect_ours(self.layout)
        except version.OtherVersionError as exc:
            return f"{exc}: {exc.hint}"
        except OSError as exc:
            return f"{self.layout.version} cannot be read ({(exc.strerror or str(exc)).lower()})"
        return ""

    def quick_facts(self) -> NodeFacts:
        """What can be said without starting a program."""
        if refusal := self.refusal():
            return NodeFacts(problems=(refusal,))
        programs = {"cloud-hypervisor": self.config.ch_binary, "qemu": self.config.qemu_binary}
        allowed = {name: one for name, one in programs.items() if self.config.hypervisor in (name, "auto")}
        missing = allowed and all(find_program(one) is None for one in allowed.values())
        return NodeFacts(
            networks=tuple(
                network_facts((n for n in self.config.networks.values() if n.mode == "user"), {}, router=user_router())
            ),
            problems=tuple(f"{name}: {one} is not installed" for name, one in allowed.items()) if missing else (),
        )

    async def facts(self) -> NodeFacts:
        """Everything, by real probes. Safe to call again: what did not change is not probed again."""
        if refusal := await self.offload("probe", self.refusal):
            return NodeFacts(problems=(refusal,))
        async with self._probing:
            self._offers = await self.offload("probe", probe_offers, hypervisor_settings(self.config))
            # Asks the user database, which may be a directory server that does not answer.
            warning = await self.offload("probe", unprivileged_warning, self.config)
            cores, core_words = await self.offload("cores", self._core_facts)
            exports = self.config.nfs
            networks = await self.offload("probe", self._networks)
            silence = await self.offload("probe", nfs_probe.silence, exports.values())
            devices = await self.offload("probe", lambda: {one: vfio.look(one) for one in self.config.vfio_allow})
            guest_words = await self.offload("probe", lambda: [*self.keep_shims(), *self._guard_words()])
            damaged = await self.offload("probe", lambda: [f"{one.found}: {one.cure}" for one in damage(self.layout)])
        offers = self._offers
        usable = offers.usable
        nfs_words = [f"nfs {name}: {exports[name].server}: {why}" for name, why in silence.items() if why]
        device_words = [f"vfio {name}: {one.found}" for name, one in devices.items() if isinstance(one, Lack)]
        return NodeFacts(
            hypervisors=tuple(dict.fromkeys(hypervisor.name for hypervisor in usable)),
            cloud_hypervisor_version=next((h.version for h in usable if h.name == "cloud-hypervisor"), ""),
            qemu_version=next((h.version for h in usable if h.name == "qemu"), ""),
            accel=usable[0].accel if usable else "",
            networks=networks,
            nfs=tuple((name, "ro" if one.read_only else "rw") for name, one in exports.items() if not silence[name]),
            problems=() if usable else tuple(offers.reasons),
            vfio=tuple(address for address, one in devices.items() if not isinstance(one, Lack)),
            warnings=(*((warning,) if warning else ()), *core_words, *nfs_words, *guest_words, *device_words, *damaged),
            cores=cores,
        )

    def _core_facts(self) -> tuple[CoreFacts, tuple[str, ...]]:
        """Looks at the cores, and tells the device plugin and the command line what they need of it."""
        try:
            return self._look_at_cores()
        except (OSError, ValueError, HostError) as exc:  # the node has more to say than that
            log.warning("cores cannot be looked at: %s", exc)
            return CoreFacts(), (f"cores: {exc}",)

    def _look_at_cores(self) -> tuple[CoreFacts, tuple[str, ...]]:
        machines = self.machines()
        host, entries = machines.cores.host(), read_entries(self.layout.ledger)
        if self.owner == "nomad" or not self.layout.cores.exists():
            publish(self.layout.cores, host, mhz=self.nomad.mhz)
        state = machines.cores.partition()
        groups = cgroup.read_layout()
        findings = core_findings(
            self.config.cores,
            host.topology,
            usable=self.nomad.usable,
            withheld=self.nomad.withheld,
            reserved=host.reserved,
            mhz=self.nomad.mhz,
            cgroups=groups.kind,
            partition=state,
        )
        return core_facts(host, entries, mhz_floor=self.mhz_floor), tuple(map(str, findings))

    def _networks(self) -> tuple[NetworkFacts, ...]:
        """Looks at the host's interfaces."""
        networks = self.config.networks.values()
        try:
            return tuple(network_facts(networks, look(parents(networks)), router=user_router()))
        except OSError as exc:  # the node has more to say than that
            log.warning("networks cannot be looked at: %s", exc)
            return tuple(
                replace(one, lack=f"interfaces cannot be looked at ({exc})") if one.parent else one
                for one in network_facts(networks, {}, router=user_router())
            )

    def _guard_words(self) -> list[str]:
        """Of networks whose guests cannot be kept from speaking for others. A kernel that can is not asked again."""
        guarded = [
            name for name, one in self.config.networks.items() if not isinstance(one, UserNetwork) and one.filter
        ]
        if not guarded or self._can_guard:
            return []
        lack = guard.lack()
        self._can_guard = not lack
        return [f"network {name}: filter = true: {lack}: {guard.CURE}" for name in guarded] if lack else []

    async def repair_cores(self) -> list[Notice]:
        """The look at all machines' cores."""
        return await self.offload("cores", lambda: [] if self.refusal() else self.cores.reconcile())

    def keep_shims(self, *, wanted: bool = True) -> list[str]:
        """Make the host's own places on its networks, and take away what is ours and not `wanted`, or not any more."""
        mine = Mine(owner=self.owner, run_dir=self.layout.run_dir)
        return ensure(shims(self.config) if wanted else (), mine, dry_run=self.config.gc_dry_run)

    # -- sweep ---------------------------------------------------------------------------------------------------

    def start_sweeping(self) -> None:
        """Begin to look after what nobody wants any more; called once this process is the one that serves tasks."""
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep_for_ever(), name="sweep")

    def _sweeper(self, *, gone_s: float) -> Sweeper:
        return Sweeper(
            machines=self.machines(),
            owner=self.owner,
            gone_s=gone_s,
            orphan_grace_s=self.config.orphan_grace_s,
            dry_run=self.config.gc_dry_run,
        )

    async def _sweep_for_ever(self) -> None:
        # The embedded host removes an alloc's directory once all is over; nobody speaks of the task after that.
        sweeper = self._sweeper(gone_s=0.0 if self.owner == "dev" else _GONE_S)
        while True:
            try:
                if not await self.offload("probe", self.refusal):
                    await self.offload("probe", sweeper.sweep, time.monotonic())
                    if self.owner == "nomad":
                        await self.offload("probe", self._collect_images)
            except Exception:  # the top of a background task: a bad entry must not end the sweep
                log.exception("sweep failed")
            await asyncio.sleep(_SWEEP_S)

    def _collect_images(self) -> None:
        self.machines().images.collect(
            max_bytes=self.config.image_cache_max_bytes,
            max_age_s=self.config.image_cache_max_age_s,
            dry_run=self.config.gc_dry_run,
        )

    async def last_sweep(self) -> None:
        """What the embedded host's plugin does before it ends, so that nothing is left of a job."""
        if self.owner == "dev" and self._sweeping is not None and not self.refusal():
            await self.offload("stop", self._sweeper(gone_s=0.0).sweep, time.monotonic())
            await self.offload("stop", self.keep_shims, wanted=False)
