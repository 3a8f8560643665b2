"""The numbers on docs/limits.md are those of the code."""

import re

import pytest

from driver import config_network, config_plugin, config_task, errors, translate
from driver.keys import PLUGIN, TASK
from driver.schema import Block, Key, walk
from tests.pages import DOCS
from vmlib.guest import wire
from vmlib.hypervisor import ch_config, qemu_slots
from vmlib.keeper import sink, watchers

KEYS = {path: member for members in (PLUGIN, TASK) for path, member in walk(members)}


def key(path: str) -> Key:
    found = KEYS[path]
    assert isinstance(found, Key)
    return found


def block(path: str) -> Block:
    found = KEYS[path]
    assert isinstance(found, Block)
    return found


KEYS_OF_SSH = key("ssh_authorized_keys")
NUMBERS = {
    "vCPUs of a machine": f"{config_task._MAX_VCPUS}; {ch_config.MAX_VCPUS} on Cloud Hypervisor",
    "disks of a machine, with root disk, seed and volumes": f"{qemu_slots.MAX_DISKS} on QEMU,"
    f" {qemu_slots.MAX_DISKS - 1} with `vfio`; {ch_config.MAX_DEVICES} on Cloud Hypervisor, with interfaces, shares,"
    " devices and balloon",
    "`disk` blocks of a task": str(block("disk").max_items),
    "interfaces of a machine": str(qemu_slots.MAX_NICS),
    "addresses of an interface": str(config_network._MAX_ADDRESSES),
    "devices by `vfio`": str(key("vfio").max_items),
    "shares and volumes that are directories": str(qemu_slots.MAX_SHARES),
    "a guest's disk": f"`image_max_size`, `{key('image_max_size').default}` by default",
    "`cmdline`": f"{key('cmdline').max_bytes} bytes",
    "each file of the seed": f"{key('user_data').max_bytes >> 20} MiB",
    "`ssh_authorized_keys`": f"{KEYS_OF_SSH.max_items} of {KEYS_OF_SSH.max_bytes >> 10} KiB",
    "name, id or label from Nomad that becomes part of a path": f"{translate._NAME_MAX_BYTES} bytes",
    "`run_dir`": f"{config_plugin._SOCKET_PATH_MAX_BYTES - config_plugin._SOCKET_TAIL_BYTES} bytes",
    "commands in a guest at once": str(wire.MAX_STREAMS),
    "whoever has the console of a machine at once": str(watchers._MOST),
    "console output kept while nobody reads it": f"{sink.KEEP_BYTES >> 20} MiB, then `chv: lost N bytes`",
    "text of an error for Nomad": f"{errors._TEXT_MAX_BYTES} bytes",
}


@pytest.mark.parametrize("what", NUMBERS)
def test_a_number_on_the_page_is_that_of_the_code(what: str) -> None:
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|", (DOCS / "limits.md").read_text(), re.MULTILINE))
    assert rows[what] == NUMBERS[what]
