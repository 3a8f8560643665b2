"""Whether a start of a machine still has something on this host, for whoever wants what it holds."""

from pathlib import Path

from vmlib import files, process
from vmlib.paths import Layout, RunPaths


def vmm_or_keeper_lives(run_dir: Path) -> bool:
    run = RunPaths(run_dir)
    for file in (run.vmm, run.keeper):
        if (who := process.load_identity(file)) is not None and process.alive(who):
            return True
    # A keeper that has not said its name yet.
    return _locked(run.keeper_lock)


def being_handled(layout: Layout, name: str) -> bool:
    """Somebody starts the machine of that name, or takes it back, right now: perhaps the caller."""
    return _locked(layout.machine(name).lock)


def _locked(path: Path) -> bool:
    try:
        with files.locked(path, blocking=False):
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
