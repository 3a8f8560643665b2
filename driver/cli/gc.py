"""`chv gc`: what the plugin's own collection would remove now, shown first and removed when asked to.

Never anything of a machine that runs. Beside a running plugin it is one more that collects: the same locks hold.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from driver.cli.common import add_common, load_config, machines_of, print_json, print_table, shortened
from driver.cli.run_life import attended, unattended
from driver.config_plugin import PluginConfig
from vmlib.disk.image import in_words
from vmlib.errors import VmError
from vmlib.living import vmm_or_keeper_lives
from vmlib.machine import Machines
from vmlib.paths import Layout
from vmlib.stray import Stray
from vmlib.sweep import Sweeper

_OWNERS = ("nomad", "dev", "run")
_DAY_S = 86400.0

Kind = Literal["machine", "run", "cgroup", "link", "mount", "directory", "file", "image"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing that nobody wants. The keys are a contract."""

    kind: Kind
    name: str
    owner: str  # "" = everybody's
    bytes: int
    why: str
    removable: bool  # False: it still runs, and only the plugin ends it, after gc.orphan_grace
    removed: bool = False


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "gc",
        help="show what nobody wants any more; --yes removes it",
        description="Show what the plugin's own collection would remove now: machines whose alloc is gone, what starts"
        " left behind that nobody knows, and images that the cache has too many of or for too long. With --yes it is"
        " removed. Nothing of a machine that runs is touched.",
        epilog="Exit codes: 0 fine; 1 with --yes, something is left that was to go.",
    )
    parser.add_argument("--yes", action="store_true", help="remove it")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    config = load_config(args)
    machines = machines_of(config)
    items = find(machines, config)
    if args.yes:
        _remove(machines, config)
        left = {(item.kind, item.name) for item in find(machines, config)}
        items = [replace(item, removed=(item.kind, item.name) not in left) for item in items]
    if args.json:
        print_json([asdict(item) for item in items])
    else:
        _show(items, removing=args.yes)
    return 1 if args.yes and any(item.removable and not item.removed for item in items) else 0


# -- what there is ---------------------------------------------------------------------------------------------------


def find(machines: Machines, config: PluginConfig) -> list[Item]:
    """Looks, and changes nothing."""
    return [*_machines(machines, config), *_strays(machines), *_images(machines, config)]


def _machines(machines: Machines, config: PluginConfig) -> Iterator[Item]:
    """What the sweeps of all owners find, at once instead of after their grace."""
    layout = Layout(config.data_dir, config.run_dir)
    marks = {mark.name: mark for mark in machines.marks()}
    for owner in _OWNERS:
        sweeper = Sweeper(machines=machines, owner=owner, gone_s=0.0, orphan_grace_s=0.0, dry_run=True)
        for name in sweeper.sweep(time.monotonic()):
            if (mark := marks.get(name)) is None:  # see _strays
                continue
            runs, why = _runs(machines, name), f"{mark.alive_while} is gone"
            yield Item(
                kind="machine",
                name=name,
                owner=owner,
                bytes=_bytes(layout.machine(name).root),
                why=f"{why}, but it runs" if runs else why,
                removable=not runs,
            )
    for name in unattended(machines, layout):
        size = _bytes(layout.machine(name).root)
        why = "it has ended, and its `chv run` was killed"
        yield Item(kind="machine", name=name, owner="run", bytes=size, why=why, removable=True)


def _strays(machines: Machines) -> Iterator[Item]:
    """What starts left behind. What lies in a directory of ours bears no owner's mark, and each of them finds it."""
    found = {(one.kind, one.name): (one, owner) for owner in _OWNERS for one in machines.stray(owner)}
    for one, owner in found.values():
        runs = _lives(one)
        yield Item(
            kind=one.kind,
            name=one.name,
            owner=owner if one.kind in ("run", "cgroup", "link") else "",
            bytes=0,
            why=f"{one.why}, but it runs" if runs else one.why,
            removable=not runs,
        )


def _images(machines: Machines, config: PluginConfig) -> Iterator[Item]:
    found = {image.path: image for image in machines.images.images()}
    for path in _collect(machines, config, dry_run=True):
        age_s = time.time() - found[path].used_at
        why = f"the cache has more than gc.image_cache_max = {in_words(config.image_cache_max_bytes)}"
        if age_s > config.image_cache_max_age_s:
            why = f"not used for {age_s / _DAY_S:.1f} days, gc.image_cache_max_age is over"
        yield Item(kind="image", name=path.name, owner="", bytes=found[path].bytes, why=why, removable=True)


def _collect(machines: Machines, config: PluginConfig, *, dry_run: bool) -> list[Path]:
    return machines.images.collect(
        max_bytes=config.image_cache_max_bytes, max_age_s=config.image_cache_max_age_s, dry_run=dry_run
    )


def _runs(machines: Machines, name: str) -> bool:
    machine = machines.find(name)
    return machine is not None and machine.running()


def _lives(one: Stray) -> bool:
    # To look at a lock makes it; an empty directory stays what it is.
    return one.kind == "run" and any(one.path.iterdir()) and vmm_or_keeper_lives(one.path)


def _bytes(top: Path) -> int:
    """What its removal gives back, about."""
    return sum(path.lstat().st_blocks * 512 for path in top.rglob("*") if not path.is_dir())


# -- removing it -----------------------------------------------------------------------------------------------------


def _remove(machines: Machines, config: PluginConfig) -> None:
    """Everything looked for once more, and this time in earnest: what came to run meanwhile is let alone."""
    for owner in _OWNERS:
        # No grace is long enough for one that runs.
        Sweeper(machines=machines, owner=owner, gone_s=0.0, orphan_grace_s=math.inf).sweep(time.monotonic())
        for one in machines.stray(owner):
            if not _lives(one):
                _try(partial(machines.remove_stray, one))
    layout = Layout(config.data_dir, config.run_dir)
    for name in unattended(machines, layout):
        # A `chv run` may have begun since.
        _try(partial(machines.remove, name, unless=partial(attended, layout.machine(name))))
    _collect(machines, config, dry_run=False)


def _try(remove: Callable[[], object]) -> None:
    """One that cannot be removed does not keep the others."""
    try:
        remove()
    except (VmError, OSError, ValueError) as exc:
        print(f"chv: {exc}", file=sys.stderr)


# -- for people ------------------------------------------------------------------------------------------------------


def _show(items: list[Item], *, removing: bool) -> None:
    if not items:
        print("there is nothing to remove")
        return
    print_table(
        ("KIND", "NAME", "MIB", "STATE", "WHY"),
        [
            (item.kind, shortened(item.name), f"{item.bytes / 2**20:.1f}", _state(item, removing), shortened(item.why))
            for item in items
        ],
    )
    if not removing and (count := sum(item.removable for item in items)):
        size = sum(item.bytes for item in items if item.removable) / 2**20
        print(f"nothing was removed: `chv gc --yes` removes {count} of these, {size:.1f} MiB", file=sys.stderr)


def _state(item: Item, removing: bool) -> str:
    if not item.removable:
        return "kept"
    return "removed" if item.removed else "left" if removing else "unwanted"
