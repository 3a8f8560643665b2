"""Both blocks as Nomad sends them, for the tests of what decodes them."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from driver.config_plugin import PluginConfig, decode_plugin_config
from driver.config_task import TaskConfig, decode_task_config
from vmlib.errors import HostError, SpecError

KERNEL: dict[str, Any] = {"kernel": "local/vmlinuz"}
IMAGE: dict[str, Any] = {"image": "local/disk.qcow2"}

# Whatever msgpack can hold.
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def task(config: object) -> TaskConfig:
    return decode_task_config(msgspec.msgpack.encode(config))


def plugin(config: object) -> PluginConfig:
    return decode_plugin_config(msgspec.msgpack.encode(config))


def refused_task(config: object) -> str:
    with pytest.raises(SpecError) as refused:
        task(config)
    return str(refused.value)


def refused_plugin(config: object) -> str:
    with pytest.raises(HostError) as refused:
        plugin(config)
    return str(refused.value)


def complaints_of(decoder: Callable[[object], object], config: object) -> list[str]:
    """One by one; none when it is accepted."""
    try:
        decoder(config)
    except (SpecError, HostError) as exc:
        return str(exc).splitlines()
    return []
