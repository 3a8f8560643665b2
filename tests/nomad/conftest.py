"""Agents for the tests of this tier: one dev agent for all simple jobs, and agents that keep their data."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leftovers, needs
from tests.guest import build
from tests.nomad.agent import Agent, AgentPaths


def make_agent(guest: build.Guest, plugin_dir: Path, *, dev: bool) -> Agent:
    nomad = needs.find_nomad()
    assert nomad is not None
    base = Path(tempfile.mkdtemp(prefix="cn-", dir="/tmp"))
    # A plugin_dir of its own, so that each agent's plugin process is known by its command line.
    plugins = base / "plugins"
    plugins.mkdir()
    for name in ("chv", "chv-cores"):
        (plugins / name).symlink_to(plugin_dir / "chv")
    return Agent(
        binary=str(nomad), paths=AgentPaths(base=base), plugin_dir=plugins, guest_dir=guest.kernel.parent, dev=dev
    )


def lifetime(agent: Agent) -> Iterator[Agent]:
    """Start the agent; at the end purge its jobs, stop it, and see that nothing of ours is left."""
    try:
        paths = agent.paths
        with (
            leftovers.Runs(paths.chv_run) as runs,
            leftovers.none_left(
                run_dir=paths.chv_run,
                data_dir=paths.chv_data,
                temp_dir=paths.temp,
                settle_s=20,
                # Other tests may run on this machine at the same time: groups of theirs come and go.
                ignore=lambda line: line.startswith("cgroups: ") and runs.keys.isdisjoint(Path(line).parts),
            ),
        ):
            agent.start()
            try:
                yield agent
                agent.purge_jobs()
            finally:
                agent.stop()
    finally:
        shutil.rmtree(agent.paths.base, ignore_errors=True)


@pytest.fixture(scope="session")
def dev_agent(guest: build.Guest, plugin_dir: Path) -> Iterator[Agent]:
    """One agent for every test that neither stops nor kills it."""
    yield from lifetime(make_agent(guest, plugin_dir, dev=True))


@pytest.fixture(scope="module")
def agent(guest: build.Guest, plugin_dir: Path) -> Iterator[Agent]:
    """An agent with a data directory, to be stopped, killed and started again; its jobs are apart by alloc."""
    yield from lifetime(make_agent(guest, plugin_dir, dev=False))
