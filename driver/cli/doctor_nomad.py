"""What `chv doctor` says of the Nomad agent: its version, its numbers of allocs, and how it finds this plugin."""

import contextlib
import os
import sys
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

from driver import __version__
from driver.cli.doctor_agent import AgentFacts, AgentSettings, look_at_agent
from driver.cli.doctor_check import Check
from driver.main import CORES_DEVICE, DRIVER
from vmlib.errors import HostError
from vmlib.process import run_tool

MIN_VERSION = (1, 1, 0)
_VERSION_S = 10.0
_ASKS_FOR_STATS = (1, 10, 2)  # from here on only where telemetry says so
_SWITCH = "telemetry { publish_allocation_metrics = true }"


def nomad_checks(settings: AgentSettings, data_dir: Path) -> Iterator[Check]:
    facts = look_at_agent(settings, os.environ)
    yield version_check(facts)
    yield from user_checks(facts.users)
    if settings.files or facts.running is not None:
        yield telemetry_check(facts)
    yield from plugin_checks(facts, data_dir)


def version_check(facts: AgentFacts) -> Check:
    if facts.running is not None:
        text = f"{facts.running.version}, the agent answers at {facts.settings.address}"
    elif facts.program_version:
        silent = f"no agent answers at {facts.settings.address} ({facts.why_silent})"
        text = f"{facts.program_version} ({facts.program}); {silent}"
    elif facts.program:
        return Check(
            "nomad", "warning", f"{facts.program} version: {facts.program_fault}", "install Nomad 1.1 or later"
        )
    else:
        cure = "install Nomad 1.1 or later; `chv dev` does without"
        return Check("nomad", "warning", f"not installed, and nothing answers at {facts.settings.address}", cure)
    if facts.version and facts.version < MIN_VERSION:
        return Check("nomad", "problem", f"{text}: too old, expected at least 1.1", "install Nomad 1.1 or later")
    return Check("nomad", "ok", text)


def user_checks(users: AbstractSet[int]) -> Iterator[Check]:
    """A plugin runs as its agent does; nothing is said where none runs."""
    if others := sorted(users - {0}):
        found = f"an agent of this host runs as uid {', '.join(map(str, others))}: no machine starts there"
        yield Check("nomad user", "warning", found, "User=root in the unit of the agent that is a client")
    elif users:
        yield Check("nomad user", "ok", "the agent runs as root")


def telemetry_check(facts: AgentFacts) -> Check:
    """`nomad alloc status -stats` shows nothing of any task whose numbers the agent does not ask for."""
    name, where = "nomad telemetry", ", ".join(map(str, facts.settings.files)) or "the agent's file"
    if facts.version and facts.version < _ASKS_FOR_STATS:
        return Check(name, "ok", "an agent before 1.10.2 asks for the numbers of allocs always")
    on = facts.running.telemetry if facts.running is not None else facts.settings.telemetry
    if on:
        return Check(name, "ok", "the agent asks for the numbers of allocs")
    lack = "the agent does not ask for the numbers of allocs: `nomad alloc status -stats` shows none"
    if facts.settings.telemetry:
        return Check(name, "warning", lack, f"restart the agent: {where} has {_SWITCH}")
    return Check(name, "warning", lack, f"set {_SWITCH} in {where}")


def plugin_checks(facts: AgentFacts, data_dir: Path) -> Iterator[Check]:
    """Whether the agent finds this program under the names that it knows."""
    settings = facts.settings
    plugin_dir = settings.plugin_dir
    if plugin_dir is None and facts.running is not None and facts.running.plugin_dir:
        plugin_dir = Path(facts.running.plugin_dir)
    if plugin_dir is None:
        files = ", ".join(map(str, settings.files))
        found = f"{files} says neither plugin_dir nor data_dir" if files else "no agent file has our plugin block"
        cure = "set plugin_dir in it" if files else "write one, or name it: chv doctor --config FILE"
        yield Check("nomad plugin", "warning", f"{found}: where the agent looks for {DRIVER} is not known", cure)
        return
    yield link_check("nomad plugin", plugin_dir, DRIVER)
    if settings.cores_device_dir is None:
        return
    yield link_check("nomad plugin chv-cores", plugin_dir, CORES_DEVICE)
    if settings.cores_device_dir != data_dir:
        found = f'plugin "{CORES_DEVICE}" reads {settings.cores_device_dir}, and the driver publishes in {data_dir}'
        yield Check("nomad plugin chv-cores", "problem", found, f'set data_dir = "{data_dir}" in its block')


def link_check(check: str, plugin_dir: Path, name: str) -> Check:
    """Whether there is a program of that name. What is in the way is named, the agent itself would say little."""
    path = plugin_dir / name
    make = f"ln -sf $(command -v {DRIVER}) {path}"
    if not plugin_dir.is_dir():
        return Check(check, "problem", f"{plugin_dir} is not a directory", f"mkdir -p {plugin_dir} && {make}")
    if not os.path.lexists(path):
        return Check(check, "problem", f"{path} is missing: the agent has no driver of that name", make)
    if path.is_dir():  # a link would come to lie in it
        return Check(check, "problem", f"{path} is a directory", f"mv {path} {path}.old && {make}")
    if not path.is_file():
        why = f"leads to {os.readlink(path)}, which is no file" if path.is_symlink() else "is no file"
        return Check(check, "problem", f"{path} {why}", make)
    if not path.stat().st_mode & 0o111:
        return Check(check, "problem", f"{path} is not executable, the agent skips it", f"chmod a+x {path}")
    return _program_check(check, path, make)


def _program_check(check: str, path: Path, make: str) -> Check:
    """Whether it is this program, or another one that runs: an agent does not start with one that does not."""
    with contextlib.suppress(OSError):
        if os.path.samefile(path, sys.argv[0]):
            return Check(check, "ok", str(path))
    try:
        said = run_tool([str(path), "--version"], timeout_s=_VERSION_S).strip()[:100]
    except HostError as exc:
        return Check(check, "problem", f"{path} does not run: {exc}", make)
    if said != f"{DRIVER} {__version__}":
        return Check(check, "warning", f"{path} is {said!r}, and this is {DRIVER} {__version__}", make)
    return Check(check, "ok", str(path))
