"""The QEMU backend: a launch plan from the pure command line, and QMP to talk to what runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vmlib.hypervisor.base import Accel, Capabilities, LaunchPlan, Vmm
from vmlib.hypervisor.firmware import find_firmware
from vmlib.hypervisor.overhead import qemu_overhead_mib
from vmlib.hypervisor.qemu_argv import LISTENERS, command_line
from vmlib.hypervisor.qemu_nics import frame_listeners, router_namespace
from vmlib.hypervisor.qmp import CALL_TIMEOUT_S, QmpVmm
from vmlib.probe import QEMU_MIN_VERSION
from vmlib.process import TOOL_ENVIRONMENT
from vmlib.resources import Firmware, Resources, TapNic, UserNic
from vmlib.spec import MachineSpec
from vmlib.vfio import node

# QEMU answers once it has made the whole machine: huge pages are zeroed one by one, and the host may be busy.
# One that ends meanwhile is noticed at once.
START_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Qemu:
    """QEMU on x86-64. `binary` is best an absolute path: it is looked up on the VMM's own short PATH otherwise."""

    binary: str = "qemu-system-x86_64"
    accel: Accel = "tcg"
    version: str = ""
    name: str = "qemu"
    io_uring: bool = False  # it can do the I/O of disks with that, and the kernel lets it
    root: Path = Path("/")  # of the host's filesystem
    capabilities: Capabilities = field(
        default=Capabilities(
            user_nic=True, firmware_boot=True, uefi=True, shares=True, tpm=True, vhost_net=True, vfio=True
        )
    )

    def plan(self, spec: MachineSpec, res: Resources, *, reason: str) -> LaunchPlan:
        command = command_line(spec, res, binary=self.binary, accel=self.accel, io_uring=self.io_uring)
        return LaunchPlan(
            hypervisor=self.name,
            reason=reason,
            argv=command.argv,
            files=command.files,
            listeners={name: name for name in (*LISTENERS, *frame_listeners(res.nics))},
            netns=router_namespace(res.nics),
            own_network=not (routes := any(isinstance(nic, UserNic) for nic in res.nics)),
            routes=routes,
            shows=(*(("/sys",) if _reads_sysfs(res) else ()), *(("/etc/resolv.conf",) if routes else ())),
            nodes=device_nodes(res),
            environment=fixed_environment(res.run_dir),
            credentials=res.credentials,
            on_reboot=spec.on_reboot,
            on_panic=spec.on_panic,
        )

    def overhead_mib(self, spec: MachineSpec) -> int:
        return qemu_overhead_mib(spec, self.accel)

    def uefi_firmware(self) -> Firmware:
        version = self.version or ".".join(map(str, QEMU_MIN_VERSION))
        return find_firmware(f"pc-q35-{version.rpartition('.')[0]}", root=self.root)

    def prepare(self, plan: LaunchPlan, run_dir: Path, *, console: Callable[[str], None]) -> Vmm:  # noqa: ARG002
        return attach_qmp(run_dir, timeout_s=START_TIMEOUT_S)


def _reads_sysfs(res: Resources) -> bool:
    """What a device can do: one of the host's, the host's own disk, or vhost."""
    return bool(
        res.vfio
        or any(disk.block_device for disk in res.disks)
        or any(isinstance(nic, TapNic) and nic.vhost for nic in res.nics)
    )


def device_nodes(res: Resources) -> tuple[str, ...]:
    """Devices that a VMM opens by name."""
    if not res.vfio:
        return ("/dev/kvm",)
    groups = sorted({device.group for device in res.vfio})
    return ("/dev/kvm", *(str(node(name)) for name in ("vfio", *groups)))


def fixed_environment(run_dir: Path) -> dict[str, str]:
    """All that a VMM sees of an environment: nothing of the agent's."""
    return {"PATH": TOOL_ENVIRONMENT["PATH"], "HOME": str(run_dir), "TMPDIR": str(run_dir), "LC_ALL": "C"}


def attach_qmp(run_dir: Path, *, timeout_s: float = CALL_TIMEOUT_S) -> QmpVmm:
    """Talk to a VMM whose request socket lies in `run_dir`. Raises HypervisorError when it does not answer."""
    vmm = QmpVmm(run_dir / "qmp", connect_timeout_s=timeout_s)
    vmm.connect()
    return vmm
