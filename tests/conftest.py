"""What every tier shares: needs and tiers, coroutines as tests, golden files, the test guest, this checkout's `chv`."""

import asyncio
import inspect
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import needs
from tests import setup as machine_setup
from tests.guest import archive, build

# How long an example takes says something about the machine, not about what is tested.
settings.register_profile("chv", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("chv")

TESTS = Path(__file__).parent
_TEST_S = 180.0
_CLEAN_UP_S = 30.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regen", action="store_true", help="write golden files anew instead of comparing with them")


def pytest_configure(config: pytest.Config) -> None:
    try:
        needs.required()
    except ValueError as exc:
        raise pytest.UsageError(str(exc)) from exc


# ---------------------------------------------------------------------------------------------------------------------
# needs and tiers


def tier_of(path: Path) -> str:
    relative = path.relative_to(TESTS) if path.is_relative_to(TESTS) else path
    return relative.parts[0]


def needs_of(item: pytest.Item) -> tuple[str, ...]:
    marked = (name for mark in item.iter_markers("needs") for name in mark.args)
    return (*needs.TIERS.get(tier_of(item.path), ()), *marked)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in needs_of(item):
        reason = needs.lacking(name)
        if reason and name in needs.required():
            pytest.fail(f"{name} is required by CHV_TEST_REQUIRE: {reason}", pytrace=False)
        if reason:
            pytest.skip(f"needs {name}: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for tier, reason in _tiers_not_run().items():
        terminalreporter.write_line(f"{tier} tests did not run: {reason}")


def _tiers_not_run() -> dict[str, str]:
    reasons = {tier: next(filter(None, map(needs.lacking, names)), "") for tier, names in needs.TIERS.items()}
    return {tier: reason for tier, reason in reasons.items() if reason}


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that is a coroutine has a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names if name in pyfuncitem.funcargs}
    own = pyfuncitem.get_closest_marker("timeout")  # a test with a limit of its own, as a soak, has it here as well
    limit_s = _TEST_S if own is None else max(_TEST_S, float(own.args[0]) - _CLEAN_UP_S)
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**arguments), limit_s))
    return True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """A run of whole tiers in which a required one has no test at all would pass by saying nothing."""
    asked = {path.name for path in map(Path, config.args) if path.resolve().parent == TESTS}
    have = {tier_of(item.path) for item in items}
    empty = sorted(
        tier for tier, names in needs.TIERS.items() if tier in asked - have and needs.required().intersection(names)
    )
    if empty:
        raise pytest.UsageError(f"no tests in {', '.join(empty)}, which CHV_TEST_REQUIRE asks for")
    if hasattr(config, "workerinput"):
        # Side by side, what boots a whole distribution begins first: at the end everybody would wait for it alone.
        items.sort(key=lambda item: "cloud-image" not in needs_of(item))


# ---------------------------------------------------------------------------------------------------------------------
# fixtures


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` compares `text` whole with the file `golden/<name>` of this tier; --regen writes it."""
    directory = TESTS / tier_of(request.path) / "golden"

    def check(name: str, text: str) -> None:
        path = directory / name
        if request.config.getoption("--regen"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        expected = path.read_text() if path.exists() else ""
        assert text == expected, f"{path.relative_to(TESTS.parent)} differs; `pytest --regen` writes it anew"

    return check


@pytest.fixture(scope="session")
def cache() -> Path:
    """A directory that outlives the run and may be shared with other checkouts."""
    return machine_setup.cache_dir()


@pytest.fixture(scope="session")
def guest(cache: Path) -> build.Guest:
    """Kernel, initrd and disk images of the test guest. What it does is in tests/guest/README.md."""
    try:
        return build.ensure(cache)
    except archive.BuildError as exc:
        if "qemu" in needs.required():
            raise
        pytest.skip(f"needs the test guest: {exc}")


@pytest.fixture(scope="session")
def plugin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with nothing but an executable `chv` of this checkout, as Nomad's plugin_dir wants it."""
    directory = tmp_path_factory.mktemp("plugins")
    machine_setup.write_executable(directory / "chv", python=Path(sys.executable))
    return directory


@pytest.fixture(scope="session")
def chv(plugin_dir: Path) -> Path:
    """The executable of this checkout."""
    return plugin_dir / "chv"


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """An own directory with a short path, so that socket paths beneath it stay within the 107 bytes they may have."""
    directory = Path(tempfile.mkdtemp(prefix="ct-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
