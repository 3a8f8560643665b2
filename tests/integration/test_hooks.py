"""Hooks as an operator plugs them in: the documented example on real machines, and hooks that misbehave."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from driver.devhost.host import StartFailedError
from tests.guest.build import Guest
from tests.integration.machines import CHECKOUT, NOTHING, READY, Host, host_for
from tests.integration.nodes import Node, until_says
from vmlib import hook_run
from vmlib.errors import HostError, NoCapacityError, SpecError
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.select import attach
from vmlib.machine import Machines
from vmlib.settings import HostSettings
from vmlib.sweep import Sweeper

MIB = 1 << 20
EXAMPLE = CHECKOUT / "docs" / "examples" / "chv-shelf"
VOLUME = {"meta.volume": "pg"}


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed by pip as an operator does it."""
    target = tmp_path_factory.mktemp("packages")
    source = tmp_path_factory.mktemp("source") / "chv-shelf"
    shutil.copytree(EXAMPLE, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, timeout=120)
    return target


@pytest.fixture
def shelf(short_dir: Path, packages: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with one volume, and the hook that knows it within reach of this process and of those it starts."""
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("PYTHONPATH", str(packages))
    directory = short_dir / "shelf"
    directory.mkdir()
    (directory / "pg.raw").write_bytes(b"from-the-shelf".ljust(MIB, b" "))
    return directory


@pytest.fixture
def host(request: pytest.FixtureRequest, shelf: Path, guest: Guest, short_dir: Path) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, getattr(request, "param", "fake")) as one:
        one.hooks = (f"shelf:{shelf}",)
        yield one


def names(shelf: Path) -> set[str]:
    return {path.name for path in shelf.iterdir()}


# ---------------------------------------------------------------------------------------------------------------------
# the example


@pytest.mark.parametrize("host", ["qemu"], indirect=True)
def test_a_guest_reads_and_writes_the_volume_itself_and_the_next_machine_finds_it(host: Host, shelf: Path) -> None:
    one = host.start("read=pg write=pg:kept", labels=VOLUME)
    one.until_line("wrote pg")
    assert "read pg from-the-shelf" in one.out.lines
    assert names(shelf) == {"pg.raw", "pg.lock"}
    one.machine.destroy()
    assert names(shelf) == {"pg.raw"}
    two = host.start("read=pg", task="other", labels=VOLUME)
    two.until_line("read pg kept")
    two.machine.destroy()


def test_a_volume_goes_to_one_machine_at_a_time_and_the_other_is_told_who_has_it(host: Host, shelf: Path) -> None:
    one = host.start(labels=VOLUME)
    with pytest.raises(NoCapacityError) as refused:
        host.start(task="other", labels=VOLUME)
    assert str(refused.value) == (
        f"hook 'shelf:{shelf}': meta volume = 'pg': in use by {one.spec.name} ({one.spec.id})"
    )
    assert names(shelf) == {"pg.raw", "pg.lock"}  # and the refused one has not taken it away
    one.machine.destroy()
    host.start(task="other", labels=VOLUME).machine.destroy()
    assert names(shelf) == {"pg.raw"}


def test_a_machine_that_wants_no_volume_gets_none(host: Host, shelf: Path) -> None:
    one = host.start()
    assert names(shelf) == {"pg.raw"}
    one.machine.destroy()


@pytest.mark.parametrize("volume", ["nosuch", "../pg", "a b", ""])
def test_what_the_hook_says_to_the_jobs_author_is_his(host: Host, volume: str) -> None:
    with pytest.raises(SpecError, match=r"hook 'shelf:.*': meta volume = "):
        host.start(labels={"meta.volume": volume})


def test_a_start_that_fails_later_gives_the_volume_back(host: Host, shelf: Path) -> None:
    spec = host.spec(labels=VOLUME)
    assert spec.boot is not None
    with pytest.raises(SpecError, match="kernel"):
        host.run(replace(spec, boot=replace(spec.boot, kernel=replace(spec.boot.kernel, relative="none"))))
    assert names(shelf) == {"pg.raw"}


@pytest.mark.parametrize("place", ["start.hooks", "start.spawned", "start.recorded"])
@pytest.mark.parametrize("who", ["next start", "destroy", "sweep"])
def test_whoever_comes_after_a_crash_gives_the_volume_back(host: Host, shelf: Path, place: str, who: str) -> None:
    spec = host.spec(labels=VOLUME, alive_while=host.directory / "gone")
    with host.elsewhere(spec, failpoint=place) as starter:
        _, words = starter.communicate(timeout=60)
        assert starter.returncode == -signal.SIGKILL, words.decode()
    assert names(shelf) == {"pg.raw", "pg.lock"}
    host.hooks = ()  # taken out of the config meanwhile: the journal knows which hook it was
    match who:
        case "next start":
            host.start().machine.destroy()  # of the same task
        case "destroy":
            host.machines.destroy(spec.name, spec.id)
        case "sweep":
            mark = host.layout.machine(spec.name).mark
            mark.write_text(mark.read_text().replace('"alive_while": ""', f'"alive_while": "{host.directory}/gone"'))
            sweeper = Sweeper(machines=host.machines, owner="dev", gone_s=0.0, orphan_grace_s=0.0)
            assert sweeper.sweep(time.monotonic()) == [spec.name]
    assert names(shelf) == {"pg.raw"}
    assert host.processes() == NOTHING


async def test_a_job_on_a_node_takes_a_volume_by_its_meta(fake_node: Node, shelf: Path) -> None:
    fake_node.block = f'hooks = ["shelf:{shelf}"]'
    fake_node.write_agent_file()
    checks = fake_node.command("doctor").stdout
    assert "hook shelf" in checks
    assert "chv_shelf:Shelf" in checks
    job = fake_node.job(task='meta {\n volume = "pg"\n }')
    async with fake_node.host(job) as first, fake_node.host(job) as second:
        await first.start()
        await until_says(first, READY)
        with pytest.raises(StartFailedError, match="meta volume = 'pg': in use by ") as refused:
            await second.start()
        assert refused.value.recoverable
        first.kill()
        await first.wait()
        await first.destroy()
        assert names(shelf) == {"pg.raw"}


async def test_a_hook_that_is_not_installed_fails_starts_and_doctor_says_so(fake_node: Node) -> None:
    fake_node.block = 'hooks = ["nosuch"]'
    fake_node.write_agent_file()
    done = fake_node.command("doctor")
    assert done.returncode == 1
    assert "no machine starts without it" in done.stdout
    async with fake_node.host(fake_node.job()) as host:
        with pytest.raises(StartFailedError, match="hook 'nosuch': no installed package") as refused:
            await host.start()
        assert not refused.value.recoverable


# ---------------------------------------------------------------------------------------------------------------------
# hooks that misbehave

ODD = '''
import ctypes, os, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
from vmlib.hooks import GivenDisk, Prepared
from vmlib.spec import MountSpec

class Odd:
    """Told what to do by its argument, DIRECTORY:WHAT."""

    def __init__(self, argument):
        directory, self.what = argument.split(":")
        self.directory = Path(directory)

    def preflight(self, spec, context):
        (self.directory / "pid").write_text(str(os.getpid()))
        context.note({"x": "y"})
        (self.directory / "made").touch()
        match self.what:
            case "hang": time.sleep(1000)
            case "hang-with-child": subprocess.run(["sleep", "1000"])
            case "die": os._exit(3)
            case "crash": ctypes.string_at(0)
            case "raise": raise KeyError("what")
            case "print": print("x" * 1000000); os.write(1, b"y" * 1000000)
            case "nothing": return None
            case "vcpus": return Prepared(spec=replace(spec, vcpus=64))
            case "words": return Prepared(spec=replace(spec, boot=replace(spec.boot, cmdline="say=from-the-hook")))
            case "share":
                one = MountSpec(source=self.directory, guest_path="/srv/data", readonly=True)
                return Prepared(spec=replace(spec, mounts=(*spec.mounts, one)))
            case "missing": return Prepared(disks=(GivenDisk(name="a", path=self.directory / "none"),))
            case "fifo":
                os.mkfifo(self.directory / "fifo")
                return Prepared(disks=(GivenDisk(name="a", path=self.directory / "fifo", readonly=True),))
            case "qcow2":
                (self.directory / "a.qcow2").write_bytes(b"QFI\\xfb" + bytes(200))
                return Prepared(disks=(GivenDisk(name="a", path=self.directory / "a.qcow2", format="qcow2"),))
            case "many": return Prepared(disks=(GivenDisk(name="a", path=Path("/etc/hostname")),) * 17)
        return Prepared()

    def postflight(self, state, context):
        assert state == {"x": "y"}
        if (self.directory / "stuck").exists():
            time.sleep(1000)
        (self.directory / "made").unlink(missing_ok=True)
'''


@pytest.fixture
def odd(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that such a hook works in."""
    packages, directory = short_dir / "odd-packages", short_dir / "odd"
    info = packages / "odd-1.dist-info"
    info.mkdir(parents=True)
    directory.mkdir()
    (packages / "odd.py").write_text(ODD)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[chv.hooks]\nodd = odd:Odd\n")
    monkeypatch.syspath_prepend(packages)
    return directory


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("hang", NoCapacityError, "no end after 2 s"),
        ("hang-with-child", NoCapacityError, "no end after 2 s"),
        ("die", HostError, "its process ended without an answer"),
        ("crash", HostError, "its process ended without an answer"),
        ("raise", HostError, "KeyError: 'what'"),
        ("nothing", HostError, "preflight gave a NoneType, expected vmlib.hooks.Prepared"),
        ("vcpus", HostError, "changed vcpus of the machine, which is not a hook's to change"),
        ("missing", HostError, "disk a: .*/none: no such file or directory"),
        ("fifo", HostError, "disk a: .*/fifo is not a regular file"),
        ("qcow2", SpecError, "disk a = '.*/a.qcow2': qcow2 version 0, expected 2 or 3"),
        ("many", HostError, "gave 17 disks, expected at most 16"),
    ],
)
def test_a_hook_that_misbehaves_fails_the_start_by_name_and_is_taken_back(
    fake: Host, odd: Path, monkeypatch: pytest.MonkeyPatch, what: str, error: type[Exception], words: str
) -> None:
    monkeypatch.setattr(hook_run, "PREFLIGHT_S", 2.0)
    fake.hooks = (f"odd:{odd}:{what}",)
    began = time.monotonic()
    with pytest.raises(error, match=f"hook 'odd:.*:{what}': {words}"):
        fake.start()
    assert time.monotonic() - began < 10
    assert not (odd / "made").exists()
    assert working_in(odd) == []
    assert not fake.layout.machine("alloc/web").journal.exists()


@pytest.mark.parametrize("what", ["print", "words"])
def test_what_a_hook_prints_does_no_harm_and_what_it_changes_is_what_starts(fake: Host, odd: Path, what: str) -> None:
    fake.hooks = (f"odd:{odd}:{what}",)
    one = fake.start("say=from-the-job")
    one.until_line("say from-the-hook" if what == "words" else "say from-the-job")
    one.machine.destroy()
    assert not (odd / "made").exists()


@pytest.mark.needs("virtiofsd")
def test_a_hook_gives_a_directory_as_a_share(qemu: Host, odd: Path) -> None:
    qemu.hooks = (f"odd:{odd}:share",)
    (odd / "of-hook").write_text("hello\n")
    one = qemu.start("mount=chv:srv-data:/m get=/m/of-hook put=/m/new:x say=done")
    one.until_line("say done")
    assert "got /m/of-hook hello" in one.out.lines
    assert not (odd / "new").exists()  # it is read-only
    one.machine.destroy()
    assert not (odd / "made").exists()


def test_a_postflight_that_hangs_keeps_nobody_from_stopping_and_is_tried_again(
    fake: Host, odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook_run, "POSTFLIGHT_S", 1.0)
    fake.hooks = (f"odd:{odd}:",)
    one = fake.start()
    one.until_line(READY)
    (odd / "stuck").touch()
    one.machine.press_power_button()
    assert one.end().exit_code == 0
    began = time.monotonic()
    with pytest.raises(HostError, match=r"hook 'odd:.*': no end after 1 s"):
        one.machine.destroy()
    assert time.monotonic() - began < 8
    assert fake.processes() == NOTHING
    assert list(fake.layout.runs.iterdir()) == []  # all else was taken back
    (odd / "stuck").unlink()
    fake.machines.destroy(one.spec.name, one.spec.id)
    assert not (odd / "made").exists()


def test_a_hook_works_no_longer_than_the_process_that_called_it(fake: Host, odd: Path) -> None:
    """Else it would be at work on a volume that the next process takes back."""
    fake.hooks = (f"odd:{odd}:hang-with-child",)
    script = "import sys; from tests.integration.test_hooks import start_alone; start_alone(*sys.argv[1:])"
    words = [str(fake.directory), str(fake.guest), fake.hooks[0], str(odd.parent / "odd-packages")]
    with subprocess.Popen([sys.executable, "-c", script, *words], cwd=CHECKOUT) as starter:
        deadline = time.monotonic() + 30
        while not (odd / "made").exists() or len(working_in(odd)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        starter.kill()
    deadline = time.monotonic() + 5
    while working_in(odd):
        assert time.monotonic() < deadline, working_in(odd)
        time.sleep(0.05)
    fake.machines.destroy("alloc/web", f"{fake.directory.name}/web/0")
    assert not (odd / "made").exists()


def start_alone(directory: str, guest: str, hook: str, packages: str) -> None:
    sys.path.insert(0, packages)
    one = Host(Path(directory), Path(guest), "fake", hooks=(hook,))
    Machines(HostSettings(layout=one.layout, hooks=one.hooks), lambda _: (Fake(), "x"), attach).start(one.spec())


def working_in(odd: Path) -> list[str]:
    """What the process of a hook, or one that it started, runs."""
    if not (odd / "pid").exists():
        return []
    session = (odd / "pid").read_text()
    found = subprocess.run(["ps", "-eo", "sid,stat,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in found.splitlines()[1:]]
    return [args for sid, state, args in rows if sid == session and state[0] != "Z"]
