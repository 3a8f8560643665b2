"""The stored configuration: what is filled in at `vm.create`, and what is refused at `vm.boot` or `vm.add-net`."""

import copy
import random
from collections.abc import Iterator
from typing import Any

Config = dict[str, Any]

_PCI = {"pci_segment": 0}
_DEFAULTS: Config = {
    "cpus": {
        "boot_vcpus": 1, "max_vcpus": 1, "kvm_hyperv": False, "max_phys_bits": 46, "features": {"amx": False},
        "nested": True, "core_scheduling": "Vm", "profile": "Host",
    },
    "memory": {
        "size": 512 << 20, "mergeable": False, "hotplug_method": "Acpi", "shared": False, "hugepages": False,
        "prefault": False, "reserve": False, "thp": True,
    },
    "rng": {**_PCI, "src": "/dev/urandom"},
    "serial": {"mode": "Null"},
    "console": {"mode": "Tty", **_PCI},
    "debug_console": {"mode": "Off", "iobase": 233},
    "pvpanic": False,
    "iommu": False,
    "watchdog": False,
    "landlock_enable": False,
}  # fmt: skip
_DISK: Config = {
    **_PCI, "readonly": False, "direct": False, "num_queues": 1, "queue_size": 128, "vhost_user": False,
    "backing_files": False, "sparse": True, "image_type": "Unknown", "lock_granularity": "ByteRange",
}  # fmt: skip
_NET: Config = {
    **_PCI, "num_queues": 2, "queue_size": 256, "vhost_user": False, "vhost_mode": "Client", "offload_tso": True,
    "offload_ufo": True, "offload_csum": True,
}  # fmt: skip
_BALLOON: Config = {**_PCI, "deflate_on_oom": False, "free_page_reporting": False}
_FS: Config = {**_PCI, "num_queues": 1, "queue_size": 1024}
# Lists and objects whose members have an id.
_LISTS = ("disks", "net", "fs", "pmem", "devices", "user_devices", "vdpa", "generic_vhost_user")


class RefusedError(Exception):
    """The chain of messages of a refusal, outermost first."""

    def __init__(self, *chain: str) -> None:
        super().__init__(": ".join(chain))
        self.chain = chain


def normal(body: Config, known: Any) -> Config:
    """What the program stores: known keys only, defaults filled in. `known(schema)` names the properties of one."""
    config = _only_known(body, "VmConfig", known)
    # No descriptor comes with this call, whatever stands here.
    nets = [{key: value for key, value in net.items() if key != "fds"} for net in config.get("net", [])]
    filled = copy.deepcopy(_DEFAULTS)
    for key, value in config.items():
        filled[key] = {**filled[key], **value} if isinstance(filled.get(key), dict) else value
    for key, defaults in (("disks", _DISK), ("fs", _FS)):
        if key in filled:
            filled[key] = [{**defaults, **one} for one in filled[key]]
    for key, defaults in (("vsock", _PCI), ("balloon", _BALLOON)):
        if key in filled:
            filled[key] = {**defaults, **filled[key]}
    if nets:
        filled["net"] = [net(one) for one in nets]
    for old, new in (("serial_number", "system_serial_number"), ("uuid", "system_uuid")):
        if old in filled.get("platform", {}):
            filled["platform"][new] = filled["platform"].pop(old)
    return filled


def net(body: Config) -> Config:
    mac = ":".join(["2e", *(f"{random.randrange(256):02x}" for _ in range(5))])
    return {**_NET, "mac": mac, **body}


def _only_known(value: Any, schema: Any, known: Any) -> Any:
    if isinstance(schema, list):
        return [_only_known(item, schema[0], known) for item in value] if isinstance(value, list) else value
    properties = known(schema)
    if properties is None or not isinstance(value, dict):
        return value
    return {key: _only_known(item, properties[key], known) for key, item in value.items() if key in properties}


def check(config: Config) -> None:
    """Raises RefusedError for what the program finds before it makes a device."""
    for problem in _problems(config):
        raise RefusedError("Failed to validate config", *problem)


def _problems(config: Config) -> Iterator[tuple[str, ...]]:
    payload = config.get("payload", {})
    if not payload.get("kernel") and not payload.get("firmware"):
        yield "Payload configuration is not bootable", "No bootitem provided: neither firmware nor kernel"
    if payload.get("kernel") and payload.get("firmware"):
        yield "Payload configuration is not bootable", "Firmware and kernel are mutually exclusive"
    cpus = config["cpus"]
    boot, most = cpus["boot_vcpus"], cpus["max_vcpus"]
    if most < boot:
        yield (f"Max CPUs ({most}) lower than boot CPUs ({boot})",)
    if topology := cpus.get("topology"):
        product = 1
        for key in ("threads_per_core", "cores_per_die", "dies_per_package", "packages"):
            product *= topology.get(key, 0)
        if product == 0:
            yield ("No field in topology can be zero",)
        elif product != most:
            yield (f"Product of CPU topology parts ({product}) does not match maximum vCPUs ({most})",)
    seen: set[str] = set()
    for one in devices(config):
        name = one.get("id")
        if name is None:
            continue
        if name.startswith("__"):
            yield (f"Identifier {name} is not invalid",)
        if name in seen:
            yield (f"Identifier {name} is not unique",)
        seen.add(name)
    shared = config["memory"]["shared"] or config["memory"]["hugepages"]
    if config.get("fs") and not shared:
        yield ("Using vhost-user requires using shared memory or huge pages",)
    for disk in config.get("disks", []):
        if disk["num_queues"] > boot:
            yield (f"Queue count ({disk['num_queues']}) must not exceed boot vCPUs ({boot})",)
        if disk["queue_size"] & (disk["queue_size"] - 1):
            yield (f"Queue size ({disk['queue_size']}) must be a power of two",)
        if len(disk.get("serial", "")) > 20:
            yield ("Disk serial is longer than 20 bytes",)
    for one in config.get("net", []):
        fds = one.get("fds")
        if fds is not None and one["num_queues"] != 2 * len(fds):
            told = f"Number of queues ({one['num_queues']}) to virtio_net does not match the number of FDs"
            yield (f"{told} ({2 * len(fds)})",)
        if one["num_queues"] // 2 > boot:
            yield (f"Queue count ({one['num_queues']}) must not exceed boot vCPUs ({boot})",)
    if "vsock" in config and config["vsock"]["cid"] < 3:
        yield (f"Invalid vsock CID {config['vsock']['cid']}",)
    if "balloon" in config and config["balloon"]["size"] >= config["memory"]["size"]:
        yield ("Balloon is larger than the memory",)


def devices(config: Config) -> Iterator[Config]:
    """Whatever may have an id."""
    for key in _LISTS:
        yield from config.get(key, [])
    for key in ("rng", "console", "balloon", "vsock"):
        if key in config:
            yield config[key]


def names(config: Config) -> dict[str, list[str]]:
    """The names of its devices, by kind: own ones, else those that the program makes up from one counter."""
    found: dict[str, list[str]] = {}
    count = 0
    for kind, made_up in (("disks", "_disk"), ("net", "_net"), ("fs", "_fs")):
        for one in config.get(kind, []):
            name = one.get("id")
            if name is None:
                name = f"{made_up}{count}"
                count += 1
            found.setdefault(kind, []).append(name)
    if "vsock" in config:
        found["vsock"] = [config["vsock"].get("id") or f"_vsock{count}"]
    if "balloon" in config:
        found["balloon"] = [config["balloon"].get("id") or "__balloon"]
    found["rng"] = [config["rng"].get("id") or "__rng"]
    return found
