"""The Go programs of this tier, and one run of a Go test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.conformance import gobuild
from tests.conformance.encoder import Encoder


@pytest.fixture(scope="session")
def programs(cache: Path) -> gobuild.Programs:
    """Built once for each state of their sources."""
    go = needs.find_go()
    assert go is not None, "the tier needs go"
    return gobuild.ensure(go, cache)


@pytest.fixture(scope="session")
def encoder(programs: gobuild.Programs) -> Iterator[Encoder]:
    """The real HCL libraries, ready for questions."""
    running = Encoder(programs.encode)
    yield running
    running.close()
