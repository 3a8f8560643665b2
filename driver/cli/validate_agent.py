"""Agent files for `chv validate`: both plugin blocks of ours, and the CPU lists that our cores depend on."""

import json
from collections.abc import Callable
from typing import Any

from driver._pb import hclspec_pb2
from driver.cli.validate_found import Report, of_schema
from driver.config_plugin import decode_plugin_config
from driver.decode import Complaints, show
from driver.devhost import hcl1, hclspec
from driver.devhost.lined import Lined, line_of, parse_json
from driver.device_schema import CORES_DEVICE, decode_device_config, device_spec
from driver.keys import PLUGIN, plugin_spec
from driver.schema import Members
from vmlib.cores.cpulist import parse_cpus

Decode = Callable[[bytes, Complaints], Any]

_PLUGINS: dict[str, tuple[Callable[[], hclspec_pb2.Spec], Members, Decode]] = {
    "chv": (plugin_spec, PLUGIN, decode_plugin_config),
    "chv-cores": (device_spec, CORES_DEVICE, decode_device_config),
}


def check_agent(text: str, name: str) -> Report:
    report = Report(file=name, what="agent file")
    try:
        file = parse_json(text) if text.lstrip().startswith("{") else hcl1.parse(text)
    except json.JSONDecodeError as exc:
        report.add(exc.lineno, "", f"not JSON: {exc.msg}")
        return report
    except hcl1.Hcl1Error as exc:
        report.add(exc.line, "", exc.problem)
        return report
    except RecursionError:
        report.add(1, "", "nested too deeply")
        return report
    if not isinstance(file, Lined):
        report.add(1, "", "expected an object")
        return report
    found = [name for name in _PLUGINS if _check_plugin(report, file, name)]
    if not found:
        report.notes.append('no plugin "chv" block')
    report.what = f"agent file with {' and '.join(found)}" if found else "agent file without a block of ours"
    _check_cpus(report, file)
    return report.sorted()


def _check_plugin(report: Report, file: Lined, name: str) -> bool:
    """False when there is no such block."""
    bodies = [body for plugin in _objects(file.get("plugin")) for body in _objects(plugin.get(name))]
    if not bodies:
        return False
    spec, members, decode = _PLUGINS[name]
    known = {member.name for member in members}
    for body in bodies:
        for key in sorted(body.keys() & known):
            report.add(line_of(body, key), key, f'plugin "{name}": expected it in config {{ … }} of this block')
    configs = [config for body in bodies for config in _objects(body.get("config"))]
    body = configs[-1] if configs else Lined(bodies[-1].line)
    seen = hclspec.examine(spec(), body, references=False)
    of_schema(report, seen.complaints, body, members)
    complaints = Complaints(path for path, _ in seen.complaints)
    decode(seen.data, complaints)
    for one in complaints.found:
        report.add(line_of(body, one.key), one.key, one.expected, value=one.value)
    return True


def _check_cpus(report: Report, file: Lined) -> None:
    """A list that cannot be read is an agent that does not start, or cores that are not ours."""
    for client in _objects(file.get("client")):
        places = [(client, "reservable_cores", "client.reservable_cores")]
        places += [(block, "cores", "client.reserved.cores") for block in _objects(client.get("reserved"))]
        for block, key, path in places:
            value = block.get(key, "")
            try:
                parse_cpus(value if isinstance(value, str) else str(value))
            except ValueError as exc:
                report.add(line_of(block, key), path, str(exc), value=show(value))


def _objects(value: Any) -> list[Lined]:
    found = value if isinstance(value, list) else [value]
    return [one for one in found if isinstance(one, Lined)]
