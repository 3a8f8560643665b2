"""What `make package` makes: each of the three installs by itself, and starts a machine where the checkout is not."""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from driver import __version__
from driver.cli.manual import manual_page
from driver.devhost import hcl1
from tests.guest.build import Guest
from tests.leftovers import none_left
from tests.package import build, deb
from tests.package.tree import PYTHON

CHECKOUT = Path(__file__).resolve().parents[2]
GUEST_READY = "chv test guest: ready"
# Whoever installs a package has no checkout, and need not have a home.
CLEAN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """One build."""

    wheel: Path
    onefile: Path
    deb: Path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return built(tmp_path_factory.mktemp("dist"))


def built(into: Path) -> Packages:
    wheel, onefile, deb = build.build(into)
    return Packages(wheel=wheel, onefile=onefile, deb=deb)


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    env = {**CLEAN, **environment}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def boot(chv: Path, guest: Guest, short_dir: Path, **environment: str) -> str:
    """The hello job, as `chv dev` runs it with that executable as its plugin."""
    agent = short_dir / "agent.hcl"
    agent.write_text(
        f"""
        plugin "chv" {{
          config {{
            data_dir    = "{short_dir}/data"
            run_dir     = "{short_dir}/run"
            image_paths = ["{guest.directory}"]
          }}
        }}
        """
    )
    job = CHECKOUT / "nomad-jobs/hello.nomad.hcl"
    options = ("--config", agent, "--meta", f"chv_guest={guest.directory}")
    with none_left(run_dir=short_dir / "run", data_dir=short_dir / "data"):
        return run(chv, "dev", *options, job, cwd=short_dir, **environment)


def unpacked(deb: Path, into: Path) -> dict[str, str]:
    """The files of the package beneath `into`, each with what it is."""
    run("dpkg-deb", "--extract", deb, into)
    return {
        str(path.relative_to(into)): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in into.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_the_wheel_holds_the_two_packages_and_the_executable(packages: Packages) -> None:
    with zipfile.ZipFile(packages.wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (name for name in names if name.endswith("/entry_points.txt"))
        assert "chv = driver.main:main" in archive.read(entry_points).decode()
    installed = {name for name in names if ".dist-info/" not in name}
    sources = (path for top in ("driver", "vmlib") for path in (CHECKOUT / top).rglob("*.py*"))
    ours = {str(path.relative_to(CHECKOUT)) for path in sources if path.suffix in (".py", ".pyi")}
    assert installed == ours


def test_the_wheel_installs_into_an_environment_of_its_own(packages: Packages, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", f"--python={venv}/bin/python", "install")
    # Its dependencies are where the tests have theirs: pip would fetch the same ones again.
    run(*pip, "--no-deps", "--no-index", "--quiet", packages.wheel)
    there = next((venv / "lib").glob("python*/site-packages"))
    (there / "more.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    assert run(venv / "bin/chv", "--version", cwd=tmp_path) == f"chv {__version__}\n"
    where = run(venv / "bin/python", "-c", "import driver; print(driver.__file__)", cwd=tmp_path)
    assert where.startswith(str(venv))


def test_the_one_file_executable_is_a_plugin_that_starts_machines(
    packages: Packages, guest: Guest, short_dir: Path
) -> None:
    chv = short_dir / "chv"  # a plugin is known by its file's name
    shutil.copy(packages.onefile, chv)
    console = boot(chv, guest, short_dir, PEX_ROOT=str(short_dir / "unpacked"), PATH=path_with_python(short_dir))
    assert GUEST_READY in console
    assert list((short_dir / "unpacked").iterdir())


def path_with_python(directory: Path) -> str:
    """A PATH on which python3 is the Python that the packages were made for."""
    (directory / "python").mkdir()
    (directory / "python/python3").symlink_to(sys.base_prefix + f"/bin/python{PYTHON}")
    return f"{directory}/python:{CLEAN['PATH']}"


def test_what_the_debian_package_unpacks_starts_machines_and_changes_no_file_of_it(
    packages: Packages, guest: Guest, short_dir: Path
) -> None:
    root = short_dir / "root"
    before = unpacked(packages.deb, root)
    if python_of_the_system() == PYTHON:
        assert run(root / "usr/bin/chv", "--version", cwd=short_dir) == f"chv {__version__}\n"
        assert GUEST_READY in boot(root / "usr/lib/nomad/plugins/chv", guest, short_dir)
    written = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} - before.keys()
    # The one thing that its prerm removes.
    assert written <= {"usr/lib/chv/site/hcl2/.lark_cache.bin"}
    script = subprocess.run(["dpkg-deb", "--info", packages.deb, "prerm"], capture_output=True, text=True, check=True)
    assert "rm -f /usr/lib/chv/site/hcl2/.lark_cache.bin" in script.stdout


def python_of_the_system() -> str:
    done = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def test_the_debian_package_is_rooted_in_one_place_and_its_config_says_nothing_yet(
    packages: Packages, tmp_path: Path
) -> None:
    files = unpacked(packages.deb, tmp_path)
    elsewhere = {name for name in files if not name.startswith(("usr/lib/chv/", "usr/share/"))}
    assert elsewhere == {"usr/bin/chv", "usr/lib/nomad/plugins/chv", "etc/nomad.d/chv.hcl"}
    assert hcl1.parse((tmp_path / "etc/nomad.d/chv.hcl").read_text()) == {}
    listing = run("dpkg-deb", "--contents", packages.deb).splitlines()
    assert {line.split()[1] for line in listing} == {"root/root"}
    assert {line.split()[0] for line in listing} == {"drwxr-xr-x", "-rwxr-xr-x", "-rw-r--r--", "lrwxrwxrwx"}
    manual = gzip.decompress((tmp_path / "usr/share/man/man1/chv.1.gz").read_bytes())
    assert manual.decode() == manual_page()
    for place in deb.COMPLETIONS.values():
        assert "doctor" in (tmp_path / place).read_text()
    changes = gzip.decompress((tmp_path / "usr/share/doc/chv/changelog.gz").read_bytes())
    assert changes == (CHECKOUT / "CHANGELOG.md").read_bytes()


@pytest.mark.timeout(280)
def test_a_second_build_of_the_same_checkout_has_the_same_bytes(packages: Packages, tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        again = built(tmp_path / "dist")
    finally:
        os.umask(old)
    for one, other in ((packages.wheel, again.wheel), (packages.onefile, again.onefile), (packages.deb, again.deb)):
        assert one.name == other.name
        assert one.read_bytes() == other.read_bytes(), one.name
