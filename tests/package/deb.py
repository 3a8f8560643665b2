"""The Debian package: an environment of its own in /usr/lib/chv, on the system's Python; no network to install it.

Whoever builds it needs `dpkg-deb` alone, and no root. The same input gives the same bytes.
"""

import gzip
import os
import shutil
import sys
from pathlib import Path

from driver import __version__
from driver.cli.manual import manual_page
from tests.package.tree import CHECKOUT, PYTHON, compile_tree, run

SCRIPTS = Path(__file__).parent / "debian"
PREFIX = Path("usr/lib/chv")
PLUGIN_DIR = Path("usr/lib/nomad/plugins")
CONFIG = Path("etc/nomad.d/chv.hcl")
PAGES = Path("usr/share/doc/chv")
# Debian 12 has virtiofsd beside QEMU.
RECOMMENDS = ("ovmf", "passt", "swtpm", "virtiofsd | qemu-system-common (<< 1:8)", "dmidecode")
_COMPLETION = "import sys; from driver.cli import main; sys.exit(main(['completion', sys.argv[1]]))"
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/chv",
    "zsh": "usr/share/zsh/vendor-completions/_chv",
    "fish": "usr/share/fish/vendor_completions.d/chv.fish",
}
SUGGESTS = ("containernetworking-plugins", "iptables", "nfs-common", "nomad")


def build_deb(tree: Path, glibc: int, target: Path, work: Path) -> None:
    """Write the package. `tree` is what `make_tree` made, `work` a directory that does not exist yet."""
    root = work
    root.mkdir()
    _environment(root, tree)
    _links(root)
    _install(SCRIPTS / "chv.hcl", root / CONFIG)
    _pages(root)
    control = root / "DEBIAN"
    _write(control / "control", _control(root, glibc))
    _write(control / "conffiles", f"/{CONFIG}\n")
    for script in ("postinst", "prerm", "postrm"):
        _install(SCRIPTS / script, control / script, mode=0o755)
    # As every build of one commit says, so that the times in the archive are not those of this run.
    options = ("--root-owner-group", "-Zzstd", "-z9")
    run("dpkg-deb", "--build", *options, str(root), str(target))


def _environment(root: Path, tree: Path) -> None:
    site = root / PREFIX / "site"
    site.parent.mkdir(parents=True)
    shutil.copytree(tree, site)
    compile_tree(site, f"/{PREFIX}/site")
    _install(SCRIPTS / "chv", root / PREFIX / "chv", mode=0o755)


def _links(root: Path) -> None:
    """One for people, one for agents. The device plugin's name is not there: an agent starts all that it finds."""
    for link in (Path("usr/bin/chv"), PLUGIN_DIR / "chv"):
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(os.path.relpath(PREFIX / "chv", link.parent))


def _pages(root: Path) -> None:
    _install(SCRIPTS / "copyright", root / PAGES / "copyright")
    _write_packed(root / PAGES / "changelog.gz", (CHECKOUT / "CHANGELOG.md").read_text())
    for page in sorted((CHECKOUT / "docs").glob("*.md")):
        _install(page, root / PAGES / "docs" / page.name)
    for file in sorted(one for one in (CHECKOUT / "docs/examples").rglob("*") if one.suffix in (".py", ".toml")):
        _install(file, root / PAGES / file.relative_to(CHECKOUT))
    for job in sorted((CHECKOUT / "nomad-jobs").glob("*.hcl")):
        _install(job, root / PAGES / "nomad-jobs" / job.name)
    _write_packed(root / "usr/share/man/man1/chv.1.gz", manual_page())
    for shell, place in COMPLETIONS.items():
        _write(root / place, run(sys.executable, "-c", _COMPLETION, shell))


def _control(root: Path, glibc: int) -> str:
    used = sum(-(-path.lstat().st_size // 1024) for path in root.rglob("*") if path.is_file())
    major, minor = PYTHON.split(".")
    depends = (
        *(f"python3 (>= {PYTHON})", f"python3 (<< {major}.{int(minor) + 1})", "adduser"),
        *(f"libc6 (>= 2.{glibc})", "libstdc++6", "qemu-system-x86 (>= 1:7.2)", "qemu-utils"),
    )
    return (
        "Package: chv\n"
        f"Version: {__version__}\n"
        f"Architecture: {run('dpkg', '--print-architecture').strip()}\n"
        "Section: admin\n"
        "Priority: optional\n"
        "Maintainer: The chv project <chv@localhost>\n"
        f"Installed-Size: {used}\n"
        f"Depends: {', '.join(depends)}\n"
        f"Recommends: {', '.join(RECOMMENDS)}\n"
        f"Suggests: {', '.join(SUGGESTS)}\n"
        "Description: virtual machines on whole CPU cores, for HashiCorp Nomad\n"
        " A task driver plugin that boots machines under Cloud Hypervisor or QEMU, each vCPU\n"
        " on a core of its own, and the command-line tool of the node, chv.\n"
    )


def _install(source: Path, target: Path, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def _write_packed(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
