"""`chv gc` beside a running plugin and after it: shown first, removed with --yes, and never what lives."""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

from tests.integration.nodes import READY, Node, kill, ticks, until, until_says
from tests.integration.test_cli import as_json

KEYS = ["kind", "name", "owner", "bytes", "why", "removable", "removed"]
LONG_AGO = 1_000_000_000


async def gc(node: Node, *words: str, code: int = 0) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = await asyncio.to_thread(as_json, node, "gc", *words, code=code)
    assert all(list(item) == KEYS for item in items)
    return items


def put_image(node: Node, name: str, *, size: int, used_at: float) -> Path:
    """One that no machine has, as the cache keeps it."""
    path = node.layout.cache / "images" / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (used_at, used_at))
    return path


async def test_it_shows_first_removes_when_told_and_lets_alone_what_runs_beside_a_plugin(fake_node: Node) -> None:
    node = fake_node
    node.block = "gc {\n dry_run = true\n }"  # for the plugin, which would collect by itself every now and then
    node.write_agent_file()
    async with (
        node.host(node.job("tick", type="service")) as wanted,
        node.host(node.job(name="orphan")) as orphan,
    ):
        for host in (wanted, orphan):
            await host.start()
            await until_says(host, READY)
        async with node.host(node.job("poweroff", name="over")) as over:
            await over.run()
            names = {host: f"{host.alloc.id}/vm" for host in (wanted, orphan, over)}
            assert await gc(node) == []
            # As Nomad does when it collects an alloc.
            for host in (orphan, over):
                shutil.rmtree(host.alloc.paths.root)
            old = put_image(node, "aa.qcow2", size=1 << 20, used_at=LONG_AGO)

            shown = await gc(node)
            assert {(item["kind"], item["name"], item["removable"], item["removed"]) for item in shown} == {
                ("machine", names[orphan], False, False),
                ("machine", names[over], True, False),
                ("image", "aa.qcow2", True, False),
            }
            why = {item["name"]: item["why"] for item in shown}
            assert why[names[over]] == f"{over.alloc.paths.root} is gone"
            assert why[names[orphan]] == f"{orphan.alloc.paths.root} is gone, but it runs"
            assert "not used for" in why["aa.qcow2"]
            assert old.exists()
            assert sorted(names.values()) == node.machines()

            text = await asyncio.to_thread(node.command, "gc")
            head, *rows = text.stdout.splitlines()
            assert head.split() == ["KIND", "NAME", "MIB", "STATE", "WHY"]
            assert sorted(row.split()[0] for row in rows) == ["image", "machine", "machine"]
            assert "nothing was removed: `chv gc --yes` removes 2 of these" in text.stderr

            both = await asyncio.gather(gc(node, "--yes"), gc(node, "--yes"))  # two at once do no harm
            assert {item["name"] for items in both for item in items if item["removed"]} == {names[over], "aa.qcow2"}
            assert not old.exists()
            assert node.machines() == sorted([names[wanted], names[orphan]])
            rows_left = {row["id"]: row["state"] for row in await asyncio.to_thread(as_json, node, "ps")}
            assert rows_left == {names[wanted]: "running", names[orphan]: "running"}
            before = ticks(wanted)[-1]
            await until(lambda: ticks(wanted)[-1] > before, "the console to go on", host=wanted)


def test_when_the_plugin_is_dead_it_removes_what_has_ended(fake_node: Node) -> None:
    node = fake_node
    with node.dev(node.job("tick", type="service"), "--alloc-dir", str(node.allocs)) as killed:
        killed.until_says(READY)
    ((name, vmm),) = ((row["id"], node.vmm) for row in as_json(node, "ps"))
    assert as_json(node, "gc") == []  # somebody may come back for it
    shutil.rmtree(node.allocs / name.partition("/")[0])
    (item,) = as_json(node, "gc", "--yes")
    assert (item["name"], item["owner"], item["removable"], item["removed"]) == (name, "dev", False, False)
    kill(vmm)
    (item,) = as_json(node, "gc", "--yes")
    assert (item["name"], item["removed"]) == (name, True)
    assert node.machines() == []
    for left in (node.base / "tmp").glob("chv-plugin-*"):  # of the plugin that was killed
        shutil.rmtree(left)


def test_the_cache_is_collected_by_size_the_oldest_first(fake_node: Node) -> None:
    node = fake_node
    node.block = 'gc {\n image_cache_max = "3MiB"\n }'
    node.write_agent_file()
    now = node.agent_file.stat().st_mtime
    images = [put_image(node, f"a{age}.raw", size=2 << 20, used_at=now - age) for age in (30, 20, 10)]
    assert [item["name"] for item in as_json(node, "gc")] == ["a30.raw", "a20.raw"]
    items = as_json(node, "gc", "--yes")
    assert {item["why"] for item in items} == {"the cache has more than gc.image_cache_max = 3 MiB"}
    assert [image.exists() for image in images] == [False, False, True]


def test_a_damaged_mark_or_record_hides_nothing_and_is_not_removed(fake_node: Node) -> None:
    machines = fake_node.layout.machines
    for name, mark in (
        ("a/vm", b"{"),
        ("b/vm", json.dumps({"name": "b/vm", "owner": "nomad", "alive_while": "/no"}).encode()),
    ):
        (machines / name).mkdir(parents=True)
        (machines / name / "mark.json").write_bytes(mark)
        (machines / name / "machine.json").write_bytes(b"\x00")
    assert [item["name"] for item in as_json(fake_node, "gc", "--yes")] == ["b/vm"]
    assert fake_node.machines() == ["a/vm"]
    said = " ".join(fake_node.command("doctor").stdout.split())
    assert f"nobody knows whose machine it was: {machines / 'a/vm'} look at the directory, then remove it" in said
    shutil.rmtree(machines / "a")
    assert "nobody knows whose" not in fake_node.command("doctor").stdout


def test_what_a_start_left_behind_is_shown_by_its_kind_and_removed(fake_node: Node) -> None:
    node = fake_node
    with node.dev(node.job("tick", type="service"), "--alloc-dir", str(node.allocs)) as killed:
        killed.until_says(READY)
    (run_dir,) = node.layout.runs.iterdir()
    shutil.rmtree(node.layout.machines / node.machines()[0])  # with journal and record: nobody knows the start any more
    ((kind, name, removable),) = ((one["kind"], one["name"], one["removable"]) for one in as_json(node, "gc", "--yes"))
    assert (kind, name, removable) == ("run", str(run_dir), False)  # it runs: that is the plugin's to end
    assert run_dir.exists()
    kill(node.vmm)
    until_gone = [one for one in as_json(node, "gc", "--yes") if one["kind"] == "run"]
    assert [(one["name"], one["removed"]) for one in until_gone] == [(str(run_dir), True)]
    assert not run_dir.exists()
    for left in (node.base / "tmp").glob("chv-plugin-*"):
        shutil.rmtree(left)
