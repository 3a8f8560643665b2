"""What integration tests share: the check that nothing is left behind, and nodes."""

import tempfile
from collections.abc import Callable, Generator, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest

from tests import leftovers
from tests.fakes import limited_plugin
from tests.guest.build import Guest
from tests.integration.machines import Host, host_for
from tests.integration.nodes import NOTHING, Node

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


# ---------------------------------------------------------------------------------------------------------------------
# nothing is left behind


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """For every test with a `short_dir`, which is where machines are: what it makes is gone when it ends."""
    # The tests of the check itself leave things on purpose.
    if "short_dir" not in request.fixturenames or request.path.name == "test_leftovers.py":
        yield
        return
    base: Path = request.getfixturevalue("short_dir")
    with (
        leftovers.Runs(base / "run") as runs,
        leftovers.none_left(run_dir=base / "run", data_dir=base / "data", ignore=_not_ours(base, runs.keys)),
    ):
        yield
    assert not list(base.glob("tmp/*")), "temporary files of a plugin"


def _not_ours(base: Path, keys: AbstractSet[str]) -> Callable[[str], bool]:
    """Other tests may run on this machine at the same time: things of theirs come and go."""
    temporary = f"files: {tempfile.gettempdir()}/"

    def ignore(line: str) -> bool:
        if line.startswith("files: "):
            return line.startswith(temporary) and not line.startswith(f"files: {base}/")
        if line.startswith("mounts: "):
            return not line.startswith(f"mounts: {base}/")
        if line.startswith("cgroups: "):
            return keys.isdisjoint(Path(line.removeprefix("cgroups: ")).parts)
        # A link or a namespace has no directory; machines make none yet.
        return line.startswith(("links: ", "namespaces: "))

    return ignore


# ---------------------------------------------------------------------------------------------------------------------
# nodes


@pytest.fixture
def node(request: pytest.FixtureRequest, short_dir: Path, guest: Guest, chv: Path) -> Iterator[Node]:
    """A node whose machines run on QEMU."""
    yield from _node(request, Node(base=short_dir, guest=guest.directory, chv=chv))


@pytest.fixture
def fake_node(request: pytest.FixtureRequest, short_dir: Path, guest: Guest, chv: Path) -> Iterator[Node]:
    """A node whose machines are played by the fake hypervisor."""
    yield from _node(request, Node(base=short_dir, guest=guest.directory, chv=chv, hypervisor="fake"))


def _node(request: pytest.FixtureRequest, node: Node) -> Iterator[Node]:
    node.make()
    yield node
    left = node.processes()
    node.end_machines()
    # After a failure these are no news.
    assert left == NOTHING or request.node.stash.get(_FAILED, True), "machines left behind"


# ---------------------------------------------------------------------------------------------------------------------
# machines without a plugin


@pytest.fixture(params=["fake", "qemu"])
def host(request: pytest.FixtureRequest, guest: Guest, short_dir: Path) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, request.param) as one:
        yield one


@pytest.fixture
def fake(guest: Guest, short_dir: Path) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, "fake") as one:
        yield one


@pytest.fixture
def qemu(guest: Guest, short_dir: Path) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, "qemu") as one:
        yield one


@pytest.fixture(scope="session")
def chv_limited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`chv` whose patience with Cloud Hypervisor a test may set."""
    return limited_plugin.write(tmp_path_factory.mktemp("limited"))
