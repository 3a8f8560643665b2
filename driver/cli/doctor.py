"""`chv doctor`: everything that Fingerprint checks and more, each with a verdict and the cure.

What is looked at is in the modules beside this one; here stands the order of the report. Changes nothing on the host.
"""

import argparse
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from driver.cli.common import add_common, load_config, print_json, print_table
from driver.cli.doctor_agent import AgentSettings, agent_settings
from driver.cli.doctor_cgroups import cgroup_checks
from driver.cli.doctor_check import Check, Part, gather
from driver.cli.doctor_cores import cores_checks
from driver.cli.doctor_directories import directory_checks
from driver.cli.doctor_guests import guest_lines
from driver.cli.doctor_hypervisors import hypervisor_checks
from driver.cli.doctor_network import link_lines
from driver.cli.doctor_nfs import NfsFacts, nfs_lines
from driver.cli.doctor_nomad import nomad_checks
from driver.cli.doctor_uids import privilege_checks, uid_checks
from driver.cli.doctor_user import user_lines
from driver.cli.errors import UsageError
from driver.config_network import UserNetwork
from driver.config_plugin import PluginConfig
from driver.devhost.errors import AgentFileError
from driver.network_health import parents
from driver.node import owner_of_this_process
from vmlib import cgroup, probe, vfio
from vmlib.disk import nfs_probe
from vmlib.errors import HostError
from vmlib.hooks import find_hook, split
from vmlib.net.look import look
from vmlib.probe import find_program


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "doctor",
        help="check this node and say what to do about each problem",
        description="Check all that machines need of this node. Nothing is changed.",
        epilog="Exit codes: 0 fine, or warnings alone; 1 there is a problem; 2 the config is refused.",
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code 1 when a problem was found; warnings are fine."""
    config = load_config(args)
    try:
        settings = agent_settings(args.config, os.environ)
    except (AgentFileError, OSError) as exc:
        raise UsageError(str(exc)) from exc
    checks = examine(config, settings)
    if args.json:
        print_json([asdict(check) for check in checks])
    else:
        print_table(("CHECK", "VERDICT", "FOUND", "CURE"), [(c.check, c.verdict, c.text, c.cure) for c in checks])
    return 1 if any(check.verdict == "problem" for check in checks) else 0


def examine(config: PluginConfig, settings: AgentSettings) -> list[Check]:
    """Look at the host for less than half a minute, whatever hangs there."""
    return gather(
        [
            Part("hypervisors", lambda: hypervisor_checks(config)),
            Part("tools", _tools),
            Part("privileges", privilege_checks),
            Part("vm_uids", lambda: uid_checks(config)),
            Part("cgroups", lambda: cgroup_checks(cgroup.read_layout())),
            Part("cores", lambda: cores_checks(config, settings)),
            Part("directories", lambda: directory_checks(config)),
            Part("nomad", lambda: nomad_checks(settings, config.data_dir)),
            Part("networks", lambda: _networks(config)),
            Part("guests", lambda: [Check(*line) for line in guest_lines(config, owner_of_this_process())]),
            Part("hooks", lambda: _hooks(config)),
            Part("nfs", lambda: _nfs(config)),
            Part("vfio", lambda: device_checks(config.vfio_allow)),
        ]
    )


def _tools() -> Iterator[Check]:
    qemu_img = find_program("qemu-img")
    if qemu_img is None:
        yield Check("qemu-img", "warning", "not installed: no job can boot from an image", "install qemu-utils")
    else:
        yield Check("qemu-img", "ok", qemu_img)
    yield _helper("virtiofsd", probe.virtiofsd_program(), "no machine can have a share", probe.VIRTIOFSD_CURE)
    yield _helper("swtpm", probe.swtpm_program(), "no machine can have a TPM", probe.SWTPM_CURE)


def _helper(name: str, found: probe.Program, lack: str, cure: str) -> Check:
    if found.why_not:
        return Check(name, "warning", f"{found.why_not}: {lack}", cure)
    return Check(name, "ok", f"{found.version} ({found.path})" if found.version else found.path)


def _networks(config: PluginConfig) -> Iterator[Check]:
    yield from _user_networks(config)
    linked = {name: network for name, network in config.networks.items() if not isinstance(network, UserNetwork)}
    yield from (Check(*line) for line in link_lines(linked, look(parents(linked.values()))))


def _user_networks(config: PluginConfig) -> list[Check]:
    passt = probe.passt_program()
    if not passt.why_not:
        passt = replace(passt, version=probe.passt_version(passt.path))
    names = [name for name, network in config.networks.items() if isinstance(network, UserNetwork)]
    return [Check(*line) for line in user_lines(names, passt)]


def _hooks(config: PluginConfig) -> Iterator[Check]:
    for wanted in config.hooks:
        name, _ = split(wanted)
        try:
            yield Check(f"hook {name}", "ok", find_hook(name).value)
        except HostError as exc:
            yield Check(f"hook {name}", "problem", f"{exc}; no machine starts without it", exc.hint)


def _nfs(config: PluginConfig) -> Iterator[Check]:
    facts = NfsFacts(
        in_kernel=nfs_probe.kernel_has_nfs(),
        client_id=nfs_probe.client_id(),
        host_name=socket.gethostname(),
        silence=nfs_probe.silence(config.nfs.values()),
    )
    yield from (Check(*line) for line in nfs_lines(config.nfs, facts))


def device_checks(allowed: Iterable[str], root: Path = Path("/")) -> Iterator[Check]:
    """One line for each device that jobs may take: whether a guest could have it now."""
    for address in allowed:
        match vfio.look(address, root):
            case vfio.Lack(found=found, cure=cure):
                yield Check(f"vfio {address}", "warning", found, cure)
            case device:
                yield Check(f"vfio {address}", "ok", f"bound to vfio-pci, as all of IOMMU group {device.group}")
