"""Job files: one group with one task. Whatever else a job may hold is refused by name, with its line."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from driver.devhost.errors import JobFileError
from driver.devhost.goduration import parse_duration
from driver.devhost.hcltree import Attribute, Block, Body, config_json, parse
from driver.devhost.job import Artifact, Job, Port, Resources, Task
from driver.devhost.restarts import BATCH_POLICY, SERVICE_POLICY, RestartPolicy

MAX_KILL_TIMEOUT_S = 30.0
_ARCHIVES = (".tar", ".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".zip", ".gz", ".bz2", ".xz", ".zst")


def read_job(path: Path) -> Job:
    """Raises JobFileError; OSError when the file cannot be read."""
    return job_of(path.read_text(encoding="utf-8"), path)


def job_of(text: str, path: Path) -> Job:
    return _Reader(path).job(parse(text, path))


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, problem: str, line: int) -> JobFileError:
        return JobFileError(problem, path=self.path, line=line)

    # -- the levels -----------------------------------------------------------------------------------------------

    def job(self, file: Body) -> Job:
        self.only(file, "at the top of the file", blocks=("job",))
        block = self.single(file, "job", where="the file", line=1)
        assert block is not None
        id_ = self.label(block)
        body = block.body
        self.only(
            body,
            "in job",
            attributes=("type", "datacenters", "namespace", "region", "name", "id", "meta", "node_pool"),
            blocks=("group", "meta"),
        )
        type_ = self.text(body, "type", "service")
        if type_ not in ("service", "batch"):
            raise self.fail(f"type = {type_!r}: chv dev runs service and batch", body.attributes["type"].line)
        datacenters = self.texts(body, "datacenters", ["dc1"])
        group = self.single(body, "group", where="job", line=block.line)
        assert group is not None
        return self.group(
            group,
            Job(
                path=self.path,
                id=self.text(body, "id", id_),
                name=self.text(body, "name", id_),
                type=cast(Literal["service", "batch"], type_),
                namespace=self.text(body, "namespace", "default"),
                region=self.text(body, "region", "global"),
                datacenter="dc1" if not datacenters or "*" in datacenters[0] else datacenters[0],
                group=self.label(group),
                ports=(),
                task=_NO_TASK,
            ),
            self.mapping(body, "meta"),
        )

    def group(self, block: Block, job: Job, meta: dict[str, str]) -> Job:
        body = block.body
        self.only(
            body,
            "in group",
            attributes=("count", "meta"),
            blocks=("network", "restart", "reschedule", "meta", "ephemeral_disk", "task"),
        )
        if (count := self.whole(body, "count", 1)) != 1:
            raise self.fail(f"count = {count}: chv dev runs one", body.attributes["count"].line)
        if (disk := self.single(body, "ephemeral_disk")) is not None:
            self.only(disk.body, "in ephemeral_disk", attributes=("size", "migrate", "sticky"))
        self.no_reschedule(body)
        policy = self.restart(body, BATCH_POLICY if job.type == "batch" else SERVICE_POLICY)
        network = self.single(body, "network")
        ports = self.ports(network) if network else ()
        task = self.single(body, "task", where="group", line=block.line)
        assert task is not None
        return replace(
            job,
            ports=ports,
            task=self.task(task, policy, meta | self.mapping(body, "meta")),
        )

    def task(self, block: Block, policy: RestartPolicy, meta: dict[str, str]) -> Task:
        body = block.body
        self.only(
            body,
            "in task",
            attributes=("driver", "user", "leader", "kill_timeout", "kill_signal", "env", "meta", "config"),
            blocks=("config", "env", "meta", "resources", "restart", "logs", "artifact"),
        )
        self.truth(body, "leader", False)
        driver = self.text(body, "driver", "")
        if not driver:
            raise self.fail("task: it has no driver", block.line)
        logs = self.single(body, "logs")
        return Task(
            name=self.label(block),
            driver=driver,
            config=self.config(body),
            env=self.mapping(body, "env"),
            meta=meta | self.mapping(body, "meta"),
            resources=self.resources(body),
            restart=self.restart(body, policy),
            kill_timeout_s=min(self.time(body, "kill_timeout", 5.0), MAX_KILL_TIMEOUT_S),
            kill_signal=self.text(body, "kill_signal", ""),
            user=self.text(body, "user", ""),
            logs=self.logs(logs) if logs else True,
            artifacts=tuple(self.artifact(one) for one in body.blocks_of("artifact")),
        )

    # -- parts of them --------------------------------------------------------------------------------------------

    def config(self, body: Body) -> dict[str, Any]:
        if (attribute := body.attributes.get("config")) is not None:
            raise self.fail("config: expected a block, without =", attribute.line)
        block = self.single(body, "config")
        return config_json(block.body) if block else {}

    def resources(self, body: Body) -> Resources:
        block = self.single(body, "resources")
        if block is None:
            return Resources()
        inner = block.body
        self.only(inner, "in resources", attributes=("cpu", "cores", "memory", "memory_max"))
        if "cpu" in inner.attributes and "cores" in inner.attributes:
            raise self.fail("resources: cpu and cores exclude each other", inner.attributes["cores"].line)
        return Resources(
            cpu_mhz=self.whole(inner, "cpu", 100, least=1),
            cores=self.whole(inner, "cores", 0),
            memory_mib=self.whole(inner, "memory", 300, least=10),
            memory_max_mib=self.whole(inner, "memory_max", 0, least=-1),
        )

    def restart(self, body: Body, policy: RestartPolicy) -> RestartPolicy:
        block = self.single(body, "restart")
        if block is None:
            return policy
        inner = block.body
        self.only(inner, "in restart", attributes=("attempts", "interval", "delay", "mode"))
        mode = self.text(inner, "mode", policy.mode)
        if mode not in ("fail", "delay"):
            raise self.fail(f"mode = {mode!r}: expected fail or delay", inner.attributes["mode"].line)
        return RestartPolicy(
            attempts=self.whole(inner, "attempts", policy.attempts),
            interval_s=self.time(inner, "interval", policy.interval_s, least_s=5.0),
            delay_s=self.time(inner, "delay", policy.delay_s),
            mode=cast(Literal["fail", "delay"], mode),
        )

    def no_reschedule(self, body: Body) -> None:
        """There is no other node: a job may only say that it wants none."""
        block = self.single(body, "reschedule")
        if block is None:
            return
        self.only(block.body, "in reschedule", attributes=("attempts", "unlimited"))
        if self.whole(block.body, "attempts", 1) != 0 or self.truth(block.body, "unlimited", True):
            raise self.fail("reschedule: chv dev has one node, only attempts = 0 with unlimited = false", block.line)

    def ports(self, network: Block) -> tuple[Port, ...]:
        self.only(network.body, "in network", attributes=("mode",), blocks=("port",))
        if (mode := self.text(network.body, "mode", "host")) != "host":
            raise self.fail(f"mode = {mode!r}: chv dev has host networks only", network.body.attributes["mode"].line)
        ports: dict[str, Port] = {}
        for block in network.body.blocks:
            self.only(block.body, "in port", attributes=("static", "to"))
            label = self.label(block)
            if label in ports:
                raise self.fail(f"port {label}: there are two of this name", block.line)
            static = self.whole(block.body, "static", 0, most=65535)
            to = self.whole(block.body, "to", 0, least=-1, most=65535)
            ports[label] = Port(label=label, static=static or None, to=to)
        return tuple(ports.values())

    def logs(self, block: Block) -> bool:
        self.only(block.body, "in logs", attributes=("disabled", "max_files", "max_file_size"))
        return not self.truth(block.body, "disabled", False)

    def artifact(self, block: Block) -> Artifact:
        body = block.body
        self.only(body, "in artifact", attributes=("source", "destination", "mode", "options"), blocks=("options",))
        source = self.text(body, "source", "")
        scheme = source.partition("://")[0] if "://" in source else ""
        if not source or scheme not in ("", "file", "http", "https") or "::" in source:
            line = body.attributes["source"].line if source else block.line
            raise self.fail(f"source = {source!r}: chv dev brings local files and http(s) addresses", line)
        mode = self.text(body, "mode", "any")
        if mode not in ("any", "file"):
            raise self.fail(f"mode = {mode!r}: chv dev knows any and file", body.attributes["mode"].line)
        options = self.mapping(body, "options")
        for name in options:
            if name not in ("checksum", "archive"):
                raise self.fail(f"options: {name!r} is not supported by chv dev, checksum and archive are", block.line)
        packed = source.partition("?")[0].endswith(_ARCHIVES)
        if packed and options.get("archive") != "false":
            raise self.fail(
                f"source = {source!r}: chv dev unpacks no archives, options archive = false keeps it", block.line
            )
        return Artifact(
            source=source,
            destination=self.text(body, "destination", "local/"),
            mode=cast(Literal["any", "file"], mode),
            options=options,
        )

    # -- what may stand where -------------------------------------------------------------------------------------

    def only(self, body: Body, where: str, *, attributes: tuple[str, ...] = (), blocks: tuple[str, ...] = ()) -> None:
        """Refuse what is not named, the first in the file first."""
        unknown = [
            (one.line, f"attribute {one.name}") for one in body.attributes.values() if one.name not in attributes
        ]
        unknown += [(one.line, f"block {one.type}") for one in body.blocks if one.type not in blocks]
        if unknown:
            line, what = min(unknown)
            raise self.fail(f"{what} {where}: not supported by chv dev", line)

    def single(self, body: Body, type_: str, *, where: str = "", line: int = 0) -> Block | None:
        """The one block of that type; with `where` there must be one."""
        found = body.blocks_of(type_)
        if len(found) > 1:
            raise self.fail(f"block {type_}: chv dev knows one, this is another", found[1].line)
        if not found and where:
            raise self.fail(f"{where}: it has no {type_}", line)
        return found[0] if found else None

    def label(self, block: Block) -> str:
        if len(block.labels) != 1 or not block.labels[0]:
            raise self.fail(f"{block.type}: expected one name", block.line)
        return block.labels[0]

    # -- values ---------------------------------------------------------------------------------------------------

    def text(self, body: Body, name: str, default: str) -> str:
        found = body.attributes.get(name)
        if found is None or found.value is None:
            return default
        if not isinstance(found.value, str):
            raise self.wrong(found, "a string")
        return found.value

    def texts(self, body: Body, name: str, default: list[str]) -> list[str]:
        found = body.attributes.get(name)
        if found is None:
            return default
        if not isinstance(found.value, list) or not all(isinstance(one, str) for one in found.value):
            raise self.wrong(found, "a list of strings")
        return found.value

    def truth(self, body: Body, name: str, default: bool) -> bool:
        found = body.attributes.get(name)
        if found is None:
            return default
        if not isinstance(found.value, bool):
            raise self.wrong(found, "true or false")
        return found.value

    def whole(self, body: Body, name: str, default: int, *, least: int = 0, most: int = 2**31 - 1) -> int:
        found = body.attributes.get(name)
        if found is None:
            return default
        value = found.value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(found, f"a whole number from {least} to {most}")
        return value

    def time(self, body: Body, name: str, default: float, *, least_s: float = 0.0) -> float:
        found = body.attributes.get(name)
        if found is None:
            return default
        try:
            seconds = parse_duration(found.value) if isinstance(found.value, str) else None
        except ValueError:
            seconds = None
        if seconds is None or seconds < least_s:
            raise self.wrong(found, "a time like 30s" + (f", at least {least_s:g}s" if least_s else ""))
        return seconds

    def mapping(self, body: Body, name: str) -> dict[str, str]:
        """`env { K = "v" }` or `env = { K = "v" }`; values become text."""
        found: dict[str, Any] = {}
        if (attribute := body.attributes.get(name)) is not None:
            if not isinstance(attribute.value, dict):
                raise self.wrong(attribute, "a block or an object")
            found = attribute.value
            lines: Mapping[str, int] = dict.fromkeys(found, attribute.line)
        else:
            block = self.single(body, name)
            inner = block.body if block else Body()
            if inner.blocks:
                raise self.fail(
                    f"block {inner.blocks[0].type} in {name}: not supported by chv dev", inner.blocks[0].line
                )
            found = {key: one.value for key, one in inner.attributes.items()}
            lines = {key: one.line for key, one in inner.attributes.items()}
        return {key: self.as_text(name, key, value, lines[key]) for key, value in found.items()}

    def as_text(self, name: str, key: str, value: Any, line: int) -> str:
        match value:
            case bool():
                return "true" if value else "false"
            case int() | float() | str():
                return str(value)
        raise self.fail(f"{name}: {key} = {value!r}, expected a string", line)

    def wrong(self, attribute: Attribute, expected: str) -> JobFileError:
        return self.fail(f"{attribute.name} = {attribute.value!r}: expected {expected}", attribute.line)


_NO_TASK = Task(name="", driver="", config={}, env={}, meta={}, resources=Resources(), restart=SERVICE_POLICY)
