"""What `chv doctor` tries out about the guests on macvtap and bridge networks: host_shim, and what they may send."""

from typing import Literal

from driver.config_network import BridgeNetwork, MacvtapNetwork
from driver.config_plugin import PluginConfig
from driver.node import shims
from vmlib.net import guard
from vmlib.net.shim import Mine, Shim, examine

Line = tuple[str, Literal["ok", "warning", "problem"], str, str]


def guest_lines(config: PluginConfig, owner: str) -> list[Line]:
    """Check, verdict, text and cure of each."""
    return [*_shim_lines(config, owner), *_filter_lines(config)]


def _shim_lines(config: PluginConfig, owner: str) -> list[Line]:
    wanted = shims(config)
    if not wanted:
        return []
    try:
        faults = examine(wanted, Mine(owner=owner, run_dir=config.run_dir))
    except OSError as exc:
        return [("host_shim", "warning", (exc.strerror or str(exc)).lower(), "run as root")]
    lines: list[Line] = []
    for shim in wanted:
        check, made = f"host_shim {shim.network}", f"{shim.address} on {shim.name}"
        found = [fault.removeprefix(f"{shim}: ") for fault in faults if fault.startswith(f"{shim}: ")]
        lines += [(check, "warning", *_with_cure(fault, shim)) for fault in found] or [(check, "ok", made, "")]
    return lines


def _with_cure(fault: str, shim: Shim) -> tuple[str, str]:
    """What is wrong, and what helps, which some sentences say themselves."""
    found, advises, advice = fault.partition(": give")
    if advises:
        return found, f"give{advice}"
    if "there is no interface" in fault:
        return fault, f"what the line network {shim.network} says"
    if "is there and not ours" in fault:
        return fault, f"ip link del {shim.name}"
    return fault, "start the agent: the driver makes it soon after its start"


def _filter_lines(config: PluginConfig) -> list[Line]:
    guarded = [
        one.name for one in config.networks.values() if isinstance(one, MacvtapNetwork | BridgeNetwork) and one.filter
    ]
    if not guarded:
        return []
    if lack := guard.lack():
        return [(f"filter {name}", "problem", f"{lack}: no machine starts on it", guard.CURE) for name in guarded]
    return [(f"filter {name}", "ok", "guests speak for themselves only", "") for name in guarded]
