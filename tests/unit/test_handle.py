"""What Nomad keeps for us with a task."""

from pathlib import Path

import pytest

from driver.handle import Handle
from vmlib.errors import HostError
from vmlib.paths import Layout


def test_a_handle_comes_back_as_it_was() -> None:
    handle = Handle(data_dir="/d", run_dir="/r", name="a/t")
    assert Handle.decode(handle.encode()) == handle
    assert handle.layout == Layout(Path("/d"), Path("/r"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"version": 1}',
        b'{"version": 1, "data_dir": 1, "x": 2}',
        b'{"version": 9}',
    ],
)
def test_what_another_version_wrote_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(HostError, match=r"^task handle (of \d+ bytes cannot be read|has version 9), expected"):
        Handle.decode(data)
