"""The commands for people and programs: doctor, ps, inspect; their tables, their JSON, their exit codes."""

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from driver.cli import COMMANDS
from driver.devhost.host import DevHost
from tests.integration.nodes import READY, Node, until_says
from vmlib.hypervisor.qmp import CALL_TIMEOUT_S


@asynccontextmanager
async def two_machines(node: Node) -> AsyncIterator[list[DevHost]]:
    """Of an agent and of `chv dev`, both running."""
    job = node.job(config="vcpus = 2")
    async with node.host(job) as first, node.host(job, owner="dev") as second:
        hosts = [first, second]
        for host in hosts:
            await host.start()
            await until_says(host, READY)
        yield hosts


def as_json(node: Node, *words: str, code: int = 0) -> Any:
    done = node.command(*words, "--json")
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


# ---------------------------------------------------------------------------------------------------------------------
# doctor


def test_doctor_finds_this_node_fine(node: Node) -> None:
    done = node.command("doctor")
    assert done.returncode == 0
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["CHECK", "VERDICT", "FOUND", "CURE"]
    checks = as_json(node, "doctor")
    assert len(lines) == len(checks)
    verdicts = {check["check"]: check["verdict"] for check in checks}
    for check in ("qemu", "privileges", "vm_uids", "data_dir", "run_dir", "image_paths"):
        assert verdicts[check] == "ok"
    assert set(verdicts.values()) <= {"ok", "warning"}
    assert not node.layout.data_dir.exists()  # it looks and makes nothing


def test_doctor_for_programs_has_stable_keys_and_a_cure_for_each_problem(node: Node) -> None:
    checks = as_json(node, "doctor")
    assert {tuple(check) for check in checks} == {("check", "verdict", "text", "cure")}
    assert {check["verdict"] for check in checks} <= {"ok", "warning", "problem"}


def test_a_problem_is_exit_code_one_and_has_a_cure(node: Node) -> None:
    node.block = 'qemu {\n binary = "/nowhere/qemu"\n }'
    node.write_agent_file()
    checks = as_json(node, "doctor", code=1)
    problems = [check for check in checks if check["verdict"] == "problem"]
    assert problems == [
        {
            "check": "hypervisors",
            "verdict": "problem",
            "text": "none is usable",
            "cure": "install QEMU 7.2 or later, or Cloud Hypervisor",
        }
    ]
    assert {
        "check": "qemu",
        "verdict": "warning",
        "text": "/nowhere/qemu is not installed",
        "cure": "install QEMU 7.2 or later (qemu-system-x86), or name another one as qemu.binary",
    } in checks
    assert node.command("doctor").returncode == 1


def test_doctor_warns_of_machines_that_would_run_as_root(fake_node: Node) -> None:
    checks = {check["check"]: check for check in as_json(fake_node, "doctor")}
    assert checks["vm_uids"] == {
        "check": "vm_uids",
        "verdict": "warning",
        "text": "machines run as uid 0: set vm_uids in the plugin block, or create the user 'chv'",
        "cure": 'set vm_uids = "200000-265535" in the plugin block',
    }


def test_doctor_warns_of_an_image_path_that_is_not_there(node: Node) -> None:
    node.images.rename(node.base / "elsewhere")
    checks = [check for check in as_json(node, "doctor") if check["check"] == "image_paths"]
    assert [check["verdict"] for check in checks] == ["ok", "warning"]
    (node.base / "elsewhere").rename(node.images)


# ---------------------------------------------------------------------------------------------------------------------
# ps and inspect


async def test_ps_and_inspect_show_the_machines_of_all_owners(fake_node: Node) -> None:
    async with two_machines(fake_node) as hosts:
        await asyncio.to_thread(look_at_two, fake_node, hosts)
        client = await hosts[0].client()
        await client.signal_task(hosts[0].task_id, "SIGSTOP")
        found = await asyncio.to_thread(as_json, fake_node, "inspect", hosts[0].alloc.id)
        assert found["state"] == "paused"
        await client.signal_task(hosts[0].task_id, "SIGKILL")
        await hosts[0].wait()
        found = await asyncio.to_thread(as_json, fake_node, "inspect", hosts[0].alloc.id)
        assert (found["state"], found["vcpus"]) == ("exited", [])
        assert found["exit"] == {"code": 137, "signal": 9, "message": "the VMM was killed by SIGKILL"}


async def test_vmms_that_hang_hold_up_the_list_for_as_long_as_one_of_them(fake_node: Node) -> None:
    async with two_machines(fake_node):
        pids = [row["pid"] for row in await asyncio.to_thread(as_json, fake_node, "ps")]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            begin = time.monotonic()
            rows = await asyncio.to_thread(as_json, fake_node, "ps")
            took = time.monotonic() - begin
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        assert [row["state"] for row in rows] == ["unknown", "unknown"]
        assert CALL_TIMEOUT_S <= took < 2 * CALL_TIMEOUT_S


def look_at_two(node: Node, hosts: list[DevHost]) -> None:
    rows = {row["id"]: row for row in as_json(node, "ps")}
    assert [rows[f"{host.alloc.id}/vm"]["owner"] for host in hosts] == ["nomad", "dev"]
    for row in rows.values():
        assert list(row) == ["id", "owner", "hypervisor", "pid", "state", "vcpus", "memory_mib", "age_s"]
        assert (row["state"], row["hypervisor"], row["vcpus"], row["memory_mib"]) == ("running", "fake", 2, 128)
        os.kill(row["pid"], 0)
    done = node.command("ps")
    assert done.returncode == 0
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["ID", "OWNER", "HYPERVISOR", "PID", "STATE", "VCPUS", "MIB", "AGE"]
    assert sorted(line.split()[0] for line in lines) == sorted(rows)

    id_ = hosts[0].alloc.id
    found = as_json(node, "inspect", id_)
    assert {"id", "task", "hypervisor", "pid", "state", "level", "vcpus", "addresses"} <= set(found)
    assert (found["id"], found["task"]) == (hosts[0].task_id, f"{id_}/vm")
    assert (found["state"], found["level"], found["owner"], found["memory_mib"]) == ("running", "shared", "nomad", 128)
    assert [(one["vcpu"], one["core"]) for one in found["vcpus"]] == [(0, None), (1, None)]
    for one in found["vcpus"]:
        assert Path(f"/proc/{found['pid']}/task/{one['tid']}").exists()
    for name in (id_[:8], f"{id_}/vm", f"{id_[:8]}/vm"):
        assert as_json(node, "inspect", name)["id"] == found["id"]
    text = node.command("inspect", id_[:8])
    assert text.returncode == 0
    assert ["task", f"{id_}/vm"] in [line.split() for line in text.stdout.splitlines()]

    several = node.command("inspect", "")
    assert several.returncode == 2
    for wrong in ("zzz", f"{id_}/other", f"{id_}0"):
        done = node.command("inspect", wrong)
        assert done.returncode == 1
        assert done.stderr == f"chv: no machine {wrong!r} in {node.layout.data_dir}, look at `chv ps`\n"


def test_a_node_without_machines_has_an_empty_list(fake_node: Node) -> None:
    assert as_json(fake_node, "ps") == []
    done = fake_node.command("ps")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)


async def test_a_damaged_record_does_not_hide_the_others(fake_node: Node) -> None:
    async with two_machines(fake_node) as hosts:
        record = fake_node.layout.machine(f"{hosts[1].alloc.id}/vm").record
        whole = record.read_bytes()
        record.write_bytes(whole[:40])
        rows = await asyncio.to_thread(as_json, fake_node, "ps")
        assert [row["id"] for row in rows] == [f"{hosts[0].alloc.id}/vm"]
        record.write_bytes(whole)


async def test_inspect_shows_what_devices_have_moved_and_a_vmm_that_hangs_holds_it_up_for_seconds_only(
    node: Node,
) -> None:
    disk = 'disk {\n name = "data"\n serial = "data"\n size = "8MiB"\n }\n balloon = true'
    async with node.host(node.job("write=data:hello", config=disk)) as host:
        await host.start()
        await until_says(host, READY)
        found = await asyncio.to_thread(as_json, node, "inspect", host.alloc.id)
        (data,) = found["disks"]
        assert (data["write_bytes"], data["write_ops"]) == (4096, 1)
        assert data["read_bytes"] > 0 < data["read_ops"]
        assert found["memory_actual_mib"] == 128
        assert found["cpu"]["total_s"] > found["vcpus"][0]["cpu_s"] > 0
        assert found["memory"]["rss_bytes"] > 32 << 20
        text = (await asyncio.to_thread(node.command, "inspect", host.alloc.id)).stdout
        assert '"write_bytes": 4096' in next(line for line in text.splitlines() if line.startswith("disks "))
        os.kill(found["pid"], signal.SIGSTOP)
        try:
            hung = await asyncio.to_thread(as_json, node, "inspect", host.alloc.id)
        finally:
            os.kill(found["pid"], signal.SIGCONT)
        assert hung["usage"] == "not told: greeting: no answer from the VMM in time"
        assert (hung["state"], "disks" in hung) == ("unknown", False)
        assert hung["cpu"]["total_s"] >= found["cpu"]["total_s"]


async def test_commands_find_a_real_guest_while_the_plugin_talks_to_it(node: Node) -> None:
    async with node.host(node.job()) as host:
        await host.start()
        found = await asyncio.gather(*(asyncio.to_thread(as_json, node, "inspect", host.alloc.id) for _ in range(3)))
        assert [one["state"] for one in found] == ["running"] * 3
        assert 221_000 <= found[0]["uid"] < 221_064
        assert os.stat(f"/proc/{found[0]['pid']}").st_uid == found[0]["uid"]


# ---------------------------------------------------------------------------------------------------------------------
# usage


@pytest.mark.parametrize("command", ["doctor", "ps", "inspect"])
def test_the_config_is_named_by_option_variable_or_neither(fake_node: Node, command: str) -> None:
    id_ = ("x",) if command == "inspect" else ()
    wrong = fake_node.base / "wrong.hcl"
    wrong.write_text('plugin "chv" {\n config {\n data_dir = "here"\n vm_uids = "all"\n }\n }\n')
    done = fake_node.command(command, *id_, "--config", str(wrong))
    assert done.returncode == 2
    assert "data_dir" in done.stderr
    assert "vm_uids" in done.stderr
    assert "Traceback" not in done.stderr
    # The option wins over the variable.
    done = fake_node.command(command, *id_, "--config", str(fake_node.agent_file), env={"CHV_CONFIG": str(wrong)})
    assert "vm_uids" not in done.stderr
    assert fake_node.command(command, *id_, env={"CHV_CONFIG": str(wrong)}).returncode == 2
    for named in (fake_node.base / "none.hcl", fake_node.base / "empty"):
        (fake_node.base / "empty").mkdir(exist_ok=True)
        done = fake_node.command(command, *id_, "--config", str(named))
        assert (done.returncode, done.stdout) == (2, "")
        assert str(named) in done.stderr
        assert "Traceback" not in done.stderr
    broken = fake_node.base / "broken.hcl"
    broken.write_text("plugin {{{ \x00")
    done = fake_node.command(command, *id_, env={"CHV_CONFIG": str(broken)})
    assert done.returncode == 2
    assert str(broken) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [(), ("nonsense",), ("ps", "--nonsense"), ("inspect",), ("ps", "more")])
def test_wrong_usage_is_exit_code_two(fake_node: Node, words: tuple[str, ...]) -> None:
    done = fake_node.command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: chv" in done.stderr


def test_help_names_every_command_and_the_version_is_said(fake_node: Node) -> None:
    done = fake_node.command("--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^ +{command}\b", done.stdout, re.MULTILINE)
        assert fake_node.command(command, "--help").returncode == 0
    assert fake_node.command("--version").stdout.startswith("chv ")


@pytest.mark.parametrize("words", [("ps",), ("inspect", "x"), ("disks",), ("cores",), ("gc",), ("stop", "x")])
def test_whoever_may_not_look_is_told_so_in_one_sentence(fake_node: Node, words: tuple[str, ...]) -> None:
    data_dir = fake_node.layout.data_dir
    data_dir.mkdir(mode=0o700)
    os.chown(data_dir, 12345, 12345)
    # Root without the right to look everywhere: another user could not read this checkout.
    done = subprocess.run(
        ["setpriv", "--bounding-set=-dac_override,-dac_read_search", str(fake_node.chv), *words],
        env={**os.environ, **fake_node.environment, "CHV_CONFIG": str(fake_node.agent_file)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"chv: {data_dir}: permission denied, expected root (try sudo)\n"
    data_dir.rmdir()
