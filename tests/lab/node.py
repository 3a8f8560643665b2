"""Runs one round in the lab node: boots it, has it run a command in a copy of this checkout, fetches the results.

Run as `python -m tests.lab.node COMMAND` it does that once, shows the console as it comes and ends with the command's
exit code. The node is an unprivileged QEMU without KVM; it changes nothing on this host but a temporary directory.
"""

import argparse
import compileall
import contextlib
import os
import pwd
import py_compile
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import needs
from tests import setup as machine_setup
from tests.guest import archive, build
from tests.lab import image

CHECKOUT = Path(__file__).parent.parent.parent
LEFT_OUT = (".git", ".cache", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".hypothesis", "build", "dist")
RESULTS_MIB = 256
ROUND_S = 600.0
SILENT_S = 180.0  # longer than the longest test, whose name stands on the console when it begins, or a step of it
# Programs of this host that the node gets: no package of Debian's has them.
PROGRAMS = {"nomad": needs.find_nomad, "cloud-hypervisor": needs.find_cloud_hypervisor}
# How much longer a thing takes in there than on the host: for time limits.
SLOWER = 15

# AMD's topology leaves are what the kernel reads SMT from; TCG hides them unless forced. Without xlevel there is no L3.
TOPOLOGY = (
    *("-M", "q35", "-accel", "tcg,thread=multi"),
    *("-cpu", "max,x-force-features=on,+topoext,xlevel=0x8000001e"),
    *("-smp", "8,sockets=2,cores=2,threads=2", "-m", "4096"),
    *("-object", "memory-backend-ram,id=m0,size=2048M", "-object", "memory-backend-ram,id=m1,size=2048M"),
    *("-numa", "node,nodeid=0,cpus=0-3,memdev=m0", "-numa", "node,nodeid=1,cpus=4-7,memdev=m1"),
    *("-numa", "dist,src=0,dst=1,val=21"),
)
# noinit_itable: no work in the background on a disk that is thrown away. Later kernels number the drives by chance.
CMDLINE = (
    f"root={image.ROOT} rootwait rw rootflags=noinit_itable init=/lab-init console=ttyS0 quiet panic=-1 "
    "no_timer_check tsc=reliable mitigations=off transparent_hugepage=never"
)
# The emulator can lose an interrupt for a CPU that runs a nested guest; that CPU then never answers the others again.
# Or that CPU comes back from its guest without the kernel's own base address, and faults in its handler for faults.
# Or the kernel trips over a register that is not as it left it, and counts its fault in words like "Oops: 0000 [#1]".
# Or it finds a stack or a list of its own damaged, and gives up.
# Nothing that a test does can bring a kernel to that. What a test can do is end its init or use up its memory, and what
# we can get wrong is its root: those panics are no such fault.
FAULT = re.compile(
    r"watchdog: BUG: soft lockup|rcu: INFO: \w+ detected stalls|BUG: TASK stack guard page was hit"
    r"|: [0-9a-f]{4} \[#\d+\]"
    r"|Kernel panic - not syncing: (?!Attempted to kill init|Out of memory|System is deadlocked on memory|VFS:"
    r"|No working init|Requested init|sysrq)"
)
# What a test's report shows of a guest in the node that came to the same end, or to none: it never said a word.
_GUEST_FAULT = re.compile(rf"^E\s.*(?:{FAULT.pattern}).*$|^E\s+console: (?:b'')?$", re.MULTILINE)
TRACE_S = 2.0  # for the kernel to say where it was
# Or that handler cannot even say so. QEMU knows; a kernel that restarts by itself has panicked aloud before.
TRIPLE_FAULT = "Triple fault"
PANIC = re.compile(r"Kernel panic - not syncing")


class RoundError(Exception):
    """The node did not get to the end of its round; the message says how far it got."""


class NodeFaultError(RoundError):
    """The emulator beneath the node failed, which says nothing of what was tested. Names the kernel's own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """How a round ended. `files` holds what the node left in /lab/results."""

    rc: int
    files: Path
    took_s: float


def run(
    command: str,
    *,
    cache: Path,
    files: Path,
    timeout_s: float = ROUND_S,
    later_kernel: bool = False,
    programs: Collection[str] = PROGRAMS,
    packages: Collection[Path] = (),
    tell: Callable[[str], None] = print,
) -> Round:
    """Boot a node, run the shell command `command` there, and unpack its results into `files`.

    With `later_kernel` it is that of Debian's backports, not the one of the release. The node has those of `programs`
    that this host has, and the files `packages` in /lab/in/packages.
    `tell` gets each line of the console as it comes. Raises RoundError when the node died, and ImageError or BuildError
    when there is nothing to boot.
    """
    started = time.monotonic()
    images = image.ensure(cache)
    guest = build.ensure(cache)
    with tempfile.TemporaryDirectory(prefix="chv-lab-", dir="/tmp") as name:
        work = Path(name)
        _write_input(work / "in.ext4", command, guest.directory, programs, packages)
        results = work / "results.tar"
        with results.open("wb") as drive:
            drive.truncate(RESULTS_MIB << 20)
        _boot(images, images.later_kernel if later_kernel else images.kernel, work, timeout_s, tell)
        rc = _unpack(results, files)
    return Round(rc=rc, files=files, took_s=time.monotonic() - started)


# ---------------------------------------------------------------------------------------------------------------------
# what goes in


def _found(programs: Collection[str]) -> dict[str, Path]:
    found = {name: PROGRAMS[name]() for name in programs}
    return {name: path for name, path in found.items() if path is not None and os.access(path, os.X_OK)}


def _write_input(drive: Path, command: str, guest: Path, programs: Collection[str], packages: Collection[Path]) -> None:
    """The drive with the checkout in `tree`, the test guest in `cache`, programs in `bin`, `packages`, the command."""
    with tempfile.TemporaryDirectory(prefix="chv-lab-", dir="/tmp") as name:
        top = Path(name)
        top.chmod(0o755)
        shutil.copytree(
            CHECKOUT, top / "tree", symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT, "*.egg-info", "*.pyc")
        )
        _compile(top / "tree")
        (top / "cache/guest").mkdir(parents=True)
        for part in ("key", *build.OUTPUTS):
            shutil.copy(guest / part, top / "cache/guest" / part)
        (top / "bin").mkdir()
        have = _found(programs)
        for program, path in have.items():
            shutil.copy(path, top / "bin" / program)
            (top / "bin" / program).chmod(0o755)
        (top / "packages").mkdir()
        for package in packages:
            shutil.copy(package, top / "packages")
        environment = {
            "CHV_LAB": "1",
            "CHV_CACHE": "/lab/checkout/cache",
            "CHV_TEST_REQUIRE": ",".join(["root", "qemu", "cgroup", "cgroup2", "kvm", *sorted(have)]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        lines = [f"export {key}={shlex.quote(value)}\n" for key, value in environment.items()]
        lines += [f"ln -s /lab/checkout/bin/{program} /usr/local/bin/\n" for program in have]  # where a driver looks
        (top / "command").write_text("".join(lines) + command + "\n")
        used = sum(path.stat().st_size for path in top.rglob("*") if path.is_file())
        image.make_file_system(drive, top, size_mib=64 + used * 5 // 4 // (1 << 20))


def _compile(tree: Path) -> None:
    """In there it takes half a minute, at each start of ours. Of use to the same version of Python only."""
    for part in ("driver", "vmlib"):
        compileall.compile_dir(
            tree / part,
            quiet=2,
            stripdir=str(tree),
            prependdir="/lab/checkout/tree",
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )


# ---------------------------------------------------------------------------------------------------------------------
# the node


def _boot(images: image.Images, booted: Path, work: Path, timeout_s: float, tell: Callable[[str], None]) -> None:
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    if user is not None:
        for path in (work, work / "in.ext4", work / "results.tar"):
            os.chown(path, user.pw_uid, user.pw_gid)
    with contextlib.ExitStack() as stack:
        # The cache may lie where that user cannot go: what is opened here can be opened again by its descriptor.
        program = images.emulator / "usr/bin/qemu-system-x86_64"
        kernel, root, python, emulator = (
            stack.enter_context(path.open("rb")).fileno() for path in (booted, images.root, images.python, program)
        )
        for part in ("qemu", "seabios"):  # its firmware, which it finds by name
            shutil.copytree(images.emulator / "usr/share" / part, work / part, ignore_dangling_symlinks=True)
        argv = [
            program.name,
            *("-L", str(work / "qemu"), "-L", str(work / "seabios")),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"),
            *("-d", "cpu_reset", "-D", str(work / "resets")),
            *TOPOLOGY,
            *("-kernel", f"/proc/self/fd/{kernel}", "-append", CMDLINE),
            *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
            *("-device", "virtio-rng-pci"),
            *_drive("root", f"/proc/self/fd/{root}", "snapshot=on,cache=unsafe"),
            *_drive("in", str(work / "in.ext4"), "readonly=on"),
            *_drive("python", f"/proc/self/fd/{python}", "readonly=on"),
            *_drive("results", str(work / "results.tar"), "cache=unsafe"),
        ]
        process = stack.enter_context(
            subprocess.Popen(
                argv,
                executable=f"/proc/self/fd/{emulator}",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(kernel, root, python, emulator),
                user=user and user.pw_uid,
                group=user and user.pw_gid,
                extra_groups=user and [],
                cwd=work,
                env={"PATH": os.environ.get("PATH", os.defpath), "TMPDIR": str(work), "LC_ALL": "C"},
            )
        )
        panicked = False

        def watch(line: str) -> None:
            nonlocal panicked
            panicked = panicked or bool(PANIC.search(line))
            tell(line)

        ended = _follow(process, timeout_s, watch)
    if not ended:
        raise RoundError(f"the node had not switched off after {timeout_s:g} s")
    if process.returncode != 0:
        raise RoundError(f"the node's QEMU ended with {process.returncode}")
    if not panicked and _reset_by_itself(work / "resets"):
        raise NodeFaultError("the node was reset: a CPU could not enter its handler for faults")


def guest_fault(failure: str) -> str:
    """By which line the report of a failed test tells that the emulator has lost a guest; "" when none does."""
    found = _GUEST_FAULT.search(failure)
    return " ".join(found[0].split()[1:]) if found else ""


def _reset_by_itself(resets: Path) -> bool:
    """Whether QEMU's log of CPU resets has one by a triple fault."""
    return any(line.rstrip() == TRIPLE_FAULT for line in resets.read_text(errors="replace").splitlines())


def _drive(serial: str, path: str, options: str) -> Iterator[str]:
    yield from ("-drive", f"if=none,id={serial},format=raw,file={path},{options}")
    yield from ("-device", f"nvme,drive={serial},serial={serial}")


def _follow(process: "subprocess.Popen[bytes]", timeout_s: float, tell: Callable[[str], None]) -> bool:
    """Tell the console and QEMU's own words until the process ends. False when it had to be killed."""
    assert process.stdout is not None
    assert process.stderr is not None
    late = threading.Event()
    fault, heard = "", time.monotonic()

    def kill() -> None:
        late.set()
        process.kill()

    def tell_errors() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            # TCG says for every CPU that it was told to announce what it does not have.
            if b"TCG doesn't support requested feature" not in line:
                tell(f"qemu: {line.decode(errors='replace').rstrip()}")

    def watch_silence() -> None:
        nonlocal fault
        while process.poll() is None:
            if not fault and time.monotonic() - heard > SILENT_S:
                fault = f"it has said nothing for {SILENT_S:g} s"
                process.kill()
            time.sleep(1)

    timer = threading.Timer(timeout_s, kill)
    trace = threading.Timer(TRACE_S, process.kill)
    silence = threading.Thread(target=watch_silence)
    errors = threading.Thread(target=tell_errors)
    timer.start()
    errors.start()
    silence.start()
    try:
        for raw in process.stdout:
            heard = time.monotonic()
            line = raw.decode(errors="replace").rstrip("\r\n")
            tell(line)
            if not fault and FAULT.search(line):
                fault = line.strip()
                trace.start()
        process.wait()
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()
        trace.cancel()
        errors.join()
        silence.join()
    if fault:
        raise NodeFaultError(f"the node's kernel is lost: {fault}")
    return not late.is_set()


# ---------------------------------------------------------------------------------------------------------------------
# what comes out


def _unpack(archive: Path, files: Path) -> int:
    try:
        with tarfile.open(archive, "r:") as tar:
            tar.extractall(files, filter="data")
        return int((files / "rc").read_text())
    except (tarfile.TarError, OSError, ValueError) as exc:
        raise RoundError(f"the node left no results: {exc}") from exc


def main() -> None:
    parser = argparse.ArgumentParser(description="run a command in the lab node; without one, just boot it")
    parser.add_argument("--results", type=Path, help="keep what the node leaves in /lab/results here")
    parser.add_argument("--later-kernel", action="store_true", help="boot the kernel of backports")
    parser.add_argument("--timeout", type=float, default=ROUND_S, metavar="SECONDS")
    parser.add_argument("command", nargs="?", default="true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        files = args.results or Path(scratch)
        try:
            done = run(
                args.command,
                cache=machine_setup.cache_dir(),
                files=files,
                timeout_s=args.timeout,
                later_kernel=args.later_kernel,
                tell=lambda line: print(line, flush=True),
            )
        except (RoundError, image.ImageError, archive.BuildError) as exc:
            sys.exit(f"lab: {exc}")
    print(f"lab: exit code {done.rc} after {done.took_s:.1f} s", file=sys.stderr)
    sys.exit(done.rc)


if __name__ == "__main__":
    main()
