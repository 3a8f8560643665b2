"""What a machine's processes are and may do, read off the live ones, and what one that turned against us can reach."""

import os
import pwd
import re
import socket
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.intruder import attempts
from tests.integration.machines import DATA, READY, Host, Running, host_for
from vmlib import cgroup
from vmlib.paths import run_key
from vmlib.spec import MountSpec, NicSpec, UserLink

CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
SYSTEM = {"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "nix", "gnu", "etc", "dev", "proc"}
NODES = {"null", "zero", "full", "random", "urandom"}
SHUT_IN = {"mnt", "net", "ipc", "uts"}


@dataclass(frozen=True)
class Audit:
    """One living process, by what the kernel says of it."""

    pid: int

    @property
    def status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    @property
    def who(self) -> tuple[set[str], set[str], list[str]]:
        status = self.status
        return set(status["Uid"].split()), set(status["Gid"].split()), status["Groups"].split()

    @property
    def capabilities(self) -> set[int]:
        """Of all five sets together."""
        return {int(self.status[kind], 16) for kind in CAPABILITIES}

    @property
    def filters(self) -> int:
        status = self.status
        assert status["Seccomp"] == "2"
        return int(status["Seccomp_filters"])

    @property
    def own_namespaces(self) -> set[str]:
        return {
            name
            for name in os.listdir("/proc/self/ns")
            if not name.endswith("_for_children")
            and os.readlink(f"/proc/{self.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
        }

    def sees(self, directory: str = "") -> set[str]:
        return set(os.listdir(f"/proc/{self.pid}/root/{directory}"))

    def limit(self, name: str) -> str:
        found = re.search(rf"^Max {name} +(\S+) +(\S+)", Path(f"/proc/{self.pid}/limits").read_text(), re.MULTILINE)
        assert found is not None
        assert found[1] == found[2]
        return found[1]

    @property
    def groups(self) -> dict[str, str]:
        """By controller, "" for v2."""
        lines = Path(f"/proc/{self.pid}/cgroup").read_text().splitlines()
        return {name: line.rpartition(":")[2] for line in lines for name in line.split(":")[1].split(",")}

    @property
    def score(self) -> str:
        return Path(f"/proc/{self.pid}/oom_score_adj").read_text().strip()

    @property
    def environment(self) -> set[str]:
        words = Path(f"/proc/{self.pid}/environ").read_bytes().decode().split("\0")
        return {word.partition("=")[0] for word in words if word}

    @property
    def files(self) -> list[str]:
        """What it has open that has a name, numbers left out of what has none."""
        links = [os.readlink(link) for link in Path(f"/proc/{self.pid}/fd").iterdir()]
        return sorted(re.sub(r"\[[0-9]+\]", "", link) for link in links)


@pytest.fixture(params=["fake", "qemu", pytest.param("cloud-hypervisor", marks=pytest.mark.needs("cloud-hypervisor"))])
def host(request: pytest.FixtureRequest, guest: Guest, short_dir: Path) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, request.param) as one:
        one.uids = range(210_000, 210_008)
        yield one


def test_a_vmm_is_nobody_sees_nothing_and_has_no_more_than_it_needs(host: Host) -> None:
    one = host.start(disks=(DATA,))
    vmm = Audit(one.vmm)
    uid = str(one.machine.record.uid)
    assert uid != "0"
    uids, gids, groups = vmm.who
    assert (uids, gids) == ({uid}, {uid})
    assert len(groups) == (host.name == "cloud-hypervisor" and not Path("/dev/kvm").stat().st_mode & 0o006)
    assert vmm.capabilities == {0}
    assert vmm.status["NoNewPrivs"] == "1"
    assert vmm.filters >= (2 if host.name == "qemu" else 1)  # QEMU's own; Cloud Hypervisor has one for each thread

    assert vmm.own_namespaces == SHUT_IN
    assert vmm.sees() <= SYSTEM | shown(host)
    assert vmm.sees("proc") == {"self"}
    terminals = {"pts", "ptmx"} if host.name == "cloud-hypervisor" else set()
    assert vmm.sees("dev") - {"kvm"} == NODES | terminals
    assert not os.access(f"/proc/{one.vmm}/root{host.layout.data_dir}/machines", os.F_OK)
    assert "passwd" not in vmm.sees("etc")

    assert vmm.limit("core file size") == "0"
    assert int(vmm.limit("file size")) == (128 << 20) * 9 // 8 + (256 << 20)  # its RAM is larger than its disk
    assert int(vmm.limit("open files")) == 4096
    assert vmm.score == "0"
    assert vmm.environment == {"PATH", "HOME", "TMPDIR", "LC_ALL"}
    expect_limits(one, vmm)


def shown(host: Host) -> set[str]:
    """Where somebody keeps a program of their own: the fake is one; Cloud Hypervisor is given a directory, too."""
    if host.name == "cloud-hypervisor":
        return {host.directory.parts[1]}
    if host.name == "fake":
        return {Path(os.path.realpath(path)).parts[1] for path in (__file__, sys.executable)}
    return set()


def expect_limits(one: Running, process: Audit) -> None:
    """Memory and number of processes, in the machine's own group."""
    layout = cgroup.read_layout()
    groups = cgroup.paths_for(layout, run_key(one.machine.id))
    for controller, group, limit in (("memory", groups.memory, "memory.max"), ("pids", groups.pids, "pids.max")):
        if group is None:
            continue
        place = process.groups.get(controller, process.groups.get("", ""))
        assert place.endswith(str(Path(*group.parts[-3:]))), controller
        file = group / limit if (group / limit).exists() else group / "memory.limit_in_bytes"
        assert int(file.read_text()) < 1 << 40


@pytest.mark.needs("swtpm", "virtiofsd", "passt")
def test_the_helpers_of_a_machine_have_what_they_are_for_and_no_more(guest: Guest, short_dir: Path) -> None:
    with host_for(short_dir, guest.directory, "qemu") as host:
        shared = short_dir / "shared"
        shared.mkdir()
        (shared / "file").touch()
        one = host.start(
            tpm=True,
            mounts=(MountSpec(source=shared, guest_path="/srv/data"),),
            nics=(NicSpec(network="nat", link=UserLink(), mac="52:54:00:00:00:01"),),
        )
        uid = str(one.machine.record.uid)
        pids = one.ask("status")["helpers"]
        assert set(pids) == {"tpm", "fs0", "net0"}

        swtpm = Audit(pids["tpm"])
        assert swtpm.who == ({uid}, {uid}, [])
        assert swtpm.capabilities == {0}
        assert (swtpm.status["NoNewPrivs"], swtpm.own_namespaces) == ("1", SHUT_IN)
        assert swtpm.filters >= 1
        tree = host.directory.parts[1]
        assert swtpm.sees() <= SYSTEM | {tree}
        assert swtpm.sees("proc") == {"self"}
        state = one.machine.paths.tpm_dir
        assert swtpm.sees(str(state)) == set(os.listdir(state))
        assert swtpm.sees(str(state.parent)) == {"tpm"}
        assert (swtpm.limit("file size"), swtpm.limit("open files"), swtpm.score) == (str(16 << 20), "256", "0")
        assert swtpm.environment == {"PATH", "LC_ALL"}

        passt = Audit(pids["net0"])
        assert passt.who[:2] == ({uid}, {uid})
        assert int(passt.status["CapEff"], 16) == 0
        assert (passt.status["NoNewPrivs"], passt.status["Seccomp"]) == ("1", "2")  # it shuts itself in
        assert {"mnt", "ipc", "uts", "user"} <= passt.own_namespaces
        assert passt.sees() == set()

        (virtiofsd,) = [Audit(int(pid)) for pid in children(pids["fs0"])]
        assert virtiofsd.who[0] == {"0"}
        assert virtiofsd.sees() == {"file"}
        assert {"mnt", "pid", "net"} <= virtiofsd.own_namespaces
        assert virtiofsd.status["Seccomp"] == "2"
        for helper in (swtpm, passt, virtiofsd):
            expect_limits(one, helper)

        keeper = Audit(one.keeper.pid)
        assert keeper.environment == set()
        assert keeper.who[0] == {"0"}


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


# ---------------------------------------------------------------------------------------------------------------------
# a VMM that has turned against its host


NOBODY = "nobody"
WHO = ("a uid each", "one user for all", "root")


@pytest.mark.parametrize("who", WHO)
def test_a_vmm_reaches_nothing_of_its_neighbour_or_its_host(guest: Guest, short_dir: Path, who: str) -> None:
    with (
        host_for(short_dir, guest.directory, "fake") as host,
        socket.socket() as listening,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        host.uids = range(210_000, 210_008) if who == "a uid each" else None
        host.user = NOBODY if who == "one user for all" else ""
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        abstract.bind(b"\0" + str(short_dir).encode())
        abstract.listen()
        everybodys = short_dir / "everybodys"
        everybodys.write_text("x")
        everybodys.chmod(0o666)
        one = host.start(disks=(DATA,))
        other = host.start(task="other", disks=(replace(DATA, persistent=None),))
        other.until_line(READY)
        uids = {Audit(machine.vmm).who[0].pop() for machine in (one, other)}
        assert len(uids) == (2 if who == "a uid each" else 1)
        expected = {"one user for all": str(pwd.getpwnam(NOBODY).pw_uid), "root": "0"}
        assert uids == {expected[who]} if who in expected else "0" not in uids

        run = other.machine.run
        (disk,) = [path for path in other.machine.paths.disk_dir.iterdir() if path.suffix == ".raw"]
        os.chmod(disk, 0o666)
        theirs = [disk, run.console_in, run.console_out, run.plan, other.machine.paths.boot_dir / "kernel"]
        answers = attempts(
            one,
            pid=other.vmm,
            port=listening.getsockname()[1],
            abstract=str(short_dir),
            paths=[*theirs, one.machine.paths.record, everybodys, Path("/etc/passwd"), Path("/var/log"), Path("/sys")],
            sockets=[run.root / "qmp", run.control, one.machine.run.root / "qmp"],
        )
        root, proc, securebits = (answers.pop(word) for word in ("root", "proc", "securebits"))
        assert proc == ["self"]
        assert set(root) <= SYSTEM | shown(host)
        assert securebits == 0xC3  # NOROOT and NO_CAP_AMBIENT_RAISE, locked
        assert [name for name, result in answers.items() if result == "done"] == []
        for name, result in answers.items():
            if name.startswith(("read", "write", "connect", "memory")):
                assert result == "ENOENT", name
        assert (answers["loopback"], answers["datagram"]) == ("EPERM", "ENETUNREACH")
        assert answers["clone3"] == "ENOSYS"
        rest = {name: result for name, result in answers.items() if result not in ("ENOENT", "ENETUNREACH", "ENOSYS")}
        assert set(rest.values()) <= {"EPERM", "EROFS", "EACCES", "ECONNREFUSED"}, rest
        assert other.machine.running()


def test_directories_are_root_s_alone_and_so_is_every_socket(host: Host) -> None:
    one = host.start(disks=(DATA,))
    tops = [path for top in (host.layout.data_dir, host.layout.run_dir) for path in top.iterdir() if path.is_dir()]
    assert {"machines", "disks", "m"} <= {path.name for path in tops}
    for path in (*tops, one.machine.run.root, one.machine.paths.root):
        status = path.stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o700), path
    found = [path for path in one.machine.run.root.rglob("*") if path.is_socket()]
    assert found
    for path in found:
        # What the VMM makes itself, or calls, lies in a directory that is the VMM's alone.
        if path.parent == one.machine.run.vmm_dir:
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        else:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
