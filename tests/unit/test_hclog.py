import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.goplugin import hclog


def make_record(
    message: Any = "m", *args: Any, level: int = logging.INFO, extra: dict[str, Any] | None = None
) -> logging.LogRecord:
    logger = logging.getLogger("some.module")
    return logger.makeRecord(logger.name, level, __file__, 1, message, args, None, extra=extra)


def parsed(record: logging.LogRecord) -> dict[str, Any]:
    line = hclog.render(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) <= hclog.MAX_LINE_BYTES < 64 * 1024
    parts = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert all(isinstance(parts[key], str) for key in ("@level", "@message", "@timestamp", "@module"))
    return dict(parts)


@pytest.mark.parametrize(
    ("level", "word"),
    [
        (1, "trace"),
        (logging.DEBUG, "debug"),
        (logging.INFO, "info"),
        (25, "info"),
        (logging.WARNING, "warn"),
        (logging.ERROR, "error"),
        (logging.CRITICAL, "error"),
        (99, "error"),
    ],
)
def test_levels_are_words_that_the_host_knows(level: int, word: str) -> None:
    assert parsed(make_record(level=level))["@level"] == word


@pytest.mark.parametrize("created", [0.0, 1.0, 1700000000.5, 1700000000.000001, 4102444800.999999])
def test_timestamp_always_has_six_digits_and_z(created: float) -> None:
    record = make_record()
    record.created = created
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", parsed(record)["@timestamp"])


@pytest.mark.parametrize("message", [5, None, {"a": 1}, b"bytes", ["x"], 1.5])
def test_a_message_that_is_no_string_goes_out_as_one(message: Any) -> None:
    assert parsed(make_record(message))["@message"] == str(message)


def test_arguments_that_do_not_fit_still_make_a_line() -> None:
    assert parsed(make_record("%d and %d", "one"))["@message"] == "%d and %d ('one',)"


def test_a_value_that_cannot_be_shown_does_no_harm() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    parts = parsed(make_record(Broken(), extra={"thing": Broken()}))
    assert parts["@message"] == "<Broken that cannot be shown>"
    assert parts["thing"] == "<Broken that cannot be shown>"


def test_extra_values_are_pairs_of_their_own() -> None:
    values = {"number": 5, "yes": True, "none": None, "half": 0.5, "nan": float("nan"), "list": [1], "path": os}
    parts = parsed(make_record(extra=values))
    assert {key: parts[key] for key in ("number", "yes", "none", "half", "nan", "list")} == {
        "number": 5,
        "yes": True,
        "none": None,
        "half": 0.5,
        "nan": "nan",
        "list": "[1]",
    }
    assert isinstance(parts["path"], str)


def test_extra_values_never_replace_the_four() -> None:
    parts = parsed(make_record("m", extra={"@message": 5, "@timestamp": None, "@level": 7}))
    assert (parts["@message"], parts["@level"]) == ("m", "info")


def test_a_traceback_is_one_more_key() -> None:
    record = make_record("it broke")
    try:
        raise ValueError("why")
    except ValueError:
        record.exc_info = sys.exc_info()
    parts = parsed(record)
    assert parts["@message"] == "it broke"
    assert parts["traceback"].endswith("ValueError: why")


@pytest.mark.parametrize("character", ["x", '"', "\n", "\0", "ü", "😀", "\ud800"])
def test_a_long_line_is_cut_and_stays_json(character: str) -> None:
    parts = parsed(make_record(character * 200_000, extra={f"k{n}": character * 5000 for n in range(100)}))
    assert parts["@message"].startswith(character * 1000)


def test_a_long_traceback_keeps_its_end() -> None:
    record = make_record("m")
    try:
        raise ValueError("x" * 100_000 + "the end")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert parsed(record)["traceback"].endswith("the end")


@given(message=st.text(), pairs=st.dictionaries(st.from_regex("k[a-z]{1,8}", fullmatch=True), st.one_of(
    st.text(), st.integers(), st.floats(), st.binary(), st.none(), st.lists(st.integers()))))  # fmt: skip
def test_whatever_is_logged_is_a_line_that_the_host_can_read(message: str, pairs: dict[str, Any]) -> None:
    assert parsed(make_record("%s", message, extra=pairs))["@message"] == message


# -- writing ----------------------------------------------------------------------------------------------------------


class Pipe:
    """A pipe with nothing in it, and a handler that writes to it."""

    def __init__(self) -> None:
        read_fd, self.write_fd = os.pipe()
        self.reader = os.fdopen(read_fd, "rb")
        self.handler = hclog.Handler(self.write_fd)

    def read(self, lines: int) -> list[dict[str, Any]]:
        return [json.loads(self.reader.readline()) for _ in range(lines)]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.reader.close()
    # The handler's thread writes what it has, if only into nothing, before the descriptor's number is used again.
    pipe.handler.flush(timeout_s=5)
    os.close(pipe.write_fd)


def test_lines_come_out_in_order(pipe: Pipe) -> None:
    for number in range(100):
        pipe.handler.handle(make_record("%d", number))
    assert [line["@message"] for line in pipe.read(100)] == [str(number) for number in range(100)]


def test_a_reader_that_is_gone_is_no_trouble(pipe: Pipe) -> None:
    pipe.reader.close()
    for _ in range(300):
        pipe.handler.handle(make_record("x" * 10_000))
        pipe.handler.flush(timeout_s=5)
    assert pipe.handler._lost == 0


def test_a_reader_that_stopped_blocks_nobody_and_the_lost_are_counted(pipe: Pipe) -> None:
    begin = time.monotonic()
    for _ in range(300):  # more than pipe and backlog hold together
        pipe.handler.handle(make_record("x" * 10_000))
    pipe.handler.flush(timeout_s=0.01)
    assert time.monotonic() - begin < 2

    kept = 0
    while (line := pipe.read(1)[0])["@message"].startswith("x"):
        kept += 1
    assert line["@message"] == f"{300 - kept} log lines lost: the reader is too slow"
    assert line["@level"] == "warn"
    assert kept > 100


def test_a_record_that_cannot_be_rendered_is_still_no_failure(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hclog, "render", lambda _: 1 / 0)
    pipe.handler.handle(make_record())
    assert pipe.read(1)[0]["@message"] == "log line of some.module lost: ZeroDivisionError"


def test_many_threads_never_mix_their_lines(pipe: Pipe) -> None:
    def write() -> None:
        for _ in range(10):
            pipe.handler.handle(make_record("y" * 5000))

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert {line["@message"] for line in pipe.read(80)} == {"y" * 5000}
    for thread in threads:
        thread.join()
