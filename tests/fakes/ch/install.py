"""Puts the fake into a directory as `cloud-hypervisor`, with its code beside it, so that any user may run it there."""

import json
import shutil
from pathlib import Path
from typing import Any

_CHECKOUT = Path(__file__).parent.parent.parent.parent
_CODE = (
    "tests/__init__.py",
    "tests/fakes/__init__.py",
    "vmlib/__init__.py",
    "vmlib/hypervisor/__init__.py",
    "vmlib/hypervisor/fake_guest.py",
    "vmlib/hypervisor/fake_ports.py",
)


def install(directory: Path, **behaviour: Any) -> Path:
    """Returns the executable. `behaviour` is what behaviour.py explains; it can be changed later by `tell`."""
    files = [*_CODE, *(str(path.relative_to(_CHECKOUT)) for path in _own())]
    directory.chmod(directory.stat().st_mode | 0o755)
    for name in files:
        target = directory / ".fake" / name
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.copyfile(_CHECKOUT / name, target)
        target.chmod(0o644)
    executable = directory / "cloud-hypervisor"
    shutil.copyfile(_CHECKOUT / "tests/fakes/cloud-hypervisor", executable)
    executable.chmod(0o755)
    tell(executable, **behaviour)
    return executable


def tell(executable: Path, **behaviour: Any) -> None:
    """How those that are started from now on behave."""
    beside = executable.with_name(f"{executable.name}.json")
    beside.write_text(json.dumps(behaviour))
    beside.chmod(0o644)


def _own() -> list[Path]:
    here = Path(__file__).parent
    return [path for path in here.iterdir() if path.suffix in (".py", ".json")]
