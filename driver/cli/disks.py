"""`chv disks`: the persistent disks of this node, and the one way to remove them."""

import argparse
import sys

from driver.cli.common import UsageError, add_common, load_config, print_json, print_table
from vmlib.disk.image import in_words
from vmlib.disk.persistent import PersistentDisk, PersistentDisks
from vmlib.errors import VmError
from vmlib.paths import Layout
from vmlib.postflight import persistent_disks


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("disks", help="list the persistent disks of this node, or remove one for good")
    add_common(parser)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    remove = actions.add_parser("remove", help="remove a disk and all that is on it; not while a machine has it")
    remove.add_argument("id", metavar="ID", help="as `chv disks` shows it, or a prefix of it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config = load_config(args)
    disks = persistent_disks(Layout(config.data_dir, config.run_dir))
    if args.action == "remove":
        return _remove(disks, args.id)
    found = list(disks.list())
    if args.json:
        print_json([_facts(disk) for disk in found])
    else:
        print_table(("ID", "NAMESPACE", "JOB", "GROUP", "INDEX", "NAME", "SIZE", "USED", "HELD BY"), _rows(found))
    return 0


def _remove(disks: PersistentDisks, wanted: str) -> int:
    found = [disk for disk in disks.list() if disk.id.startswith(wanted)]
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
            "" if disk.holder is None else disk.holder.name,
        )
        for disk in disks
    ]
