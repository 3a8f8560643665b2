"""Tokens: what the device plugin writes into a task's environment is what the driver reads there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driver.tokens import env_of, tokens_of
from vmlib.errors import SpecError


def test_one_key_for_each_call_named_by_node_and_lowest_id() -> None:
    assert env_of(1, [6, 4, 6]) == {"CHV_CORES_NUMA1_4": "core-4,core-6"}


def test_device_blocks_of_one_node_add_up_when_nomad_merges_their_environments() -> None:
    merged = {**env_of(0, [2, 10]), **env_of(0, [4]), **env_of(3, [64]), "PATH": "/bin", "NVIDIA_VISIBLE_DEVICES": "x"}
    assert tokens_of(merged) == {0: 3, 3: 1}


def test_a_task_without_devices_holds_none() -> None:
    assert tokens_of({}) == {}
    assert tokens_of({"CHV": "1"}) == {}


@given(
    st.dictionaries(st.integers(0, 9999), st.sets(st.integers(0, 9_999_999), min_size=1, max_size=20), max_size=8),
    st.integers(1, 4),
)
def test_all_that_is_given_is_counted_however_it_was_asked_for(given_ids: dict[int, set[int]], blocks: int) -> None:
    env: dict[str, str] = {}
    for node, ids in given_ids.items():
        ordered = sorted(ids)
        for block in range(blocks):
            if part := ordered[block::blocks]:
                env.update(env_of(node, part))
    assert tokens_of(env) == {node: len(ids) for node, ids in sorted(given_ids.items())}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CHV_CORES_NUMA0_0", ""),
        ("CHV_CORES_NUMA0_0", "core-0,"),
        ("CHV_CORES_NUMA0_0", "core-0, core-1"),
        ("CHV_CORES_NUMA0_0", "0"),
        ("CHV_CORES_NUMA0", "core-0"),
        ("CHV_CORES_NUMA-1_0", "core-0"),
        ("CHV_CORES_", "core-0"),
    ],
)
def test_what_it_cannot_read_is_refused_by_name(key: str, value: str) -> None:
    with pytest.raises(SpecError, match=f"{key} = {value!r}: expected what the device plugin chv-cores writes"):
        tokens_of({key: value})
