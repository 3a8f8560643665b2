"""`chv disks`: the persistent disks of this node, and the one way to remove them."""

import argparse
import sys

from driver.cli.common import add_common, expect_readable, load_config, print_json, print_table, shortened
from driver.cli.errors import UsageError
from vmlib import version
from vmlib.disk.image import in_words
from vmlib.disk.persistent import PersistentDisk, PersistentDisks
from vmlib.errors import VmError
from vmlib.paths import Layout
from vmlib.postflight import persistent_disks


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "disks",
        help="list the persistent disks of this node, or remove one for good",
        description="List the persistent disks of this node.",
    )
    add_common(parser)
    parser.add_argument("--ids", action="store_true", help="IDs alone, one a line")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    remove = actions.add_parser(
        "remove",
        help="remove a disk and all that is on it; not while a machine has it",
        epilog="Exit codes: 0 it is gone; 1 it is held; 2 no such disk.",
    )
    remove.add_argument("id", metavar="DISK", help="as `chv disks` shows it, or a prefix of it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config = load_config(args)
    expect_readable(config)
    layout = Layout(config.data_dir, config.run_dir)
    disks = persistent_disks(layout)
    if args.action == "remove":
        return _remove(layout, disks, args.id)
    found = list(disks.list())
    if args.ids:
        for disk in found:
            print(disk.id)
    elif args.json:
        print_json([_facts(disk) for disk in found])
    else:
        print_table(("ID", "NAMESPACE", "JOB", "GROUP", "INDEX", "NAME", "SIZE", "USED", "HELD BY"), _rows(found))
    return 0


def _remove(layout: Layout, disks: PersistentDisks, wanted: str) -> int:
    version.expect_ours(layout)
    # Every disk begins with nothing: a variable of a script's that is not set.
    found = [disk for disk in disks.list() if wanted and disk.id.startswith(wanted)]
    if len(found) != 1:
        what = f"fits {len(found)} disks" if found else "is no persistent disk"
        raise UsageError(f"{wanted!r} {what}, look at `chv disks`")
    try:
        disks.remove(found[0].id)
    except (VmError, OSError) as exc:
        print(f"chv: {exc}", file=sys.stderr)
        return 1
    return 0


def _facts(disk: PersistentDisk) -> dict[str, object]:
    """The keys are a contract."""
    return {
        "id": disk.id,
        "namespace": disk.key.namespace,
        "job": disk.key.job,
        "group": disk.key.group,
        "index": disk.key.index,
        "name": disk.key.name,
        "format": disk.format,
        "size_bytes": disk.size_bytes,
        "used_bytes": disk.used_bytes,
        "created_at": round(disk.created_at),
        "path": str(disk.path),
        "holder": None if disk.holder is None else disk.holder.name,
    }


def _rows(disks: list[PersistentDisk]) -> list[tuple[str, ...]]:
    return [
        (
            disk.id,
            disk.key.namespace,
            disk.key.job,
            disk.key.group,
            str(disk.key.index),
            disk.key.name,
            "missing" if disk.size_bytes is None else in_words(disk.size_bytes),
            f"{disk.used_bytes >> 20} MiB",
            "" if disk.holder is None else shortened(disk.holder.name, 28),
        )
        for disk in disks
    ]
