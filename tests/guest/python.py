"""Python for the test guest: Debian's own, with its library in bytecode, and what plays cloud-init for the agent."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.guest.archive import BuildError, Entry

# Of the standard library, what nobody in the guest imports.
LEFT_OUT = {
    "asyncio", "concurrent", "ctypes", "curses", "dbm", "distutils", "ensurepip", "html", "http", "lib2to3",
    "multiprocessing", "pydoc_data", "sqlite3", "test", "tkinter", "turtledemo", "unittest", "venv", "wsgiref", "xml",
    "xmlrpc",
}  # fmt: skip

# What cloud-init does with a part of that kind, at each boot.
BOOTHOOKS = b"""import email, subprocess
with open("/seed/vendor-data", "rb") as file:
    message = email.message_from_binary_file(file)
for part in message.walk():
    if part.get_content_type() == "text/cloud-boothook":
        subprocess.run(["/bin/sh"], input=part.get_payload(decode=True))
"""


def packages(depends: Callable[[str], str]) -> list[str]:
    """Debian's current Python 3 and the libraries that it needs. `depends` is what apt says of a package."""
    found = re.search(r"Depends: (python3\.\d+)-minimal", depends("python3-minimal"))
    if found is None:
        raise BuildError("apt knows no python3-minimal: the test guest needs Debian's package sources")
    name = found[1]
    return [f"{name}-minimal", f"lib{name}-minimal", f"lib{name}-stdlib", "libc6", "libexpat1", "zlib1g"]


def files(root: Path) -> dict[str, Entry]:
    """What to add to the initrd, from the unpacked packages in `root`."""
    (program,) = (one for one in (root / "usr/bin").glob("python3.*") if re.fullmatch(r"python3\.\d+", one.name))
    library = root / "usr/lib" / program.name
    for name in LEFT_OUT:
        shutil.rmtree(library / name, ignore_errors=True)
    libraries = _libraries(root)
    _compile(program, library, libraries)
    found = {"bin/python3": Entry(0o100755, program.read_bytes()), "bin/boothooks": Entry(0o100644, BOOTHOOKS)}
    for path in libraries:
        found[f"lib/x86_64-linux-gnu/{path.name}"] = Entry(0o100755, path.read_bytes())
    loader = next(path for path in libraries if path.name.startswith("ld-linux"))
    found[f"lib64/{loader.name}"] = found.pop(f"lib/x86_64-linux-gnu/{loader.name}")
    for path in sorted(library.rglob("*")):
        if path.suffix == ".pyc" or path.suffix == ".so":
            found[f"usr/lib/{program.name}/{path.relative_to(library)}"] = Entry(0o100644, path.read_bytes())
    for name in list(found):
        for parent in Path(name).parents:
            if parent != Path():
                found[str(parent)] = Entry(0o040755)
    return found


def _libraries(root: Path) -> list[Path]:
    """By the names under which programs look for them."""
    wanted = r"(ld-linux-x86-64\.so\.2|lib(c|m|expat|z|dl|pthread|util|resolv)\.so\.\d+)"
    return sorted(
        {path.name: path for path in root.rglob("*.so*") if re.fullmatch(wanted, path.name)}.values(),
        key=lambda path: path.name,
    )


def _compile(program: Path, library: Path, libraries: list[Path]) -> None:
    """Bytecode beside the sources, made by that very Python: an emulated CPU takes seconds for it."""
    loader = next(path for path in libraries if path.name.startswith("ld-linux"))
    places = ":".join(sorted({str(path.parent) for path in libraries}))
    done = subprocess.run(
        [
            *(str(loader), "--library-path", places, str(program)),
            *("-I", "-S", "-m", "compileall", "-q", "-b", "--invalidation-mode", "unchecked-hash"),
            *("-s", str(library), "-p", f"/usr/lib/{program.name}", str(library)),
        ],
        env={"PYTHONHOME": str(library.parent.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode != 0:
        raise BuildError(f"the guest's Python did not compile its library: {(done.stderr or done.stdout).strip()}")
