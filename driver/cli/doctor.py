"""`chv doctor`: everything that Fingerprint checks, each with a verdict and the cure."""

import argparse
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from driver.cli.common import add_common, load_config, print_json, print_table
from driver.cli.doctor_cloud import CloudFacts, cloud_lines
from driver.cli.doctor_guests import guest_lines
from driver.cli.doctor_network import link_lines
from driver.cli.doctor_nfs import NfsFacts, nfs_lines
from driver.cli.doctor_user import user_lines
from driver.config_network import UserNetwork
from driver.config_plugin import PluginConfig
from driver.core_health import Finding, core_findings
from driver.network_health import parents
from driver.node import hypervisor_settings, owner_of_this_process, unprivileged_warning
from driver.partitions import reserved_cpus, shared_cpus
from vmlib import cgroup, cpuset, probe, vfio
from vmlib.cores.cpulist import format_cpus
from vmlib.cores.topology import Topology, read_topology
from vmlib.disk import nfs_probe
from vmlib.errors import HostError
from vmlib.hooks import find_hook, split
from vmlib.hypervisor import cloud_hypervisor
from vmlib.hypervisor.base import Hypervisor
from vmlib.hypervisor.select import Offer, probe_offers
from vmlib.net.look import look
from vmlib.probe import find_program

_CURES = {cloud_hypervisor.NAME: "docs/cloud-hypervisor.md says what it needs; QEMU does without"}

Verdict = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    check: str
    verdict: Verdict
    text: str
    cure: str = ""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("doctor", help="check this node and say what to do about each problem")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code 1 when a problem was found; warnings are fine."""
    checks = examine(load_config(args))
    if args.json:
        print_json([asdict(check) for check in checks])
    else:
        print_table(("CHECK", "VERDICT", "FOUND", "CURE"), [(c.check, c.verdict, c.text, c.cure) for c in checks])
    return 1 if any(check.verdict == "problem" for check in checks) else 0


def examine(config: PluginConfig) -> list[Check]:
    """Look at the host; changes nothing."""
    offer = probe_offers(hypervisor_settings(config))
    return [
        *_hypervisors(offer),
        *firmware_checks(offer.usable),
        *_cloud_hypervisor(config, offer),
        _qemu_img(),
        _helper("virtiofsd", probe.virtiofsd_program(), "no machine can have a share", probe.VIRTIOFSD_CURE),
        _helper("swtpm", probe.swtpm_program(), "no machine can have a TPM", probe.SWTPM_CURE),
        _privileges(),
        _uids(config),
        _cgroups(),
        *_cores(config),
        *_directories(config),
        *_networks(config),
        *_guests(config),
        *_hooks(config),
        *_nfs(config),
        *device_checks(config.vfio_allow),
    ]


def _hypervisors(offer: Offer) -> list[Check]:
    checks = []
    for one in offer.candidates:
        if one.hypervisor is None:
            checks.append(Check(one.name, "warning", one.why_not, _CURES.get(one.name, "")))
        else:
            how = f"{one.hypervisor.version} with {one.hypervisor.accel}".strip()
            checks.append(Check(one.name, "ok", f"{how}: {one.why}" if one.why else how))
    if not offer.usable:
        checks.append(
            Check("hypervisors", "problem", "none is usable", "install QEMU 7.2 or later, or Cloud Hypervisor")
        )
    return checks


def _cloud_hypervisor(config: PluginConfig, offer: Offer) -> list[Check]:
    names = [one.name for one in offer.usable]
    if cloud_hypervisor.NAME not in names:
        return []
    version = next(one.version for one in offer.usable if one.name == cloud_hypervisor.NAME)
    facts = CloudFacts(version=version, qemu="qemu" in names, landlock=probe.landlock_usable())
    return [Check(*line) for line in cloud_lines(facts, config.ch_firmware)]


def _qemu_img() -> Check:
    found = find_program("qemu-img")
    if found is not None:
        return Check("qemu-img", "ok", found)
    return Check("qemu-img", "warning", "not installed: no job can boot from an image", "install qemu-utils")


def firmware_checks(hypervisors: Sequence[Hypervisor]) -> list[Check]:
    """What jobs with firmware = "uefi" (and Windows) boot by, once for each hypervisor that does."""
    checks = []
    for one in hypervisors:
        if not one.capabilities.uefi or not one.capabilities.flash:
            continue
        try:
            found = one.uefi_firmware()
        except HostError as exc:
            checks.append(Check("firmware", "warning", str(exc), exc.hint))
            continue
        text = f"{found.code}, variables from {found.variables}"
        if found.smm:
            text += "; it protects them by system management mode"
        if found.enrolled:
            cure = (
                "install the variant without keys, or hide this one by an empty file of its name in /etc/qemu/firmware"
            )
            checks.append(
                Check("firmware", "warning", f"{text}; it enforces Secure Boot, so only signed systems boot", cure)
            )
        else:
            checks.append(Check("firmware", "ok", text))
    return checks


def _helper(name: str, found: probe.Program, lack: str, cure: str) -> Check:
    if found.why_not:
        return Check(name, "warning", f"{found.why_not}: {lack}", cure)
    return Check(name, "ok", f"{found.version} ({found.path})" if found.version else found.path)


def _networks(config: PluginConfig) -> list[Check]:
    linked = {name: network for name, network in config.networks.items() if not isinstance(network, UserNetwork)}
    try:
        seen = look(parents(linked.values()))
    except OSError as exc:
        return [*_user_networks(config), Check("networks", "problem", f"interfaces cannot be looked at: {exc}")]
    return [*_user_networks(config), *(Check(*line) for line in link_lines(linked, seen))]


def _user_networks(config: PluginConfig) -> list[Check]:
    passt = probe.passt_program()
    if not passt.why_not:
        passt = replace(passt, version=probe.passt_version(passt.path))
    names = [name for name, network in config.networks.items() if isinstance(network, UserNetwork)]
    return [Check(*line) for line in user_lines(names, passt)]


def _guests(config: PluginConfig) -> list[Check]:
    return [Check(*line) for line in guest_lines(config, owner_of_this_process())]


def _hooks(config: PluginConfig) -> list[Check]:
    checks = []
    for wanted in config.hooks:
        name, _ = split(wanted)
        try:
            checks.append(Check(f"hook {name}", "ok", find_hook(name).value))
        except HostError as exc:
            checks.append(Check(f"hook {name}", "problem", f"{exc}; no machine starts without it", exc.hint))
    return checks


def _nfs(config: PluginConfig) -> list[Check]:
    facts = NfsFacts(
        in_kernel=nfs_probe.kernel_has_nfs(),
        client_id=nfs_probe.client_id(),
        host_name=socket.gethostname(),
        silence=nfs_probe.silence(config.nfs.values()),
    )
    return [Check(*line) for line in nfs_lines(config.nfs, facts)]


def device_checks(allowed: Iterable[str], root: Path = Path("/")) -> list[Check]:
    """One line for each device that jobs may take: whether a guest could have it now."""
    checks = []
    for address in allowed:
        match vfio.look(address, root):
            case vfio.Lack(found=found, cure=cure):
                checks.append(Check(f"vfio {address}", "warning", found, cure))
            case device:
                checks.append(
                    Check(f"vfio {address}", "ok", f"bound to vfio-pci, as all of IOMMU group {device.group}")
                )
    return checks


def _privileges() -> Check:
    if os.geteuid() == 0:
        return Check("privileges", "ok", "runs as root")
    return Check("privileges", "problem", f"runs as uid {os.geteuid()}", "run the Nomad agent as root")


def _uids(config: PluginConfig) -> Check:
    if config.vm_uids is not None:
        return Check("vm_uids", "ok", f"one uid for each machine, {config.vm_uids.start} to {config.vm_uids.stop - 1}")
    if warning := unprivileged_warning(config):
        return Check("vm_uids", "warning", warning, 'set vm_uids = "200000-265535" in the plugin block')
    return Check("vm_uids", "ok", f"all machines run as {config.vm_user}")


def _cgroups() -> Check:
    layout = cgroup.read_layout()
    if layout.tops:
        return Check("cgroups", "ok", f"{layout.kind}, {len(layout.tops)} hierarchies", layout.reason)
    return Check("cgroups", "warning", layout.reason, "machines run in the agent's own groups until this is mended")


def _cores(config: PluginConfig) -> list[Check]:
    """Nomad itself is not asked: what it uses stands in its cgroups, and is unknown until they exist."""
    try:
        topology = read_topology()
    except HostError as exc:
        return [Check("cores", "problem", str(exc))]
    reserved = reserved_cpus()
    usable = shared_cpus() | reserved
    groups = cgroup.read_layout()
    found = core_findings(
        config.cores,
        topology,
        usable=usable,
        withheld=topology.online - usable if usable else frozenset(),
        reserved=reserved,
        cgroups=groups.kind,
        partition=cpuset.read_partition(groups.cpuset) if groups.cpuset is not None else "",
    )
    if config.cores.dedicated_auto and not usable:
        # Before Nomad has made its cgroups nobody can say what it withholds.
        found = tuple(one for one in found if one.subject != "cores.dedicated")
    return core_checks(config, topology, found, usable=usable)


def core_checks(
    config: PluginConfig, topology: Topology, found: Sequence[Finding], *, usable: frozenset[int]
) -> list[Check]:
    """The topology, and one line for each finding, or one that says that a thing is well."""
    threads = "with SMT" if any(len(core.cpus) > 1 for core in topology.cores) else "without SMT"
    with_cpus = sum(1 for node in topology.nodes if node.cpus)
    checks = [
        Check(
            "cores", "ok", f"{len(topology.cores)} cores {threads}, {len(topology.online)} CPUs, {with_cpus} NUMA nodes"
        )
    ]
    cores = config.cores
    dedicated = "auto" if cores.dedicated_auto else format_cpus(cores.dedicated)
    for subject, fine in (
        ("cores.dedicated", dedicated or "none: machines have cores that Nomad shares out, level driver"),
        ("cores.housekeeping", format_cpus(cores.housekeeping or ()) or "what nobody holds"),
        ("cores.partition", cores.partition or "none"),
        ("nomad reservation", f"Nomad uses CPU {format_cpus(usable)}" if usable else "Nomad has no cgroups here yet"),
    ):
        faults = [Check(subject, "warning", one.found, one.cure) for one in found if one.subject == subject]
        checks += faults or [Check(subject, "ok", fine)]
    return checks


def _directories(config: PluginConfig) -> list[Check]:
    checks = []
    for key, path in (("data_dir", config.data_dir), ("run_dir", config.run_dir)):
        existing = next(one for one in (path, *path.parents) if one.exists())
        if os.access(existing, os.W_OK):
            checks.append(Check(key, "ok", str(path)))
        else:
            checks.append(
                Check(key, "problem", f"{existing} is not writable", "run as root, or name another directory")
            )
    for path in config.image_paths:
        verdict: Verdict = "ok" if path.is_dir() else "warning"
        checks.append(Check("image_paths", verdict, f"{path}" if verdict == "ok" else f"{path} is not a directory"))
    return checks
