"""The operator's agent file: finds it, and takes from it our plugin block, the node's metadata and its CPU lists."""

import json
import os
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, NoReturn

from driver.devhost import hcl1, hclspec
from driver.devhost.errors import AgentFileError, SchemaError
from driver.devhost.node import parse_cpu_list

DEFAULT_DIR = Path("/etc/nomad.d")
PLUGIN = "chv"


def find_agent_file(named: Path | None, *, directory: Path = DEFAULT_DIR) -> Path | None:
    """The file that was named, that of CHV_CONFIG, or the one with our block in /etc/nomad.d; None when there is none.

    A named file need not have the block: the defaults hold then. Raises AgentFileError when it is not there.
    """
    named = named or (Path(value) if (value := os.environ.get("CHV_CONFIG")) else None)
    if named is not None:
        if named.is_dir():
            return _with_block(named) or _no_block(named)
        if not named.is_file():
            raise AgentFileError(f"{named}: no such file")
        return named
    return _with_block(directory)


def agent_files(named: Path | None, *, directory: Path = DEFAULT_DIR) -> list[Path]:
    """All the files of that agent, in the order in which it reads them: the one that was named, or a whole directory.

    Empty when there is none. Raises AgentFileError.
    """
    found = find_agent_file(named, directory=directory)
    if found is None:
        return []
    if found in (named, Path(os.environ.get("CHV_CONFIG", ""))):
        return [found]
    return sorted(_agent_files(found.parent))


def plugin_config_msgpack(path: Path | None, spec: hclspec.Spec) -> bytes:
    """The block's config as Nomad sends it with SetConfig. Raises AgentFileError with all complaints."""
    body = plugin_block(read(path)) if path is not None else {}
    try:
        return hclspec.encode(spec, body or {})
    except SchemaError as exc:
        raise AgentFileError(f'{path}: plugin "{PLUGIN}": {exc}') from exc


def client_meta(path: Path | None) -> dict[str, str]:
    """`client { meta { … } }`: what `${meta.x}` stands for in jobs."""
    if path is None:
        return {}
    found: dict[str, str] = {}
    for client in _objects(read(path).get("client")):
        for meta in _objects(client.get("meta")):
            found |= {key: _text(value) for key, value in meta.items()}
    return found


def withheld_cores(path: Path | None, cpus: AbstractSet[int]) -> frozenset[int]:
    """Those of this machine's `cpus` that an agent gives to no task. Raises AgentFileError.

    As on Nomad, `reservable_cores` in the client block, when there is one, makes it ignore `reserved { cores }`.
    """
    clients = _objects(read(path).get("client")) if path is not None else []
    reservable = _cpus(path, "client.reservable_cores", clients, "reservable_cores")
    reserved_blocks = [block for client in clients for block in _objects(client.get("reserved"))]
    reserved = _cpus(path, "client.reserved.cores", reserved_blocks, "cores")
    return frozenset(cpus - reservable if reservable else cpus & reserved)


def merged(paths: Iterable[Path]) -> dict[str, Any]:
    """Files as an agent reads them: blocks add up, and of a value that stands in several the last one counts."""
    found: dict[str, Any] = {}
    for path in paths:
        for key, value in read(path).items():
            blocks = _objects(value)
            found[key] = [*_objects(found.get(key)), *blocks] if blocks else value
    return found


def setting(file: dict[str, Any], *path: str) -> str:
    """The text of a value in blocks, `("client", "reserved", "cores")`; "" when it is in none, the last one else."""
    *names, key = path
    blocks = [file]
    for name in names:
        blocks = [inner for block in blocks for inner in _objects(block.get(name))]
    texts = [_text(block[key]).strip() for block in blocks if key in block]
    return texts[-1] if texts else ""


def plugin_block(file: dict[str, Any]) -> dict[str, Any] | None:
    """The inside of `plugin "chv" { config { … } }`; None without such a block, empty without a config."""
    bodies = [body for plugin in _objects(file.get("plugin")) for body in _objects(plugin.get(PLUGIN))]
    if not bodies:
        return None
    configs = [config for body in bodies for config in _objects(body.get("config"))]
    return configs[-1] if configs else {}


def read(path: Path) -> dict[str, Any]:
    """The whole file as values. A file that ends in .json is JSON."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            found = json.loads(text)
            if not isinstance(found, dict):
                raise ValueError("expected an object")
            return found
        return hcl1.parse(text)
    except ValueError as exc:
        raise AgentFileError(f"{path}: {exc}") from exc


def _with_block(directory: Path) -> Path | None:
    """The last file in which our block stands: Nomad reads them by name, and a later one wins."""
    return next((path for path in _agent_files(directory) if plugin_block(read(path)) is not None), None)


def _agent_files(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        yield from sorted((path for path in directory.iterdir() if path.suffix in (".hcl", ".json")), reverse=True)


def _no_block(directory: Path) -> NoReturn:
    raise AgentFileError(f'{directory}: no file with a plugin "{PLUGIN}" block')


def _cpus(path: Path | None, name: str, blocks: list[dict[str, Any]], key: str) -> frozenset[int]:
    """The list in the last of these blocks that has one. A blank one counts as none, as on Nomad."""
    texts = [text for block in blocks if (text := _text(block.get(key, "")).strip())]
    try:
        return frozenset(parse_cpu_list(texts[-1] if texts else ""))
    except ValueError as exc:
        raise AgentFileError(f"{path}: {name} = {texts[-1]!r}: {exc}") from exc


def _objects(value: Any) -> list[dict[str, Any]]:
    found = value if isinstance(value, list) else [value]
    return [one for one in found if isinstance(one, dict)]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
