"""`chv doctor`: everything that Fingerprint checks, each with a verdict and the cure."""

import argparse
import os
from dataclasses import asdict, dataclass
from typing import Literal

from driver.cli.common import add_common, load_config, print_json, print_table
from driver.config import PluginConfig
from driver.node import hypervisor_settings, unprivileged_warning
from vmlib import cgroup
from vmlib.hypervisor.select import Offer, probe_offers
from vmlib.probe import find_program

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
    return [
        *_hypervisors(probe_offers(hypervisor_settings(config))),
        _qemu_img(),
        _privileges(),
        _uids(config),
        _cgroups(),
        *_directories(config),
        *_networks(config),
    ]


def _hypervisors(offer: Offer) -> list[Check]:
    checks = []
    for one in offer.candidates:
        if one.hypervisor is None:
            checks.append(Check(one.name, "warning", one.why_not))
        else:
            how = f"{one.hypervisor.version} with {one.hypervisor.accel}".strip()
            checks.append(Check(one.name, "ok", f"{how}: {one.why}" if one.why else how))
    if not offer.usable:
        checks.append(Check("hypervisors", "problem", "none is usable", "install QEMU 7.2 or later"))
    return checks


def _qemu_img() -> Check:
    found = find_program("qemu-img")
    if found is not None:
        return Check("qemu-img", "ok", found)
    return Check("qemu-img", "warning", "not installed: no job can boot from an image", "install qemu-utils")


def _networks(config: PluginConfig) -> list[Check]:
    return [
        Check(
            f"network {name}",
            "warning",
            "user mode: guests reach the loopback of this host, where Nomad's API listens",
            "give it only to jobs that you trust with that, or turn on Nomad's ACLs",
        )
        for name in config.networks
    ]


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
