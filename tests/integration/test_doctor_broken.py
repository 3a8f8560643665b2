"""Set-ups that do not work, each made for real and shown to the real `chv doctor`, which names it with the cure.

Whatever would change the host is done in a mount or network namespace that goes with the command.
"""

import contextlib
import ctypes
import http.server
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from driver import core_health
from driver.cli import doctor
from tests.integration.networks import Namespace
from tests.integration.nodes import READY, Node, kill_plugin, until_says
from vmlib import cgroup
from vmlib.probe import VIRTIOFSD_PLACES, find_program

Line = dict[str, str]
_PATIENCE_S = 60.0
_FLAGS = "processor : 0\nflags : fpu vmx\n"
_NO_AGENT = 1  # a port on which nobody listens: an agent on this machine would be another's


@dataclass(slots=True)
class Sick:
    """A node, and what is done to its host in the eyes of doctor alone."""

    node: Node
    shell: list[str] = field(default_factory=list)  # in a mount namespace of its own, before doctor starts
    agent: str = ""  # more of the agent's file
    count: int = 0

    def file(self, text: str, mode: int = 0o644) -> Path:
        self.count += 1
        path = self.node.base / f"file{self.count}"
        path.write_text(text)
        path.chmod(mode)
        return path

    def hide(self, program: str) -> None:
        """As if it were not installed."""
        nothing = self.file("")
        self.shell += [f"mount --bind {nothing} {path}" for path in _places(program)]

    def program(self, name: str, says: str) -> None:
        """One that says this when asked for its version, found before any other of the name."""
        script = self.file(f"#!/bin/sh\necho '{says}'\n", 0o755)
        if not any("tmpfs none /usr/local/sbin" in line for line in self.shell):
            self.shell.append("mount -t tmpfs none /usr/local/sbin")
        self.shell.append(f"cp -p {script} /usr/local/sbin/{name}")

    def devices(self, kvm_mode: str = "") -> None:
        """/dev with hardly anything in it."""
        self.shell += ["mount -t tmpfs none /dev", "mknod -m 0666 /dev/null c 1 3"]
        if kvm_mode:
            self.shell.append(f"mknod -m {kvm_mode} /dev/kvm c 10 232")

    def doctor(self, *, code: int = 1, inside: Namespace | None = None, **env: str) -> dict[str, list[Line]]:
        """Its lines by what they are about."""
        self.node.write_agent_file()
        with self.node.agent_file.open("a") as file:
            file.write(self.agent)
        done = self.run(inside=inside, env=env)
        assert done.returncode == code, done.stdout + done.stderr
        assert done.stderr == ""
        found: dict[str, list[Line]] = {}
        known = checks_on_the_page()
        for line in json.loads(done.stdout):
            assert any(re.fullmatch(one, line["check"]) for one in known), f"{line['check']} is not on the page"
            assert list(line) == ["check", "verdict", "text", "cure"]
            assert line["cure"] or line["verdict"] == "ok", line
            found.setdefault(line["check"], []).append(line)
        return found

    def run(
        self, *, before: Sequence[str] = (), inside: Namespace | None = None, env: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        argv = [*before, str(self.node.chv), "doctor", "--json", "--config", str(self.node.agent_file)]
        if self.shell:
            script = "\n".join([*self.shell, 'exec "$@"'])
            argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", *argv]

        def start() -> "subprocess.CompletedProcess[str]":
            return subprocess.run(
                argv,
                env={**os.environ, **self.node.env, **(env or {})},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
                check=False,
            )

        return inside.do(start) if inside is not None else start()


def checks_on_the_page() -> list[str]:
    """The names in the table of docs/command-line.md, as patterns: words in capitals stand for something."""
    page = (Path(__file__).parents[2] / "docs/command-line.md").read_text()
    section = page.partition("## `chv doctor`")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    more = re.findall(r"`(hypervisors)` when", section)
    names = [name for cell in cells for name in re.findall("`([^`]+)`", cell)] + more
    return [re.sub(r"[A-Z]{3,}$", r"\\S+", re.escape(name).replace("\\ ", " ")) for name in names]


_TELEMETRY = "telemetry {\n publish_allocation_metrics = true\n}\n"


def _ports(http_port: int) -> str:
    return f"ports {{\n http = {http_port}\n}}\n"


def _places(program: str) -> list[str]:
    """Everywhere a program of that name would be found."""
    places = VIRTIOFSD_PLACES if program == "virtiofsd" else ()
    found = [one for one in places if Path(one).exists()]
    on_path = find_program(program)
    return [*found, *([on_path] if on_path and on_path not in found else [])]


@pytest.fixture
def sick(node: Node) -> Sick:
    """A healthy one so far."""
    plugins = node.base / "plugins"
    plugins.mkdir()
    (plugins / "chv").symlink_to(node.chv)
    return Sick(node=node, agent=f'plugin_dir = "{plugins}"\n{_ports(_NO_AGENT)}{_TELEMETRY}')


def only(found: Mapping[str, list[Line]], check: str, verdict: str) -> Line:
    """The one line of that verdict about it."""
    (line,) = (line for line in found.get(check, []) if line["verdict"] == verdict)
    return line


def problems(found: Mapping[str, list[Line]]) -> set[str]:
    return {line["check"] for lines in found.values() for line in lines if line["verdict"] == "problem"}


# ---------------------------------------------------------------------------------------------------------------------
# the healthy one, and what holds for all


def test_a_healthy_set_up_has_no_problem_and_is_left_as_it_was(sick: Sick) -> None:
    sick.doctor(code=0)
    before = sorted(sick.node.base.rglob("*"))
    found = sick.doctor(code=0)
    assert problems(found) == set()
    for check in ("qemu", "qemu-img", "virtiofsd", "swtpm", "privileges", "vm_uids", "cores", "data_dir", "run_dir",
                  "image_paths", "nomad telemetry", "nomad plugin"):  # fmt: skip
        assert {line["verdict"] for line in found[check]} == {"ok"}, found[check]
    assert sorted(sick.node.base.rglob("*")) == before


def test_every_check_on_the_page_is_one_that_doctor_makes() -> None:
    cli = Path(doctor.__file__).parent
    code = "".join(path.read_text() for path in cli.glob("doctor*.py")) + Path(core_health.__file__).read_text()
    for pattern in checks_on_the_page():
        name = pattern.removesuffix(r" \S+").replace("\\", "")
        assert any(f"{quote}{name}{end}" in code for quote in "\"'" for end in "\"' "), name


async def test_it_works_while_the_plugin_runs_and_when_it_is_dead(fake_node: Node) -> None:
    async with fake_node.host(fake_node.job()) as host:
        await host.start()
        await until_says(host, READY)
        assert fake_node.command("doctor").returncode == 0
        await kill_plugin(host)
        done = fake_node.command("doctor", "--json")
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse for a file system of which nobody answers")
def test_a_file_system_that_never_answers_is_a_line_and_the_others_come_all_the_same(sick: Sick) -> None:
    # By a link, so that its name does not give away what it is.
    dead, link = sick.node.base / "dead", sick.node.base / "srv"
    dead.mkdir()
    link.symlink_to(dead)
    sick.node.block = f'qemu {{\n binary = "{link}/qemu"\n }}'
    with _nobody_answers(dead):
        begin = time.monotonic()
        found = sick.doctor()
        assert time.monotonic() - begin < 30
    line = only(found, "hypervisors", "problem")
    assert line["text"] == "no answer within 20 s"
    assert "file system whose server is gone" in line["cure"]
    assert found["kvm"]
    assert found["nomad plugin"]


@contextlib.contextmanager
def _nobody_answers(directory: Path) -> Iterator[None]:
    """A file system whose server is there and silent, until the block ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
    try:
        if libc.mount(b"chv-test", os.fsencode(directory), b"fuse", 0, options) != 0:
            raise OSError(ctypes.get_errno(), "mount")
        try:
            yield
        finally:
            libc.umount2(os.fsencode(directory), 2)  # MNT_DETACH
    finally:
        os.close(fd)


# ---------------------------------------------------------------------------------------------------------------------
# KVM, hypervisors, firmware, tools


def test_kvm_that_only_root_may_use(sick: Sick) -> None:
    sick.shell.append(f"mount --bind {sick.file(_FLAGS)} /proc/cpuinfo")
    sick.devices("0600")
    line = only(sick.doctor(code=0), "kvm", "warning")
    if "no such device" not in line["text"]:  # a host whose kernel has no KVM
        assert "mode 0600 is for root only" in line["text"]
        assert line["cure"] == "chgrp kvm /dev/kvm && chmod 0660 /dev/kvm"


def test_a_kernel_without_kvm_where_nothing_else_may_be_used(sick: Sick) -> None:
    sick.node.block = 'qemu {\n accel = "kvm"\n }'
    sick.shell.append(f"mount --bind {sick.file(_FLAGS)} /proc/cpuinfo")
    sick.devices()
    found = sick.doctor()
    line = only(found, "kvm", "problem")
    assert line["text"] == "/dev/kvm: no such file or directory: no machine starts"
    assert line["cure"] == "modprobe kvm_intel"
    assert problems(found) == {"kvm", "hypervisors"}


def test_a_cpu_whose_virtualisation_is_off(sick: Sick) -> None:
    sick.shell.append(f"mount --bind {sick.file(_FLAGS.replace('vmx', ''))} /proc/cpuinfo")
    line = only(sick.doctor(code=0), "kvm", "warning")
    assert line["text"] == "cpu has neither vmx nor svm: machines are emulated, many times slower"
    assert "nested virtualisation at its host" in line["cure"]


@pytest.mark.parametrize(
    ("version", "why_not"),
    [
        ("38.0", "version 38.0 is too old, expected at least 51.2"),
        ("52.0", "version 52.0 miscounts its guest's memory, expected 53.0 or later"),
    ],
)
def test_a_cloud_hypervisor_of_the_wrong_version(sick: Sick, version: str, why_not: str) -> None:
    sick.node.hypervisor = "cloud-hypervisor"
    sick.program("cloud-hypervisor", f"cloud-hypervisor v{version}")
    found = sick.doctor()
    line = only(found, "cloud-hypervisor", "warning")
    assert line["text"] == why_not
    assert line["cure"].startswith("install Cloud Hypervisor 53.0 or later")
    assert "hypervisors" in problems(found)


def test_the_one_of_two_hypervisors_that_is_not_installed_is_nothing_amiss(sick: Sick) -> None:
    sick.node.hypervisor = "auto"
    sick.hide("cloud-hypervisor")
    line = only(sick.doctor(code=0), "cloud-hypervisor", "ok")
    assert line["text"] == "cloud-hypervisor is not installed: machines run on qemu"


def test_one_that_is_named_and_not_installed_is(sick: Sick) -> None:
    sick.node.hypervisor = "auto"
    sick.node.block = 'cloud_hypervisor {\n binary = "/opt/cloud-hypervisor"\n }'
    line = only(sick.doctor(code=0), "cloud-hypervisor", "warning")
    assert line["text"].startswith("/opt/cloud-hypervisor")


def test_a_qemu_that_is_too_old(sick: Sick) -> None:
    old = sick.file("#!/bin/sh\necho 'QEMU emulator version 6.2.0 (Debian 1:6.2)'\n", 0o755)
    sick.node.block = f'qemu {{\n binary = "{old}"\n }}'
    found = sick.doctor()
    line = only(found, "qemu", "warning")
    assert line["text"] == "version 6.2.0 is too old, expected at least 7.2"
    assert line["cure"].startswith("install QEMU 7.2 or later")
    assert problems(found) == {"hypervisors"}


def test_a_firmware_file_that_is_not_there(sick: Sick) -> None:
    sick.node.block = 'cloud_hypervisor {\n firmware = "/nowhere/CLOUDHV.fd"\n }'
    line = only(sick.doctor(code=0), "cloud-hypervisor firmware", "warning")
    assert line["text"] == "/nowhere/CLOUDHV.fd: no such file or directory"
    assert line["cure"].startswith("put a CLOUDHV.fd there")


def test_no_uefi_firmware_for_qemu(sick: Sick) -> None:
    places = ("/usr/share/qemu/firmware", "/usr/share/OVMF", "/etc/qemu/firmware", "/usr/share/edk2")
    sick.shell += [f"mount -t tmpfs none {one}" for one in places if Path(one).is_dir()]
    line = only(sick.doctor(code=0), "firmware", "warning")
    assert "names UEFI firmware for pc-q35" in line["text"]
    assert "install" in line["cure"]


@pytest.mark.parametrize(
    ("program", "cure"),
    [
        ("qemu-img", "install qemu-utils"),
        ("virtiofsd", "install virtiofsd, which is in the package qemu-system-common on Debian 12"),
        ("swtpm", "install the package swtpm"),
    ],
)
def test_a_program_that_is_not_installed(sick: Sick, program: str, cure: str) -> None:
    sick.hide(program)
    line = only(sick.doctor(code=0), program, "warning")
    assert "not installed" in line["text"]
    assert line["cure"].startswith(cure)


# ---------------------------------------------------------------------------------------------------------------------
# users, cgroups, cores


def test_a_doctor_without_privileges_says_so_and_looks_all_the_same(sick: Sick) -> None:
    sick.node.write_agent_file()
    done = sick.run(before=["unshare", "--user", "--map-user=1000"])
    found = {line["check"]: line for line in json.loads(done.stdout)}
    assert (done.returncode, done.stderr) == (1, "")
    assert found["privileges"]["text"] == "runs as uid 1000"
    assert found["privileges"]["cure"] == "run it and the Nomad agent as root"
    assert found["qemu"]["verdict"] == "ok"


def test_a_vm_user_that_the_host_does_not_have(sick: Sick) -> None:
    sick.node.hypervisor = "auto"  # without vm_uids
    sick.node.block = 'vm_user = "chv-nobody"'
    line = only(sick.doctor(code=0), "vm_uids", "warning")
    assert "create the user 'chv-nobody'" in line["text"]
    assert line["cure"].startswith('set vm_uids = "')


def test_vm_uids_that_a_user_of_the_host_has(sick: Sick) -> None:
    users = Path("/etc/passwd").read_text() + "alice:x:221010:221010::/home/alice:/bin/sh\n"
    sick.shell.append(f"mount --bind {sick.file(users)} /etc/passwd")
    line = only(sick.doctor(), "vm_uids", "problem")
    assert "221000-221063 has uids of others (221010 of user alice)" in line["text"]
    assert line["cure"].startswith('set vm_uids = "2')


def test_vm_uids_that_a_user_may_give_to_containers(sick: Sick) -> None:
    sick.shell.append(f"mount --bind {sick.file('alice:200000:65536')} /etc/subuid")
    line = only(sick.doctor(code=0), "vm_uids", "warning")
    assert "200000-265535 of alice in /etc/subuid" in line["text"]
    assert line["cure"] == 'set vm_uids = "265536-265599" in the plugin block'


def test_a_cgroup_controller_that_is_missing(sick: Sick) -> None:
    layout = cgroup.read_layout()
    assert layout.pids is not None
    if layout.kind == "v2":
        sick.shell.append(f"mount --bind {sick.file('cpuset cpu memory')} /sys/fs/cgroup/cgroup.controllers")
        cure = "boot the kernel without cgroup_disable=pids"
    else:
        sick.shell.append(f"umount {layout.pids.parent}")
        cure = "mkdir -p /sys/fs/cgroup/pids && mount -t cgroup -o pids"
    line = only(sick.doctor(code=0), "cgroup pids", "warning")
    assert line["text"] == "controller pids cannot be used: a VMM may have any number of threads"
    assert line["cure"].startswith(cure)


def test_a_host_without_cgroups(sick: Sick) -> None:
    sick.shell.append("umount --recursive --lazy /sys/fs/cgroup")
    line = only(sick.doctor(code=0), "cgroups", "warning")
    assert "no cgroup hierarchy is mounted" in line["text"]
    assert line["cure"] == "mount -t cgroup2 none /sys/fs/cgroup"


def test_dedicated_cores_that_nomad_still_uses(sick: Sick) -> None:
    sick.node.block = 'cores {\n dedicated = "0"\n smt = "thread"\n }'
    line = only(sick.doctor(code=0), "cores.dedicated", "warning")
    assert "Nomad still shares out 0" in line["text"]
    assert line["cure"] == 'set client { reserved { cores = "0" } }'


def test_dedicated_cores_that_do_not_exist(sick: Sick) -> None:
    sick.node.block = 'cores {\n dedicated = "900"\n }'
    lines = sick.doctor(code=0)["cores.dedicated"]
    assert any("CPU 900 is not online" in line["text"] and "take it off the list" in line["cure"] for line in lines)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPUs")
def test_cores_that_are_withheld_without_their_mhz(sick: Sick) -> None:
    # A machine whose MHz nobody can read is told them.
    sick.node.client_block = f'cpu_total_compute = {2000 * (os.cpu_count() or 1)}\n reserved {{\n cores = "1"\n }}'
    line = only(sick.doctor(code=0), "nomad withheld MHz", "warning")
    assert line["text"].startswith("CPU 1 is withheld, but ")
    assert line["cure"].startswith('set client { reserved { cores = "1"  cpu = ')
    number = int(line["cure"].split(" = ")[2].split(" ")[0])
    sick.node.client_block = sick.node.client_block.replace('"1"', f'"1"\n cpu = {number}')
    assert only(sick.doctor(code=0), "nomad withheld MHz", "ok")["text"] == "CPU 1 is withheld, and so are its MHz"


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two CPUs")
def test_an_agent_that_was_not_restarted_since_its_file_withholds_cores(sick: Sick) -> None:
    # What an agent uses stands in its cgroups: the files that one with every CPU writes.
    cpus = f"0-{(os.cpu_count() or 1) - 1}\n"
    tree = sick.node.base / "cgroups"
    groups = cgroup.read_layout()
    if groups.kind == "v2":
        top, root = tree / "nomad.slice", "/sys/fs/cgroup"
        files = {top / "reserve.slice": "", top / "share.slice": cpus}
        tree.mkdir()
        (tree / "cgroup.controllers").write_text("cpuset cpu memory pids\n")
    else:
        top, root = tree / "nomad", "/sys/fs/cgroup/cpuset"
        files = {top / "reserve": "", top / "share": cpus}
    for path, text in files.items():
        path.mkdir(parents=True)
        (path / "cpuset.cpus").write_text(text)
    (top / "cpuset.cpus").write_text(cpus)
    sick.shell.append(f"mount --bind {tree} {root}")
    sick.node.block = 'cores {\n dedicated = "1"\n smt = "thread"\n }'
    sick.node.client_block = 'reserved {\n cores = "1"\n cpu = 2000\n }'
    line = only(sick.doctor(code=0), "cores.dedicated", "warning")
    assert line["text"] == "cores.dedicated 1: Nomad still shares out 1"
    assert line["cure"] == "restart the Nomad agent, whose file withholds them by now"


# ---------------------------------------------------------------------------------------------------------------------
# directories


def test_a_disk_that_is_full(sick: Sick) -> None:
    data = sick.node.layout.data_dir
    data.mkdir(mode=0o700)
    sick.shell += [f"mount -t tmpfs -o size=4m,mode=0700 none {data}", f"head -c 4M /dev/zero > {data}/image || true"]
    line = only(sick.doctor(), "data_dir", "problem")
    assert line["text"] == f"{data}: 0 MiB of 4 MiB are free: starts fail, and guests cannot write"
    assert line["cure"].startswith("`chv gc` and `chv disks` list what may go")


def test_a_disk_that_has_no_room_for_more_files(sick: Sick) -> None:
    data = sick.node.layout.data_dir
    data.mkdir(mode=0o700)
    sick.shell.append(f"mount -t tmpfs -o size=1g,nr_inodes=20,mode=0700 none {data}")
    line = only(sick.doctor(), "data_dir", "problem")
    assert "room for 19 more files" in line["text"]


def test_a_data_dir_that_does_not_survive_a_reboot(sick: Sick) -> None:
    data = sick.node.layout.data_dir
    data.mkdir(mode=0o700)
    sick.shell.append(f"mount -t tmpfs -o size=1g,mode=0700 none {data}")
    line = only(sick.doctor(code=0), "data_dir", "warning")
    assert line["text"] == f"{data} is in memory (tmpfs): disks and records are gone after a reboot"
    assert line["cure"] == "name a data_dir on a disk"


def test_a_data_dir_that_is_read_only(sick: Sick) -> None:
    data = sick.node.layout.data_dir
    data.mkdir(mode=0o700)
    sick.shell += [f"mount --bind {data} {data}", f"mount -o remount,ro,bind {data}"]
    line = only(sick.doctor(), "data_dir", "problem")
    assert line["text"] == f"{data} is not writable"
    assert line["cure"] == "mount -o remount,rw its file system, or name another data_dir"


@pytest.mark.parametrize(("mode", "verdict"), [(0o755, "warning"), (0o777, "problem")])
def test_directories_that_others_may_enter(sick: Sick, mode: int, verdict: str) -> None:
    for key, path in (("data_dir", sick.node.layout.data_dir), ("run_dir", sick.node.layout.run_dir)):
        path.mkdir()
        path.chmod(mode)
        line = only(sick.doctor(code=1 if verdict == "problem" else 0), key, verdict)
        assert f"{path} has mode {mode:04o}" in line["text"]
        assert line["cure"] == f"chmod 0700 {path}"
        path.rmdir()


def test_a_run_dir_of_somebody_elses_and_one_that_is_a_file(sick: Sick) -> None:
    run = sick.node.layout.run_dir
    run.mkdir(mode=0o700)
    os.chown(run, 65534, 65534)
    line = only(sick.doctor(), "run_dir", "problem")
    assert (line["text"], line["cure"]) == (f"{run} belongs to uid 65534, expected root", f"chown root:root {run}")
    run.rmdir()
    run.write_text("")
    assert only(sick.doctor(), "run_dir", "problem")["text"] == f"{run} is not a directory"
    run.unlink()


@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse for a file system of which nobody answers")
def test_a_data_dir_on_a_file_system_of_somebody_elses_is_named_and_not_touched(sick: Sick) -> None:
    data = sick.node.layout.data_dir
    data.mkdir()
    with _nobody_answers(data):
        begin = time.monotonic()
        line = only(sick.doctor(), "data_dir", "problem")
        assert time.monotonic() - begin < 15  # as long as what hangs would have
    assert line["text"].startswith(f"{data} is on fuse: when its server is silent")
    assert line["cure"] == "name a data_dir on a disk of this host"


def test_a_run_dir_whose_name_is_too_long_for_sockets(sick: Sick) -> None:
    sick.node.write_agent_file()
    text = sick.node.agent_file.read_text()
    long = f"/run/{'x' * 70}"
    sick.node.agent_file.write_text(text.replace(str(sick.node.layout.run_dir), long))
    done = sick.run()
    assert (done.returncode, done.stdout) == (2, "")
    assert f"run_dir = '{long}': 75 bytes, expected at most 67 (the path of a socket in it has a limit)" in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# networks and file servers


@pytest.fixture
def space() -> Iterator[Namespace]:
    one = Namespace()
    yield one
    one.close()


def test_networks_whose_parent_or_bridge_is_missing_or_down(sick: Sick, space: Namespace) -> None:
    other = Namespace()
    try:
        space.add_veth("up0", other, "far0")
        sick.node.block = """
network "lan" {
  mode   = "macvtap"
  parent = "up0"
}
network "gone" {
  mode   = "macvtap"
  parent = "eno9"
}
network "dmz" {
  mode   = "bridge"
  bridge = "br9"
}
network "odd" {
  mode   = "bridge"
  bridge = "up0"
}
"""
        found = sick.doctor(inside=space)
    finally:
        other.close()
    down = only(found, "network lan", "warning")
    assert down["text"] == "macvtap on up0: up0 is down"
    assert down["cure"] == "ip link set up0 up, or look at its cable"
    gone = only(found, "network gone", "problem")
    assert gone["text"] == "macvtap on eno9: this host has no interface 'eno9'"
    assert gone["cure"] == "make it, or name another one as parent in the plugin block"
    bridge = only(found, "network dmz", "problem")
    assert bridge["text"] == "bridge on br9: this host has no interface 'br9'"
    assert bridge["cure"].startswith("ip link add br9 type bridge && ip link set br9 up")
    assert only(found, "network odd", "problem")["text"] == "bridge on up0: 'up0' is no bridge"


def test_a_host_that_has_no_place_of_its_own_on_a_network_yet(sick: Sick, space: Namespace) -> None:
    other = Namespace()
    try:
        space.add_veth("up0", other, "far0")
        blocks = [
            f'network "{name}" {{\n mode = "macvtap"\n parent = "{parent}"\n host_shim = "{address}"\n }}\n'
            for name, parent, address in (
                ("new", "up0", "192.0.2.9/24"),
                ("gone", "eno9", "198.51.100.9/24"),
                ("hidden", "up0", "203.0.113.9/24"),
            )
        ]
        space.bring_up("up0", "203.0.113.1/24")
        sick.node.block = "".join(blocks)
        found = sick.doctor(inside=space)
    finally:
        other.close()
    assert only(found, "host_shim new", "warning")["text"] == "not made yet"
    assert only(found, "host_shim gone", "warning")["cure"] == "what the line network gone says"
    hidden, _ = found["host_shim hidden"]
    assert hidden["text"].endswith("so the host looks for guests there and reaches none")
    assert hidden["cure"].startswith("give the shim a longer prefix")


def test_a_file_server_that_is_dead(sick: Sick, space: Namespace) -> None:
    other = Namespace()
    try:
        space.add_veth("up0", other, "far0")
        space.bring_up("up0", "192.0.2.1/24")
        other.bring_up("far0")
        sick.node.block = 'nfs "vms" {\n server = "192.0.2.9"\n export = "/srv/vms"\n }'
        begin = time.monotonic()
        found = sick.doctor(inside=space)
        assert time.monotonic() - begin < 20
    finally:
        other.close()
    line = only(found, "nfs vms", "problem")
    assert line["text"].startswith("192.0.2.9:/srv/vms: no ")
    assert line["cure"] == "look at the server, and at firewalls on the way to it"
    (client,) = found["nfs client"]
    assert client["verdict"] == "ok" or "nfs4_unique_id=WORD" in client["cure"]


# ---------------------------------------------------------------------------------------------------------------------
# the agent


def test_a_plugin_that_the_agent_does_not_find(sick: Sick) -> None:
    plugins = sick.node.base / "plugins"
    plugin = plugins / "chv"
    make = f"ln -sf $(command -v chv) {plugin}"

    def line() -> Line:
        return only(sick.doctor(), "nomad plugin", "problem")

    plugin.unlink()
    assert line() == _problem(f"{plugin} is missing: the agent has no driver of that name", make)
    plugin.symlink_to("/nowhere/chv")
    assert line() == _problem(f"{plugin} leads to /nowhere/chv, which is no file", make)
    plugin.unlink()
    plugin.write_text("")
    plugin.chmod(0o644)
    assert line() == _problem(f"{plugin} is not executable, the agent skips it", f"chmod a+x {plugin}")
    plugin.unlink()
    plugins.rmdir()
    assert line() == _problem(f"{plugins} is not a directory", f"mkdir -p {plugins} && {make}")


def _problem(text: str, cure: str) -> Line:
    return {"check": "nomad plugin", "verdict": "problem", "text": text, "cure": cure}


def test_a_plugin_that_does_not_run_and_one_of_another_release(sick: Sick) -> None:
    plugin = sick.node.base / "plugins/chv"
    plugin.unlink()
    plugin.write_text("#!/nowhere/python\n")
    plugin.chmod(0o755)
    line = only(sick.doctor(), "nomad plugin", "problem")
    assert line["text"].startswith(f"{plugin} does not run: ")
    plugin.write_text("#!/bin/sh\necho chv 0.0.1\n")
    line = only(sick.doctor(code=0), "nomad plugin", "warning")
    assert line["text"].startswith(f"{plugin} is 'chv 0.0.1', and this is chv ")
    assert line["cure"] == f"ln -sf $(command -v chv) {plugin}"
    plugin.write_text(f'#!/bin/sh\nexec {sick.node.chv} "$@"\n')
    assert only(sick.doctor(code=0), "nomad plugin", "ok")["text"] == str(plugin)


def test_an_agent_that_is_not_roots(sick: Sick) -> None:
    agent = sick.node.base / "nomad"
    agent.write_text("#!/bin/sh\nexec 2>/dev/null\nread -r line\n")
    agent.chmod(0o755)
    sick.node.base.chmod(0o755)
    with subprocess.Popen([agent, "agent"], stdin=subprocess.PIPE, user=65534, group=65534, cwd="/") as process:
        line = only(sick.doctor(code=0), "nomad user", "warning")
        assert process.stdin is not None
        process.stdin.close()
    assert "runs as uid 65534" in line["text"]
    assert line["cure"].startswith("User=root in the unit")


def test_a_device_plugin_whose_link_is_missing_and_that_reads_elsewhere(sick: Sick) -> None:
    sick.agent += 'plugin "chv-cores" {\n config {\n data_dir = "/elsewhere"\n }\n}\n'
    missing, elsewhere = sick.doctor()["nomad plugin chv-cores"]
    assert "chv-cores is missing" in missing["text"]
    assert elsewhere["cure"] == f'set data_dir = "{sick.node.layout.data_dir}" in its block'


def test_a_nomad_that_is_too_old_or_missing_or_broken(sick: Sick) -> None:
    sick.program("nomad", "Nomad v1.0.18 (0a8e1f0)")
    old = only(sick.doctor(), "nomad", "problem")
    assert old["text"].startswith("1.0.18 (0a8e1f0) (/usr/local/sbin/nomad); no agent answers at http://127.0.0.1:1")
    assert old["text"].endswith("too old, expected at least 1.1")
    assert old["cure"] == "install Nomad 1.1 or later"
    sick.shell.clear()
    sick.program("nomad", "what?")
    assert "expected `Nomad vX.Y.Z`" in only(sick.doctor(code=0), "nomad", "warning")["text"]
    sick.shell.clear()
    sick.hide("nomad")
    missing = only(sick.doctor(code=0), "nomad", "warning")
    assert missing["text"] == "not installed, and nothing answers at http://127.0.0.1:1"
    assert missing["cure"].startswith("install Nomad 1.1 or later")


def test_an_agent_that_does_not_ask_for_numbers(sick: Sick) -> None:
    sick.agent = sick.agent.replace(_TELEMETRY, "")
    sick.program("nomad", "Nomad v1.10.2")
    line = only(sick.doctor(code=0), "nomad telemetry", "warning")
    assert "`nomad alloc status -stats` shows none" in line["text"]
    assert line["cure"] == f"set telemetry {{ publish_allocation_metrics = true }} in {sick.node.agent_file}"
    sick.shell.clear()
    sick.program("nomad", "Nomad v1.10.1")
    assert only(sick.doctor(code=0), "nomad telemetry", "ok")["text"].startswith("an agent before 1.10.2 asks")


def test_an_agent_that_was_not_restarted_since_its_file_was_changed(sick: Sick) -> None:
    with _agent({"Version": {"Version": "2.0.5"}, "Telemetry": {"PublishAllocationMetrics": False}}) as port:
        sick.agent = sick.agent.replace(_ports(_NO_AGENT), _ports(port))
        found = sick.doctor(code=0)
    assert only(found, "nomad", "ok")["text"] == f"2.0.5, the agent answers at http://127.0.0.1:{port}"
    assert only(found, "nomad telemetry", "warning")["cure"].startswith("restart the agent: ")


@contextlib.contextmanager
def _agent(config: Mapping[str, object]) -> Iterator[int]:
    """The port at which something answers as an agent with that config does."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/v1/agent/self"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"config": config}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()
