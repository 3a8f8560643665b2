"""`chv dev JOB`: run one job on this machine without a Nomad agent, and show what happens as it happens.

The guest's console goes to stdout as it is, everything else to stderr; the exit code is the task's own.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from driver.cli.itself import this_command
from driver.devhost.agentfile import find_agent_file
from driver.devhost.alloc import HOST_IP
from driver.devhost.client import RpcError
from driver.devhost.errors import AgentFileError, DevHostError, JobFileError, SchemaError
from driver.devhost.events import Event, ExitResult
from driver.devhost.host import DevHost
from driver.devhost.job import Job
from driver.devhost.jobfile import read_job
from driver.devhost.pluginproc import LogLine
from driver.signals import short_time, stops_at_once

DRIVER = "chv"
REFUSED, FAILED = 2, 1
_SHOWN_ALWAYS = ("warn", "error")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "dev",
        help="run a job file without a Nomad agent",
        description="Run one job (one group, one task) on this machine, as a Nomad client would. ^C stops it.",
        epilog="Exit codes: the task's own; 128 + n for signal n; 2 the job or the config is refused;"
        " 1 it did not start.",
    )
    parser.add_argument("job", metavar="JOB.nomad.hcl", type=Path)
    parser.add_argument("--config", metavar="FILE", type=Path, help="agent file with our plugin block (CHV_CONFIG)")
    parser.add_argument("--plugin", metavar="PATH", type=Path, help="the plugin to use (default: this executable)")
    parser.add_argument("--meta", metavar="KEY=VALUE", type=_pair, action="append", default=[], help="${meta.KEY}")
    parser.add_argument("--alloc-dir", metavar="DIR", type=Path, help="where the alloc's directory is made")
    parser.add_argument("--keep", action="store_true", help="keep the alloc's directory, and say where it is")
    parser.add_argument("--json", action="store_true", help="events and output as JSON lines on stdout")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the plugin's log, and the task's details")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The task's exit code; 128 + n for signal n; 2 when the job or the config is refused, 1 when it did not start."""
    printer = JsonPrinter() if args.json else Printer(verbose=args.verbose)
    try:
        job = read_job(args.job)
        agent_file = find_agent_file(args.config)
        return asyncio.run(_run(args, job, agent_file, printer))
    except (JobFileError, SchemaError, AgentFileError, OSError, UnicodeDecodeError) as exc:
        printer.refuse(str(exc))
        return REFUSED
    except DevHostError as exc:
        printer.refuse(str(exc))
        return FAILED


async def _run(args: argparse.Namespace, job: Job, agent_file: Path | None, printer: "Printer | JsonPrinter") -> int:
    argv = plugin_argv(args.plugin)
    config = f"with {agent_file}" if agent_file else "with defaults, no agent file"
    printer.progress(f"starting the plugin {argv[0]} {config}")
    if lint := _lint(job):
        printer.lint(lint)
    host = DevHost(
        job,
        plugin_argv=argv,
        agent_file=agent_file,
        alloc_parent=args.alloc_dir,
        meta=dict(args.meta),
        keep=args.keep,
        on_event=printer.event,
        on_output=printer.output,
        on_log=printer.log,
    )
    life = asyncio.create_task(_life(host, printer))
    _on_signals(_Stopper(host, life, printer).stop)
    try:
        result = await life
    except asyncio.CancelledError:
        return 128 + signal.SIGINT
    if args.keep:
        printer.progress(f"kept {host.alloc.paths.root}")
    printer.ended(result)
    return result.shell_code


async def _life(host: DevHost, printer: "Printer | JsonPrinter") -> ExitResult:
    async with host:
        found = host.supervisor.fingerprint
        assert found is not None
        printer.progress(f"driver {host.job.task.driver} is healthy{f': {found.text}' if found.text else ''}")
        printer.progress(f"job {host.job.id}, allocation {host.alloc.id[:8]}")
        for label, (outside, inside) in host.alloc.ports.items():
            printer.port(label, outside, inside)
        result = await host.run()
        printer.details(host)
    return result


def _lint(job: Job) -> str:
    """What only the job file says, and the plugin is not told in time."""
    task = job.task
    advice = short_time(task.kill_timeout_s)
    if task.driver != DRIVER or not advice or stops_at_once(task.kill_signal):
        return ""
    return f"kill_timeout is {task.kill_timeout_s:g} s: {advice}"


class _Stopper:
    """^C once stops the task as `alloc stop` does, twice kills it, a third time ends all."""

    def __init__(self, host: DevHost, life: "asyncio.Task[ExitResult]", printer: "Printer | JsonPrinter") -> None:
        self._host = host
        self._life = life
        self._printer = printer
        self._count = 0
        self._killing: asyncio.Task[None] | None = None

    def stop(self) -> None:
        self._count += 1
        if not self._host.started or self._count > 2:
            self._life.cancel()
        elif self._count == 1:
            self._host.kill()
        else:
            self._printer.progress("killing it")
            self._killing = asyncio.create_task(self._kill_now())

    async def _kill_now(self) -> None:
        try:
            await self._host.kill_now()
        except (RpcError, DevHostError) as exc:
            self._printer.progress(f"cannot kill it: {exc}")


def _on_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)


def plugin_argv(named: Path | None) -> list[str]:
    """How to start the plugin: what was named, else what runs now."""
    if named is not None:
        return [str(named.absolute())]
    return this_command()


class Printer:
    """For people."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose

    def progress(self, words: str) -> None:
        self._say(f"==> {words}")

    def lint(self, words: str) -> None:
        self.progress(f"lint: {words}")

    def port(self, label: str, outside: int, inside: int) -> None:
        self.progress(f"port {label}: {HOST_IP}:{outside} leads to {inside}")

    def event(self, event: Event) -> None:
        self._say(f"==> {event.type:<16} {event.message}")

    def output(self, stream: str, data: bytes) -> None:
        out = sys.stdout if stream == "stdout" else sys.stderr
        out.buffer.write(data)
        out.flush()

    def log(self, line: LogLine) -> None:
        if self._verbose or line.level in _SHOWN_ALWAYS:
            self._say(f"    {line}")

    def details(self, host: DevHost) -> None:
        if not self._verbose:
            return
        if host.stats:
            usage = host.stats[-1].agg_resource_usage
            self._say(f"    last sample: cpu {usage.cpu.percent:.0f} %, memory {usage.memory.rss // 2**20} MiB")
        if host.inspected is not None:
            for key, value in sorted(host.inspected.driver.attributes.items()):
                self._say(f"    {key} = {value}")

    def ended(self, result: ExitResult) -> None:
        self.progress("done" if result.successful else f"failed, exit code {result.shell_code}")

    def refuse(self, words: str) -> None:
        self._say(f"chv dev: {words}")

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class JsonPrinter:
    """For programs: one object a line."""

    def progress(self, words: str) -> None:
        pass

    def lint(self, words: str) -> None:
        self._write(kind="lint", message=words)

    def port(self, label: str, outside: int, inside: int) -> None:
        self._write(kind="port", label=label, host_port=outside, port=inside)

    def event(self, event: Event) -> None:
        self._write(kind="event", time=event.at, type=event.type, message=event.message, details=dict(event.details))

    def output(self, stream: str, data: bytes) -> None:
        self._write(kind="output", stream=stream, text=data.decode(errors="replace"))

    def log(self, line: LogLine) -> None:
        pass

    def details(self, host: DevHost) -> None:
        pass

    def ended(self, result: ExitResult) -> None:
        self._write(
            kind="exit",
            code=result.shell_code,
            exit_code=result.exit_code,
            signal=result.signal,
            oom_killed=result.oom_killed,
            message=result.message,
        )

    def refuse(self, words: str) -> None:
        self._write(kind="refused", message=words)

    def _write(self, **facts: Any) -> None:
        print(json.dumps(facts), flush=True)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r}, expected KEY=VALUE")
    return key, value
