"""CPU lists are read as every kernel writes them, and what is none is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.cores.cpulist import format_cpus, parse_cpus


@given(st.frozensets(st.integers(0, 2000)))
def test_what_is_written_is_read_again(cpus: frozenset[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == cpus


@given(st.frozensets(st.integers(0, 300)))
def test_no_shorter_list_says_the_same(cpus: frozenset[int]) -> None:
    """One item for each run of CPUs, and none touches the next."""
    runs = sum(1 for cpu in cpus if cpu - 1 not in cpus)
    text = format_cpus(cpus)
    assert (len(text.split(",")) if text else 0) == runs


@given(st.lists(st.integers(0, 500)))
def test_order_and_repetition_do_not_matter(cpus: list[int]) -> None:
    assert format_cpus(cpus) == format_cpus(sorted(set(cpus), reverse=True))
    assert parse_cpus(",".join(map(str, cpus))) == frozenset(cpus)


@given(st.text(alphabet="0123456789,-:/ x", max_size=20))
def test_any_text_is_a_list_or_a_value_error(text: str) -> None:
    try:
        cpus = parse_cpus(text)
    except ValueError:
        return
    assert parse_cpus(format_cpus(cpus)) == cpus


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", set()),
        ("\n", set()),
        ("(null)\n", set()),
        ("0\n", {0}),
        ("0-3,8,10-11\n", {0, 1, 2, 3, 8, 10, 11}),
        ("3,7,8", {3, 7, 8}),
        ("0, 2", {0, 2}),
        ("0-7:2/4\n", {0, 1, 4, 5}),
        ("0-3\0", {0, 1, 2, 3}),
    ],
)
def test_all_that_kernels_and_nomad_write_is_read(text: str, cpus: set[int]) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize(
    "text",
    ["a", "0-", "-1", "3-1", "0,,1", "0,", ",", "0-3:0/2", "0-3:3/2", "0-3:1", "1 2", "0x1", "99999999", "0-1999999"],
)
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_cpus(text)
