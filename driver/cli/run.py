"""`chv run`: a machine without Nomad, from a shell. It loads the command's own modules only: vmlib does the work."""

import argparse
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from driver.cli.errors import UsageError
from driver.cli.run_life import attend, start, wait_for
from driver.cli.run_settings import RunSettings, load_settings
from vmlib.disk.unpack import packed_name
from vmlib.spec import (
    BridgeLink,
    CoresSpec,
    DirectBoot,
    DiskFormat,
    FileRef,
    FirmwareKind,
    MachineSpec,
    MacvtapLink,
    NicSpec,
    RootDisk,
    SeedSpec,
    UserLink,
)
from vmlib.units import parse_duration, parse_size

_FORMATS: dict[str, DiskFormat] = {".raw": "raw", ".img": "raw", ".qcow2": "qcow2"}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "run",
        help="boot a machine without Nomad, at its console",
        description="Boot a machine and show its console; Ctrl-] leaves it running, `chv stop` ends it. When the guest"
        " powers off, all of the machine is removed, its disk too.",
        epilog="Exit codes: the machine's own (128 + n when signal n ended it); 0 with --detach and after Ctrl-];"
        " 1 it did not start; 2 wrong usage. SIGINT and SIGTERM press the power button, a second one kills.",
    )
    parser.add_argument("--image", metavar="FILE", type=Path, help="boot from a copy-on-write disk of this image")
    parser.add_argument("--image-format", choices=("raw", "qcow2"), help="default: by the image's suffix")
    parser.add_argument("--root-size", metavar="SIZE", type=_size, help="grow the root disk to this")
    parser.add_argument("--kernel", metavar="FILE", type=Path, help="boot this kernel, without firmware")
    parser.add_argument("--initrd", metavar="FILE", type=Path, help="of that kernel")
    parser.add_argument("--cmdline", metavar="TEXT", help="of that kernel (default: console=ttyS0)")
    parser.add_argument("--firmware", metavar="bios|uefi|FILE", default="", help="default: the hypervisor's best")
    parser.add_argument("--vcpus", metavar="N", type=_count, default=1, help="default: 1")
    parser.add_argument("--memory", metavar="SIZE", type=_size, default=512 << 20, help="default: 512MiB")
    parser.add_argument(
        "--placement",
        choices=("exclusive", "shared"),
        default="exclusive",
        help="exclusive: whole cores, as jobs have them (default); shared: none of its own",
    )
    parser.add_argument(
        "--network",
        metavar="LABEL",
        action="append",
        default=[],
        help="a network of the plugin block, or user, bridge:NAME, macvtap:PARENT, none; may come again"
        " (default: default_network of that block, else none)",
    )
    parser.add_argument("--user-data", metavar="FILE", type=Path, help="cloud-init user-data for the guest")
    parser.add_argument("--ssh-key", metavar="FILE", type=Path, action="append", default=[], help="public key file")
    parser.add_argument("--hostname", metavar="NAME", default="", help="of the guest, by cloud-init")
    parser.add_argument("--hypervisor", metavar="NAME", default="", help="default: the best one that is usable")
    parser.add_argument("--stop-timeout", metavar="TIME", type=_time, default=30.0, help="for the guest; default: 30s")
    parser.add_argument("--detach", action="store_true", help="do not show the console; say the machine's ID")
    parser.add_argument("--config", metavar="FILE", type=Path, help="agent file with our plugin block (CHV_CONFIG)")
    parser.add_argument("--wait-for", metavar="ID", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    settings = load_settings(args.config)
    if args.wait_for:
        return wait_for(settings, args.wait_for, stop_timeout_s=args.stop_timeout)
    spec = machine_spec(args, settings)
    if os.geteuid() != 0:
        raise UsageError(f"run as uid {os.geteuid()}: machines need cgroups and devices, expected root (try sudo)")
    with start(settings, spec, stop_timeout_s=args.stop_timeout) as life:
        if args.detach:
            print(spec.name)
            sys.stdout.flush()
            life.leave(args.config)
            return 0
        return attend(life, args.config)


def machine_spec(args: argparse.Namespace, settings: RunSettings) -> MachineSpec:
    """What the words of the command ask for. Raises UsageError."""
    if args.image is None and args.kernel is None:
        raise UsageError("expected --image (boots from the disk) or --kernel (boots it directly), both are missing")
    for option in ("initrd", "cmdline"):
        if getattr(args, option) is not None and args.kernel is None:
            raise UsageError(f"--{option}: works with --kernel only, which is missing")
    if args.kernel is not None and args.firmware:
        raise UsageError(f"--firmware {args.firmware}: a kernel is booted without firmware, expected one of the two")
    if args.memory % (1 << 20):
        raise UsageError(f"--memory: {args.memory} bytes, expected whole MiB")
    key = secrets.token_hex(4)
    name = f"run-{key}/vm"
    return MachineSpec(
        id=f"run-{key}",
        name=name,
        owner="run",
        vcpus=args.vcpus,
        memory_mib=args.memory >> 20,
        boot=None if args.kernel is None else _boot(args),
        firmware=_firmware(args.firmware),
        root=None if args.image is None else _root(args),
        seed=_seed(args, name),
        nics=tuple(_nics(args, settings, key)),
        cores=CoresSpec(exclusive=args.placement == "exclusive"),
        hypervisor=args.hypervisor,
        labels={"task": name},
    )


def _boot(args: argparse.Namespace) -> DirectBoot:
    return DirectBoot(
        kernel=_file("--kernel", args.kernel),
        initrd=None if args.initrd is None else _file("--initrd", args.initrd),
        cmdline=args.cmdline or "console=ttyS0",
    )


def _firmware(text: str) -> FirmwareKind | FileRef:
    match text:
        case "" | "bios" | "uefi":
            return text
    return _file("--firmware", Path(text))


def _root(args: argparse.Namespace) -> RootDisk:
    name, packed = packed_name(args.image.name)
    format_ = args.image_format or _FORMATS.get(Path(name).suffix.lower())
    if format_ is None:
        raise UsageError(
            f"--image {args.image}: its name does not say what it is, expected --image-format raw or qcow2"
        )
    image = _file("--image", args.image)
    return RootDisk(image=image, format=format_, size_bytes=args.root_size, packed=packed or "")


def _seed(args: argparse.Namespace, name: str) -> SeedSpec | None:
    if not (args.user_data or args.ssh_key or args.hostname):
        return None
    keys = [line for path in args.ssh_key for line in _text("--ssh-key", path).splitlines() if line.strip()]
    return SeedSpec(
        instance_id=name.replace("/", "-"),
        hostname=args.hostname or name.partition("/")[0],
        ssh_authorized_keys=tuple(keys),
        user_data=None if args.user_data is None else _text("--user-data", args.user_data).encode(),
    )


def _nics(args: argparse.Namespace, settings: RunSettings, key: str) -> "list[NicSpec]":
    wanted = args.network
    if not wanted:
        # A machine of nobody's has no network namespace that it could take over.
        wanted = [settings.default_network] if settings.default_network in settings.networks else []
    if "none" in wanted:
        if len(wanted) > 1:
            raise UsageError(
                f"--network none: does not go with --network {next(one for one in wanted if one != 'none')}"
            )
        return []
    nics = []
    for index, text in enumerate(wanted):
        kind, _, interface = text.partition(":")
        link: Any = settings.networks.get(text)
        if link is None and text == "user":
            link = UserLink()
        elif link is None and interface and kind == "bridge":
            link = BridgeLink(bridge=interface)
        elif link is None and interface and kind == "macvtap":
            link = MacvtapLink(parent=interface)
        if link is None:
            labels = ", ".join([*settings.networks, "user", "bridge:NAME", "macvtap:PARENT", "none"])
            raise UsageError(f"--network {text}: expected one of {labels}")
        # Locally administered, unicast.
        mac = bytes((0x02, index, *bytes.fromhex(key))).hex(":")
        nics.append(NicSpec(network=text, link=link, mac=mac))
    return nics


# -- words -----------------------------------------------------------------------------------------------------------


def _file(option: str, path: Path) -> FileRef:
    try:
        found = path.resolve(strict=True)
    except OSError as exc:
        raise UsageError(f"{option} {path}: {(exc.strerror or str(exc)).lower()}") from exc
    return FileRef(root=found.parent, relative=found.name)


def _text(option: str, path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        why = (exc.strerror or str(exc)).lower() if isinstance(exc, OSError) else "expected text in UTF-8"
        raise UsageError(f"{option} {path}: {why}") from exc


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 255:
        raise argparse.ArgumentTypeError(f"{text!r}, expected 1 to 255")
    return int(text)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r}, {exc}") from exc


def _time(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r}, {exc}") from exc
