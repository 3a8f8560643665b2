"""Starts a host from states that a power loss may leave: everything runs, and no core and no disk goes to two.

Run in a mount namespace with another boot id, as `python -m tests.integration.power_check DIRECTORY GUEST STATES FULL`:
STATES is a pickled list of trees with their names, of which every FULLth is started up to a running guest, the others
up to the VMM. Says what is wrong in a line each.
"""

import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.integration.machines import DATA, Host
from tests.integration.power import write_tree
from tests.integration.power_run import spec_of
from vmlib import aside, process
from vmlib.cores.ledger import read_entries
from vmlib.errors import HostError, LaunchError, NoCapacityError
from vmlib.hypervisor.base import Hypervisor, LaunchPlan
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.select import attach
from vmlib.keeper.client import reap
from vmlib.machine import Machines
from vmlib.resources import Resources
from vmlib.settings import HostSettings
from vmlib.spec import CoresSpec, MachineSpec

_STOPPED = "stopped by the test"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpToTheVmm(Fake):
    """Has everything that a VMM would get, and then looks instead of running one."""

    look: Callable[[], None] = lambda: None

    def plan(self, spec: MachineSpec, res: Resources, *, reason: str) -> LaunchPlan:  # noqa: ARG002  as every hypervisor has it
        self.look()
        raise LaunchError(_STOPPED)


class Check:
    """One state."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.wrong: list[str] = []

    def start_all(self, *, full: bool) -> list[str]:
        spec = spec_of(self.host, start=9)
        if full:
            machine = self.machines(Fake()).start(replace(spec, stdout=Path("/dev/null")))
            self.others_get_nothing_of(spec)
            machine.kill()
            machine.wait(10.0)
            machine.destroy()
        else:
            self.expect_stopped(UpToTheVmm(look=lambda: self.others_get_nothing_of(spec)), spec)
        if damaged := [path.name for path in aside.found(self.host.layout)]:
            self.wrong.append(f"damaged: {damaged}")
        if left := [path.name for path in self.host.layout.runs.iterdir()]:
            self.wrong.append(f"run directories left: {left}")
        self.expect_free()
        return self.wrong

    def machines(self, hypervisor: Hypervisor) -> Machines:
        return Machines(HostSettings(layout=self.host.layout), lambda _: (hypervisor, "by the test"), attach)

    def expect_stopped(self, hypervisor: Hypervisor, spec: MachineSpec) -> None:
        try:
            self.machines(hypervisor).start(spec)
        except LaunchError as exc:
            if str(exc) != _STOPPED:
                raise
        else:
            self.wrong.append(f"{spec.name} was not stopped")

    def others_get_nothing_of(self, spec: MachineSpec) -> None:
        cpus = self.cpus(spec.id)
        if not cpus:
            self.wrong.append("it has no core")
        disk = self.host.spec(task="disk", disks=(DATA,))
        try:
            self.expect_stopped(UpToTheVmm(), disk)
            self.wrong.append("its disk goes to another one")
        except NoCapacityError as exc:
            if spec.name not in str(exc):
                self.wrong.append(str(exc))
        core = self.host.spec(task="core", cores=CoresSpec(exclusive=True))

        def look() -> None:
            if cpus & self.cpus(core.id):
                self.wrong.append("its core goes to another one")

        try:
            self.expect_stopped(UpToTheVmm(look=look), core)
        except (HostError, NoCapacityError) as exc:  # by whether the host is large enough for both
            if spec.name not in str(exc):
                self.wrong.append(str(exc))

    def expect_free(self) -> None:
        """A host on which nothing runs has all its cores and disks for the next one."""
        now = process.boot_id()
        self.machines(Fake()).cores.reconcile()
        if held := [entry.id for entry in read_entries(self.host.layout.ledger) if entry.boot_id == now]:
            self.wrong.append(f"cores still held by {held}")

    def cpus(self, machine_id: str) -> set[int]:
        found = [entry for entry in read_entries(self.host.layout.ledger) if entry.id == machine_id]
        return {cpu for entry in found for cpu in entry.placement.cpus}


def main() -> int:
    directory, guest, states, every = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    host = Host(directory, guest, "fake")
    wrong = 0
    for number, (name, tree) in enumerate(pickle.loads(states.read_bytes())):  # noqa: S301  the test's own
        for top in (host.layout.data_dir, host.layout.run_dir):
            shutil.rmtree(top)
            top.mkdir()
        write_tree(tree, host.layout.data_dir)
        try:
            found = Check(host).start_all(full=number % every == 0)
        except Exception as exc:  # noqa: BLE001  one state must not hide the others
            found = [f"{type(exc).__name__}: {exc}"]
        for words in found:
            print(f"{name}: {words}", flush=True)
        wrong += bool(found)
    reap()
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
