"""How doctor looks at many things at once: in order, each in time, none able to spoil the report."""

import threading
import time
from collections.abc import Iterator

from driver.cli.doctor_check import Check, Part, gather

FINE = Check("fine", "ok", "as it should be")


def breaks() -> Iterator[Check]:
    yield FINE
    raise FileNotFoundError("/proc/nothing")


def test_lines_come_in_the_order_of_the_parts_whichever_was_ready_first() -> None:
    def slow() -> Iterator[Check]:
        time.sleep(0.05)
        yield Check("slow", "ok", "in the end")

    assert [line.check for line in gather([Part("a", slow), Part("b", lambda: [FINE])])] == ["slow", "fine"]


def test_a_part_that_breaks_is_a_line_after_what_it_came_to() -> None:
    first, broken, last = gather([Part("sick", breaks), Part("b", lambda: [FINE])])
    assert first == last == FINE
    assert (broken.check, broken.verdict) == ("sick", "problem")
    assert broken.text == "cannot be looked at: FileNotFoundError: /proc/nothing"
    assert broken.cure


def test_a_part_that_hangs_is_a_line_and_all_that_hang_take_as_long_as_one() -> None:
    over = threading.Event()

    def hangs() -> Iterator[Check]:
        yield FINE
        over.wait()

    begin = time.monotonic()
    found = gather([Part("a", hangs), Part("b", hangs), Part("c", lambda: [FINE])], patience_s=0.2)
    took = time.monotonic() - begin
    over.set()
    assert took < 2
    assert [(line.check, line.verdict) for line in found] == [
        ("fine", "ok"),
        ("a", "problem"),
        ("fine", "ok"),
        ("b", "problem"),
        ("fine", "ok"),
    ]
    assert found[1].text == "no answer within 0.2 s"
