"""The Nomad agent of this host as `chv doctor` finds it: what its files say, what it says itself, and its program."""

import contextlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from driver.devhost.agentfile import agent_files, merged, setting
from driver.devhost.node import parse_cpu_list
from vmlib.errors import HostError
from vmlib.probe import find_program
from vmlib.process import run_tool

_ANSWER_S = 3.0
_ANSWER_MAX_BYTES = 4 << 20
_VERSION_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What the agent's files say."""

    files: tuple[Path, ...] = ()
    address: str = "http://127.0.0.1:4646"
    plugin_dir: Path | None = None  # None: they do not say
    telemetry: bool = False  # the numbers of allocs are asked for
    reserved_cores: str = ""
    reservable_cores: str = ""
    reserved_mhz: int = 0
    total_mhz: int = 0  # 0: as Nomad finds it
    has_client: bool = False
    cores_device_dir: Path | None = None  # the data_dir that the block of chv-cores names; None: it has no block

    def withheld(self, cpus: AbstractSet[int]) -> frozenset[int]:
        """Those of this host's `cpus` that no task gets. Raises ValueError."""
        if reservable := frozenset(parse_cpu_list(self.reservable_cores)):
            return frozenset(cpus - reservable)
        return frozenset(cpus & frozenset(parse_cpu_list(self.reserved_cores)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningAgent:
    """What an agent that answers says of itself."""

    version: str
    plugin_dir: str
    telemetry: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFacts:
    """All of it. `why_silent` is the reason when no agent answers."""

    settings: AgentSettings
    running: RunningAgent | None = None
    why_silent: str = ""
    program: str = ""  # the path of `nomad`, "" = not on this host's PATH
    program_version: str = ""
    program_fault: str = ""  # why it does not say its version
    users: frozenset[int] = frozenset()  # the uids of agents that run here

    @property
    def version(self) -> tuple[int, ...]:
        """Of the agent that runs, else of the program; empty when neither is known."""
        text = self.running.version if self.running is not None else self.program_version
        return version_of(text)


def agent_settings(named: Path | None, environment: Mapping[str, str]) -> AgentSettings:
    """Of the agent whose files these are. Raises AgentFileError, ValueError."""
    files = agent_files(named)
    file = merged(files)
    data_dir, plugin_dir = setting(file, "data_dir"), setting(file, "plugin_dir")
    cores_block = ("plugin", "chv-cores", "config", "data_dir")
    has_cores = setting(file, "plugin", "chv-cores") != ""
    return AgentSettings(
        files=tuple(files),
        address=environment.get("NOMAD_ADDR") or _address(file),
        plugin_dir=Path(plugin_dir) if plugin_dir else Path(data_dir, "plugins") if data_dir else None,
        telemetry=setting(file, "telemetry", "publish_allocation_metrics") == "true",
        reserved_cores=setting(file, "client", "reserved", "cores"),
        reservable_cores=setting(file, "client", "reservable_cores"),
        reserved_mhz=_number(setting(file, "client", "reserved", "cpu")),
        total_mhz=_number(setting(file, "client", "cpu_total_compute")),
        has_client="client" in file,
        cores_device_dir=Path(setting(file, *cores_block) or "/var/lib/chv") if has_cores else None,
    )


def look_at_agent(settings: AgentSettings, environment: Mapping[str, str]) -> AgentFacts:
    """Ask the agent, and the program; both end within seconds."""
    running, why = _ask(settings.address, environment)
    program = find_program("nomad") or ""
    version, fault = "", ""
    if program:
        try:
            version = run_tool([program, "version"], timeout_s=_VERSION_S).strip().partition("\n")[0][:100]
        except HostError as exc:
            fault = str(exc)
        if version and not version_of(version):
            version, fault = "", f"says {version!r}, expected `Nomad vX.Y.Z`"
    return AgentFacts(
        settings=settings,
        running=running,
        why_silent=why,
        program=program,
        program_version=version.removeprefix("Nomad ").removeprefix("v"),
        program_fault=fault,
        users=frozenset(agent_users()),
    )


def agent_users(proc: Path = Path("/proc")) -> Iterator[int]:
    """As whom each agent of this host runs, one that answers at another address too."""
    for pid in filter(str.isdecimal, os.listdir(proc)):
        with contextlib.suppress(OSError):  # it ends meanwhile
            if (proc / pid / "comm").read_bytes() == b"nomad\n":
                words = (proc / pid / "cmdline").read_bytes().split(b"\0")
                if b"agent" in words:
                    yield (proc / pid).stat().st_uid


def version_of(text: str) -> tuple[int, ...]:
    """`(1, 10, 2)` out of `Nomad v1.10.2+ent`; empty when there is none in it."""
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()


def _ask(address: str, environment: Mapping[str, str]) -> tuple[RunningAgent | None, str]:
    request = urllib.request.Request(f"{address.rstrip('/')}/v1/agent/self")
    if token := environment.get("NOMAD_TOKEN"):
        request.add_header("X-Nomad-Token", token)
    # No proxy: it is this host's own agent that is asked.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_ANSWER_S) as answer:
            config = json.loads(answer.read(_ANSWER_MAX_BYTES))["config"]
            return RunningAgent(
                version=str(config["Version"]["Version"]),
                plugin_dir=str(config.get("PluginDir") or ""),
                telemetry=bool((config.get("Telemetry") or {}).get("PublishAllocationMetrics")),
            ), ""
    except urllib.error.HTTPError as exc:
        with exc:
            return None, "it wants a token: set NOMAD_TOKEN" if exc.code == 403 else f"HTTP status {exc.code}"
    except OSError as exc:
        reason = getattr(exc, "reason", None)
        return None, str(getattr(reason, "strerror", None) or reason or exc.strerror or exc).lower()
    except http.client.InvalidURL as exc:
        return None, f"not an address: {exc}"
    except (http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
        return None, "what answers there is no Nomad agent"


def _address(file: dict[str, Any]) -> str:
    """Where it answers on this host."""
    host = setting(file, "addresses", "http") or setting(file, "bind_addr")
    host = host.split(" ")[0]
    if not re.fullmatch(r"[0-9A-Fa-f.:]+", host) or host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    scheme = "https" if setting(file, "tls", "http") == "true" else "http"
    return f"{scheme}://{host}:{setting(file, 'ports', 'http') or 4646}"


def _number(text: str) -> int:
    with contextlib.suppress(ValueError):
        return int(float(text))
    return 0
