"""What `chv run` must know of its host, in vmlib's words: the operator's block where there is one, else the defaults.

That block is the driver's language, so another process of this executable reads it (`chv config`).
"""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from driver.cli.errors import UsageError
from driver.cli.itself import this_command
from vmlib.cores.cpulist import parse_cpus
from vmlib.cores.plan import Policy
from vmlib.cores.service import CoreSettings
from vmlib.hypervisor.select import HypervisorSettings
from vmlib.paths import Layout
from vmlib.settings import HostSettings
from vmlib.spec import BridgeLink, Link, MacvtapLink, UserLink

DEFAULT_DIR = Path("/etc/nomad.d")
_READ_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """One host, for machines of nobody's but the person at the shell."""

    host: HostSettings
    hypervisors: HypervisorSettings = field(default_factory=HypervisorSettings)
    networks: Mapping[str, Link] = field(default_factory=dict)
    default_network: str = ""


def load_settings(named: Path | None) -> RunSettings:
    """Raises UsageError with the words of whoever reads the file."""
    if named is None and not os.environ.get("CHV_CONFIG") and not DEFAULT_DIR.is_dir():
        return RunSettings(host=HostSettings(layout=Layout(Path("/var/lib/chv"), Path("/run/chv")), vm_user="chv"))
    option = [] if named is None else ["--config", str(named.absolute())]
    done = subprocess.run(
        [*this_command(), "config", "--json", *option],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_READ_S,
        check=False,
    )
    if done.returncode != 0:
        raise UsageError(done.stderr.strip().removeprefix("chv: ") or "the agent file cannot be read")
    return settings_of(json.loads(done.stdout))


def settings_of(facts: Mapping[str, Any]) -> RunSettings:
    """What `chv config --json` says, in vmlib's words."""
    first, _, last = facts["vm_uids"].partition("-")
    cores, firmware = facts["cores"], facts["cloud_hypervisor"]["firmware"]
    dedicated = parse_cpus(cores["dedicated"])
    policy = Policy(
        usable=None if cores["usable"] is None else parse_cpus(cores["usable"]) or None,
        dedicated=dedicated,
        dedicated_only=bool(dedicated),
        housekeeping=parse_cpus(cores["housekeeping"]),
        smt=cores["smt"],
        tokens=cores["tokens"],
        partition=cores["partition"],
    )
    reserved = parse_cpus(cores["reserved"])
    return RunSettings(
        host=HostSettings(
            layout=Layout(Path(facts["data_dir"]), Path(facts["run_dir"])),
            vm_uids=range(int(first), int(last) + 1) if first else None,
            vm_user=facts["vm_user"],
            image_max_size_bytes=facts["image_max_size_bytes"],
            hooks=tuple(facts["hooks"]),
            # The plugin speaks for the whole host, this one for a single machine.
            cores=CoreSettings(policy=lambda _: policy, reserved=lambda: reserved, rules=False),
        ),
        hypervisors=HypervisorSettings(
            hypervisor=facts["hypervisor"],
            ch_binary=facts["cloud_hypervisor"]["binary"],
            ch_firmware=Path(firmware) if firmware else None,
            qemu_binary=facts["qemu"]["binary"],
            accel=facts["qemu"]["accel"],
        ),
        networks={name: _link(network) for name, network in facts["networks"].items()},
        default_network=facts["default_network"],
    )


def _link(network: Mapping[str, Any]) -> Link:
    match network["mode"]:
        case "macvtap":
            return MacvtapLink(parent=network["parent"], mode=network["macvtap_mode"], filter=network["filter"])
        case "bridge":
            return BridgeLink(bridge=network["bridge"], filter=network["filter"])
    return UserLink()
