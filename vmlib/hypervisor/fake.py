"""The fake backend: a third, honest implementation of the door. Its VMM is `fake_vmm.py`, a real process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vmlib.errors import HostError, SpecError
from vmlib.hypervisor import fake_vmm
from vmlib.hypervisor.base import Accel, Capabilities, LaunchPlan, Vmm
from vmlib.hypervisor.options import inherited, plain
from vmlib.hypervisor.overhead import fake_overhead_mib
from vmlib.hypervisor.qemu import attach_qmp, fixed_environment
from vmlib.hypervisor.qemu_argv import LISTENERS
from vmlib.resources import Firmware, Resources, TapNic
from vmlib.spec import MachineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Fake:
    """Plays the test guest and obeys its words on the kernel command line. Holds its links and disks, and uses none."""

    python: str = sys.executable
    name: str = "fake"
    accel: Accel = "none"
    version: str = "1"
    capabilities: Capabilities = field(
        default=Capabilities(user_nic=False, firmware_boot=True, uefi=False, shares=False, tpm=False, vfio=True)
    )

    def plan(self, spec: MachineSpec, res: Resources, *, reason: str) -> LaunchPlan:
        files: dict[str, int] = {}
        for nic in res.nics:
            if not isinstance(nic, TapNic):
                raise SpecError("network_interface: the fake hypervisor has no user-mode network")
            files |= {f"{nic.name}.{index}": file.fd for index, file in enumerate(nic.queues)}
        if res.boot is not None:
            files["kernel"] = res.boot.kernel.fd
            if res.boot.initrd is not None:
                files["initrd"] = res.boot.initrd.fd
        for disk in res.disks:
            files[f"disk.{disk.name}"] = disk.file.fd
            if disk.backing is not None:
                files[f"disk.{disk.name}.backing"] = disk.backing.fd
        cmdline = "" if res.boot is None else plain(res.boot.cmdline, key="cmdline", max_bytes=2047)
        argv = [
            self.python, "-I", "-S", fake_vmm.__file__,
            f"--vcpus={spec.vcpus}",
            f"--memory-mib={spec.memory_mib}",
            f"--reboot={'shutdown' if spec.on_reboot == 'exit' else 'reset'}",
            f"--panic={'exit-failure' if spec.on_panic == 'exit' else 'none'}",
            *(inherited(name, f"--listener={name}:") for name in LISTENERS),
            *(inherited(name, "--file=") for name in files),
            f"--append={cmdline}",
        ]  # fmt: skip
        return LaunchPlan(
            hypervisor=self.name,
            reason=reason,
            argv=tuple(argv),
            files=files,
            listeners={name: name for name in LISTENERS},
            shows=(str(Path(fake_vmm.__file__).resolve().parent.parent), sys.base_prefix),
            environment=fixed_environment(res.run_dir),
            credentials=res.credentials,
            on_reboot=spec.on_reboot,
            on_panic=spec.on_panic,
        )

    def overhead_mib(self, spec: MachineSpec) -> int:
        return fake_overhead_mib(spec)

    def uefi_firmware(self) -> Firmware:
        raise HostError("firmware = 'uefi': the fake hypervisor has none")

    def prepare(self, plan: LaunchPlan, run_dir: Path, *, console: Callable[[str], None]) -> Vmm:  # noqa: ARG002
        return attach_qmp(run_dir)
