"""The Cloud Hypervisor backend: a launch plan of a bare VMM and the calls that make the machine in it, and its API."""

import contextlib
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmlib import process, vcpu_threads
from vmlib.errors import HostError, HypervisorError
from vmlib.hypervisor.base import Accel, Capabilities, Counters, LaunchPlan, Usage, VcpuThread, Vmm
from vmlib.hypervisor.ch_api import CALL_TIMEOUT_S, ApiClosedError, ApiError, ChApi
from vmlib.hypervisor.ch_config import MAX_DEVICES, MAX_VCPUS, inherited_files, requests
from vmlib.hypervisor.options import inherited
from vmlib.hypervisor.overhead import ch_overhead_mib
from vmlib.hypervisor.qemu import device_nodes, fixed_environment
from vmlib.paths import RunPaths
from vmlib.process import Identity
from vmlib.resources import Firmware, Resources
from vmlib.spec import MachineSpec

NAME = "cloud-hypervisor"
API = "api"  # the listener of its requests
EVENTS = "events"  # the FIFO of its event monitor

_START_TIMEOUT_S = 30.0  # until the first answer: the host may be busy
_ADD_TIMEOUT_S = 15.0
# A boot takes a fraction of a second. One that is given CPUs outside its cpuset hangs for good.
_BOOT_TIMEOUT_S = 60.0
_PREFAULT_MIB_A_SECOND = 512  # of huge pages, which are zeroed one by one while it boots
_NO_MACHINE = "not created"

_DISK_WORDS = ("read_bytes", "write_bytes", "read_ops", "write_ops")
_NIC_WORDS = {
    "read_bytes": "rx_bytes",
    "write_bytes": "tx_bytes",
    "read_ops": "rx_frames",
    "write_ops": "tx_frames",
}
_STATES = {"Created": "created", "Running": "running", "Paused": "paused", "Shutdown": "shutdown"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudHypervisor:
    """Cloud Hypervisor on x86-64, which needs KVM. `firmware` is the operator's; None: there is none."""

    binary: str = NAME
    version: str = ""
    firmware: Path | None = None
    name: str = NAME
    accel: Accel = "kvm"

    @property
    def capabilities(self) -> Capabilities:
        has_firmware = self.firmware is not None
        return Capabilities(
            user_nic=False,
            firmware_boot=has_firmware,
            uefi=has_firmware,
            shares=True,
            tpm=True,
            bios=False,
            flash=False,
            remote_disks=False,
            nic_rate=True,
            vfio=True,
            opens_files=True,
            threads_before_boot=False,
            max_vcpus=MAX_VCPUS,
            max_devices=MAX_DEVICES,
        )

    def plan(self, spec: MachineSpec, res: Resources, *, reason: str) -> LaunchPlan:
        return LaunchPlan(
            hypervisor=self.name,
            reason=reason,
            argv=(
                self.binary,
                "--api-socket",
                inherited(API, "fd="),
                "--event-monitor",
                inherited(EVENTS, "fd="),
                "-v",  # else it does not say why a guest ended
                "--seccomp",
                "true",
            ),
            files=inherited_files(res),
            listeners={API: API},
            own_network=not res.nics,  # by a link's name it asks how large its frames may be
            shows=("/sys",) if res.vfio or res.nics else (),
            nodes=device_nodes(res),
            terminals=True,
            environment=fixed_environment(res.run_dir),
            credentials=res.credentials,
            dialect="cloud-hypervisor",
            requests=requests(spec, res),
            boot_timeout_s=_BOOT_TIMEOUT_S + (spec.memory_mib / _PREFAULT_MIB_A_SECOND if spec.hugepages else 0),
            monitor=EVENTS,
            on_reboot=spec.on_reboot,
            on_panic=spec.on_panic,
        )

    def overhead_mib(self, spec: MachineSpec) -> int:
        return ch_overhead_mib(spec)

    def uefi_firmware(self) -> Firmware:
        if self.firmware is None:
            raise HostError(
                "cloud-hypervisor boots a disk by a firmware file, and none is configured",
                hint="name a CLOUDHV.fd in cloud_hypervisor.firmware; docs/cloud-hypervisor.md says where to get one",
            )
        return Firmware(code=self.firmware, variables=None)

    def prepare(self, plan: LaunchPlan, run_dir: Path, *, console: Callable[[str], None]) -> Vmm:
        vmm = ChVmm(run_dir, boot_timeout_s=plan.boot_timeout_s, given=frozenset(map(_which, plan.files.values())))
        vmm.api.get("vmm.ping", timeout_s=_START_TIMEOUT_S)
        for request in plan.requests:
            vmm.api.put(request.call, request.body, fds=request.fds, timeout_s=_ADD_TIMEOUT_S)
            if request.call == "vm.create":
                console(vmm.console())
        return vmm


class ChVmm:
    """`Vmm` over the API. There is a connection only while a call lasts."""

    def __init__(
        self,
        run_dir: Path,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        boot_timeout_s: float = _BOOT_TIMEOUT_S,
        given: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        self.api = ChApi(run_dir / API, timeout_s=timeout_s)
        self._run = RunPaths(run_dir)
        self._timeout_s = timeout_s
        self._boot_timeout_s = boot_timeout_s
        self._given = given

    def boot(self) -> None:
        self.api.put("vm.boot", timeout_s=self._boot_timeout_s)

    def status(self) -> str:
        try:
            state = self.api.get("vm.info").get("state")
        except ApiError as exc:
            if exc.status and any(_NO_MACHINE in line for line in exc.chain):
                return "shutdown"
            raise
        if not isinstance(state, str) or state not in _STATES:
            raise HypervisorError(f"vm.info: state {str(state)[:64]!r}, expected one of {', '.join(_STATES)}")
        return _STATES[state]

    def console(self) -> str:
        """The pty that is the guest's serial port."""
        match self.api.get("vm.info"):
            case {"config": {"serial": {"file": str(path)}}} if path.startswith("/dev/pts/"):
                return path
        raise HypervisorError("vm.info: no pty of the serial port, expected one")

    def vcpus(self) -> tuple[VcpuThread, ...]:
        tids = vcpu_threads.by_name(self._identity().pid)
        return tuple(VcpuThread(index=index, thread_id=tid) for index, tid in enumerate(tids))

    def foreign_files(self) -> tuple[str, ...]:
        return tuple(sorted(_opened(self._identity().pid, self._given)))

    def usage(self) -> Usage:
        found = self.api.get("vm.counters")
        try:
            disks = tuple(Counters(**{name: int(one[name]) for name in _DISK_WORDS}) for one in _of(found, "disk"))
            nics = tuple(
                Counters(**{ours: int(one[word]) for ours, word in _NIC_WORDS.items()}) for one in _of(found, "net")
            )
            memory = int(self.api.get("vm.info")["memory_actual_size"])
        except (KeyError, TypeError, ValueError) as exc:
            raise HypervisorError(f"vm.counters: {str(found)[:200]}, expected numbers of each device") from exc
        return Usage(disks=disks, nics=nics, memory_bytes=memory)

    def power_button(self) -> None:
        self.api.put("vm.power-button")

    def pause(self) -> None:
        if self.status() != "paused":  # a second time it refuses
            self.api.put("vm.pause")

    def resume(self) -> None:
        if self.status() != "running":
            self.api.put("vm.resume")

    def reboot(self) -> None:
        self.api.put("vm.reboot", timeout_s=self._boot_timeout_s)

    def nmi(self) -> None:
        self.api.put("vm.nmi")

    def quit(self) -> None:
        who = self._identity()
        deadline = time.monotonic() + self._timeout_s
        with contextlib.suppress(ApiClosedError):  # it may be gone before its answer is here
            self.api.put("vmm.shutdown")
        if not process.wait_gone(who, max(0.1, deadline - time.monotonic())):
            raise HypervisorError(f"vmm.shutdown: the VMM still runs after {self._timeout_s:g} s")

    def close(self) -> None:
        """There is nothing to let go of."""

    def _identity(self) -> Identity:
        who = process.load_identity(self._run.vmm)
        if who is None or not process.alive(who):
            raise HypervisorError("the VMM is gone")
        return who


def attach_ch(run_dir: Path) -> ChVmm:
    """Talk to a VMM that may have been started by somebody else. What is wrong with it, the first call tells."""
    return ChVmm(run_dir)


def _of(found: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The devices that we have named so, in order."""
    names = [name for name in found if name.startswith(kind) and name.removeprefix(kind).isdecimal()]
    return [found[name] for name in sorted(names, key=lambda name: int(name.removeprefix(kind)))]


def _which(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _opened(pid: int, given: frozenset[tuple[int, int]]) -> set[str]:
    """Files and block devices that a process has open and was not given."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        link = Path(f"/proc/{pid}/fd/{name}")
        try:
            status, target = os.stat(link), os.readlink(link)
        except OSError:
            continue  # closed meanwhile
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            continue
        if (status.st_dev, status.st_ino) not in given and not target.startswith("/memfd:"):  # the guest's RAM
            found.add(target)
    return found
