"""The arithmetic of `make bench`: what stands in turns, what is divided by what, and how it is shown."""

import json
from pathlib import Path

import pytest

from tests.bench.measure import Line, in_turns, line, percentile, table, write_json


def test_baseline_and_ours_take_turns_and_the_warm_up_is_thrown_away() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    columns = in_turns([lambda: measure("baseline"), lambda: measure("ours")], pairs=2, warm_up=1)
    assert order == ["baseline", "ours"] * 3
    assert columns == [[3.0, 5.0], [4.0, 6.0]]


def test_the_ratio_is_taken_pair_by_pair() -> None:
    found = line("n", "a / b", ours=[2.0, 30.0, 8.0], baseline=[1.0, 10.0, 2.0])
    # The ratio of the medians would be 4.
    assert (found.low, found.ratio, found.high) == (2.5, 3.0, 3.5)
    assert (found.pairs, found.ours, found.baseline) == (3, 8.0, 2.0)


def test_measurements_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        line("n", "a / b", ours=[1.0, 2.0], baseline=[1.0])


def test_one_pair_is_its_own_spread() -> None:
    found = line("n", "a / b", ours=[3.0], baseline=[2.0])
    assert (found.low, found.ratio, found.high) == (1.5, 1.5, 1.5)


def test_a_percentile_lies_among_the_slowest() -> None:
    assert percentile([float(number) for number in range(101)], 99) == 99.0


def some_lines() -> list[Line]:
    return [
        line("exit latency", "ours / theirs", ours=[10.0, 12.0], baseline=[1.0, 1.0]),
        line("memory", "ours / theirs", ours=[1.0], baseline=[2000.0], unit="bytes"),
    ]


def test_the_table_shows_ratios_and_no_time() -> None:
    assert table(some_lines()) == (
        "benchmark     ratio   quartiles        pairs  compared\n"
        "exit latency  11      10.5 – 11.5      2      ours / theirs\n"
        "memory        0.0005  0.0005 – 0.0005  1      ours / theirs"
    )


def test_programs_get_the_medians_too(tmp_path: Path) -> None:
    write_json(tmp_path / "new/bench.json", some_lines(), {"submit": "no nomad"})
    written = json.loads((tmp_path / "new/bench.json").read_text())
    assert written["left_out"] == {"submit": "no nomad"}
    assert [(one["name"], one["ours"], one["baseline"], one["unit"]) for one in written["lines"]] == [
        ("exit latency", 11.0, 1.0, "s"),
        ("memory", 1.0, 2000.0, "bytes"),
    ]
