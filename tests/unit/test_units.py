"""Sizes and durations: what is written comes back as a number, and what could mean two things is refused."""

from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.units import parse_duration, parse_size

BYTES = {
    "": 1,
    "B": 1,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}


def outcome(parse: Callable[[str], float], text: str) -> float | str:
    """The number, or why there is none."""
    try:
        return parse(text)
    except ValueError as exc:
        return str(exc)


@given(number=st.integers(0, 1 << 20), unit=st.sampled_from(sorted(BYTES)), space=st.sampled_from(["", " "]))
def test_a_size_is_its_number_times_its_unit(number: int, unit: str, space: str) -> None:
    assert parse_size(f"{number}{space if unit else ''}{unit}") == number * BYTES[unit]


@given(hundredths=st.integers(0, 10**6), unit=st.sampled_from(sorted(BYTES)))
def test_a_fraction_is_a_whole_number_of_bytes_or_refused(hundredths: int, unit: str) -> None:
    text = f"{hundredths // 100}.{hundredths % 100:02d}{unit}"
    exact = Fraction(hundredths, 100) * BYTES[unit]
    if exact.denominator == 1:
        assert parse_size(text) == exact
    else:
        with pytest.raises(ValueError, match=r"^expected a whole number of bytes$"):
            parse_size(text)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused_with_what_was_expected(text: str) -> None:
    size = outcome(parse_size, text)
    assert size.startswith("expected ") if isinstance(size, str) else 0 <= size < 1 << 63


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("10G", "expected GiB (1024³) or GB (1000³) after the number"),
        ("10 K", "expected KiB (1024) or KB (1000) after the number"),
        ("2T", "expected TiB (1024⁴) or TB (1000⁴) after the number"),
        ("", "expected a size such as 10GiB"),
        ("-1GiB", "expected a size such as 10GiB"),
        ("10gib", "expected a size such as 10GiB"),
        ("10GiB ", "expected a size such as 10GiB"),
        ("1e3", "expected a size such as 10GiB"),
        ("٣GiB", "expected a size such as 10GiB"),
        ("0.3KiB", "expected a whole number of bytes"),
        ("8388608TiB", "expected at most 9223372036854775807 bytes"),
    ],
)
def test_a_size_that_says_too_little_or_too_much_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  the whole text is compared
        parse_size(text)
    assert str(refused.value) == complaint


@given(st.dictionaries(st.sampled_from(list(SECONDS)), st.integers(0, 9999), min_size=1))
def test_a_duration_is_the_sum_of_its_parts(parts: dict[str, int]) -> None:
    text = "".join(f"{parts[unit]}{unit}" for unit in SECONDS if unit in parts)
    assert parse_duration(text) == pytest.approx(sum(number * SECONDS[unit] for unit, number in parts.items()))


@given(st.text(alphabet="0123456789.dhmsu -", max_size=12))
def test_any_text_is_a_duration_or_refused_with_what_was_expected(text: str) -> None:
    seconds = outcome(parse_duration, text)
    assert seconds.startswith("expected ") if isinstance(seconds, str) else seconds >= 0.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("30s", 30.0),
        ("5m", 300.0),
        ("30d", 2592000.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
    ],
)
def test_durations_of_the_design_and_of_nomad_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "s", "-1s", "30s5m", "1h1h", "1 h", "30S", "1y", "²s"])
def test_a_duration_without_unit_order_or_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^expected a duration such as 30s, 5m, 1h30m or 30d$"):
        parse_duration(text)


def test_a_duration_that_nomad_cannot_count_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^expected at most 9223372036s$"):
        parse_duration("200000d")
