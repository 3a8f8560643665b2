"""Where everything of a machine lies: one object that owns all names, so that no other module joins paths."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class MachinePaths:
    """What outlives a start of the machine: `data_dir/machines/<name>`, kept over restarts and host reboots."""

    root: Path

    @property
    def mark(self) -> Path:
        """Whose machine it is; there before anything else."""
        return self.root / "mark.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def record(self) -> Path:
        return self.root / "machine.json"

    @property
    def journal(self) -> Path:
        return self.root / "journal"

    @property
    def exit_record(self) -> Path:
        return self.root / "exit.json"

    @property
    def uid(self) -> Path:
        """The uid that its VMM has of the operator's range, from before its start until it is taken back."""
        return self.root / "uid"

    @property
    def vfio(self) -> Path:
        """The IOMMU groups of the devices that its guest has, as long as it has them."""
        return self.root / "vfio"

    @property
    def boot_dir(self) -> Path:
        return self.root / "boot"

    @property
    def disk_dir(self) -> Path:
        return self.root / "disk"

    @property
    def firmware_vars(self) -> Path:
        """The variable store of its UEFI firmware."""
        return self.root / "firmware-vars.fd"

    @property
    def seed(self) -> Path:
        return self.root / "seed.iso"

    @property
    def tpm_dir(self) -> Path:
        """What its TPM remembers."""
        return self.root / "tpm"


@dataclass(frozen=True, slots=True)
class RunPaths:
    """What belongs to one start of the machine: sockets and FIFOs, gone after it and after a host reboot."""

    root: Path

    @property
    def mark(self) -> Path:
        """Whose it is, should journal and record of its machine be lost."""
        return self.root / "mark.json"

    @property
    def console_in(self) -> Path:
        return self.root / "console.in"

    @property
    def console_out(self) -> Path:
        return self.root / "console.out"

    @property
    def stderr(self) -> Path:
        return self.root / "stderr"

    @property
    def control(self) -> Path:
        return self.root / "keeper.sock"

    @property
    def keeper(self) -> Path:
        """Identity of the keeper."""
        return self.root / "keeper"

    @property
    def keeper_lock(self) -> Path:
        """Held from just before a keeper is started until it has ended."""
        return self.root / "keeper.lock"

    @property
    def keeper_log(self) -> Path:
        return self.root / "keeper.log"

    @property
    def vmm(self) -> Path:
        """Identity of the VMM."""
        return self.root / "vmm"

    def helper(self, name: str) -> Path:
        """Identity of the helper of that name."""
        return self.root / f"helper.{name}"

    def helper_socket(self, name: str) -> Path:
        return self.root / f"{name}.sock"

    def helper_mount(self, name: str) -> Path:
        """Empty for all but the helper."""
        return self.root / f"{name}.d"

    def helpers(self) -> list[Path]:
        """Identities of all helpers that were started."""
        return sorted(self.root.glob("helper.*"))

    @property
    def events(self) -> Path:
        """FIFO into which Cloud Hypervisor writes its events."""
        return self.root / "events"

    @property
    def vmm_dir(self) -> Path:
        """Owned by the VMM's user: sockets that it makes, and those that it connects to. Only for Cloud Hypervisor."""
        return self.root / "v"

    @property
    def vsock(self) -> Path:
        """Where Cloud Hypervisor listens for whoever calls its guest."""
        return self.vmm_dir / "vsock"

    @property
    def guest_channel(self) -> Path:
        """Where Cloud Hypervisor connects to for a guest that calls port 5000 of its host: the keeper listens."""
        return self.vmm_dir / "vsock_5000"

    def vmm_helper_socket(self, name: str) -> Path:
        """Where the helper of that name listens, if its VMM connects by itself."""
        return self.vmm_dir / f"{name}.sock"

    @property
    def helper_words(self) -> Path:
        """FIFO of what the helpers say."""
        return self.root / "helpers"

    @property
    def plan(self) -> Path:
        """What another keeper needs to adopt the VMM."""
        return self.root / "plan.json"

    @property
    def state(self) -> Path:
        """What the keeper has learned that a later keeper must know."""
        return self.root / "state.json"

    @property
    def threads(self) -> Path:
        """Ids of the threads that run the vCPUs."""
        return self.root / "threads"

    @property
    def confinement(self) -> Path:
        """Where its threads were last put, on purpose."""
        return self.root / "confinement"

    @property
    def links(self) -> Path:
        """What was learned about its links since."""
        return self.root / "links.json"

    @property
    def guest(self) -> Path:
        """What its guest said of itself, by the guest agent."""
        return self.root / "guest.json"

    @property
    def exit_record(self) -> Path:
        """The end of this start, when its disk had no room for it."""
        return self.root / "exit.json"

    @property
    def committed(self) -> Path:
        """Exists once the machine no longer depends on the process that started it."""
        return self.root / "committed"


@dataclass(frozen=True, slots=True)
class Layout:
    """The two directories of the operator's."""

    data_dir: Path
    run_dir: Path

    @property
    def version(self) -> Path:
        return self.data_dir / "version"

    @property
    def version_lock(self) -> Path:
        return self.data_dir / "version.lock"

    @property
    def machines(self) -> Path:
        return self.data_dir / "machines"

    @property
    def ledger(self) -> Path:
        """Who has which cores."""
        return self.data_dir / "ledger.json"

    @property
    def ledger_lock(self) -> Path:
        return self.data_dir / "ledger.lock"

    @property
    def disks(self) -> Path:
        """Persistent disks, which outlive their machines."""
        return self.data_dir / "disks"

    @property
    def cache(self) -> Path:
        """Images that jobs brought along."""
        return self.data_dir / "cache"

    @property
    def nfs(self) -> Path:
        """What machines have mounted, apart from all that is ever removed as a tree: these are other people's files."""
        return self.data_dir / "nfs"

    def mounts(self, run_dir: Path) -> Path:
        """Where one start of a machine has its mounts, by the name of its run directory."""
        return self.nfs / run_dir.name

    @property
    def cores(self) -> Path:
        """What the driver tells the device plugin and the command line about this host's cores."""
        return self.data_dir / "cores.json"

    @property
    def runs(self) -> Path:
        return self.run_dir / "m"

    @property
    def uids_lock(self) -> Path:
        """Held while a uid is picked, so that two machines that start at once get two."""
        return self.data_dir / "uids.lock"

    @property
    def vfio_lock(self) -> Path:
        """Held while devices are taken, so that two machines that start at once do not get the same."""
        return self.data_dir / "vfio.lock"

    def machine(self, name: str) -> MachinePaths:
        return MachinePaths(self.machines / name)

    def run(self, machine_id: str) -> RunPaths:
        """Short on purpose: a socket's path may have 107 bytes."""
        return RunPaths(self.runs / run_key(machine_id))


def run_key(machine_id: str) -> str:
    """The name of one start of a machine where names must be short: run directory, cgroup, guest name."""
    import hashlib  # here: it would cost each keeper, which makes no names, several MB

    return hashlib.sha256(machine_id.encode()).hexdigest()[:12]
