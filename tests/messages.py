"""Makes docs/messages.md of the code: every message that a person may see, sorted by what it is about, with its cure.

`python -m tests.messages` writes the page, `--check` says whether it is what the code says (`make lint`).
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.pages import CHECKOUT, DOCS

PAGE = DOCS / "messages.md"
# Who can act, by the class that is raised; what is derived from one of them counts as that.
ACTORS = {
    "SpecError": "job",
    "HostError": "node",
    "NoCapacityError": "wait",
    "HypervisorError": "VMM",
    "LaunchError": "VMM",
    "ApiError": "VMM",
    "NotFoundError": "Nomad",
    "UnimplementedError": "job",
    "NoAgentError": "guest",
    "AgentLostError": "guest",
    "CommandTimeoutError": "guest",
    "Finding": "health",
    "Lack": "health",
}
HINTS = ("hint", "cure")
# Not for people: the embedded host and what plays a hypervisor in tests.
LEFT_OUT = ("driver/_pb/", "driver/devhost/", "driver/cli/", "vmlib/hypervisor/fake")

# The first that fits says where a message stands, and what helps where it does not say so itself.
TOPICS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "The task block",
        ("driver/config_task.py", "driver/config_network.py", "driver/config_values.py", "driver/decode.py"),
        (
            "The job is refused before anything is made, with all complaints at once: correct the key that is named"
            " ([task.md](task.md)). Those of `network` blocks and general ones are of the plugin block as well."
        ),
    ),
    (
        "The plugin block",
        ("driver/config_plugin.py", "driver/device_schema.py"),
        "The agent does not start with such a block: correct the key that is named ([plugin.md](plugin.md)).",
    ),
    (
        "From the job to the machine",
        ("driver/translate.py", "driver/links.py", "driver/core_wishes.py", "driver/namespaces.py", "driver/tokens.py"),
        "What the job asks for and what Nomad gave it do not go together: correct the job.",
    ),
    (
        "Cores",
        ("driver/core", "vmlib/cores/", "vmlib/cgroup.py", "vmlib/cpuset.py", "driver/partitions.py"),
        (
            "`chv cores` draws who holds which core, `chv doctor` says how cgroups and the plugin block fit the node"
            " ([cores.md](cores.md)). What the kernel refused stands in the message."
        ),
    ),
    (
        "Disks, images, file servers",
        (
            *("vmlib/disk/", "vmlib/far", "vmlib/remote.py", "vmlib/hold.py", "vmlib/handover.py"),
            *("vmlib/hook", "vmlib/preflight.py"),
        ),
        (
            "The message names the file. Of one that is in use: who has it, and that the restart policy tries again"
            " ([disks.md](disks.md))."
        ),
    ),
    (
        "Networks",
        ("vmlib/net/", "driver/network_health.py", "driver/link", "vmlib/resolvers.py"),
        "`chv doctor` has a line for each network of the node ([networks.md](networks.md)).",
    ),
    (
        "The guest",
        (
            "vmlib/guest/",
            "driver/agent",
            "driver/exec",
            "driver/signals.py",
            "driver/guest_news.py",
            "driver/keeper_stream",
        ),
        (
            "What needs the guest agent finds none, or lost it: `alloc logs` show whether the guest has booted"
            " ([guest.md](guest.md))."
        ),
    ),
    (
        "Devices",
        ("vmlib/vfio.py",),
        "`chv doctor` has a line for each address in `vfio_allow`: [plugin.md](plugin.md#vfio_allow).",
    ),
    (
        "Hypervisors and firmware",
        ("vmlib/hypervisor/", "vmlib/probe.py", "vmlib/helpers.py", "vmlib/launcher.py", "vmlib/keeper/"),
        (
            "`chv doctor` says which hypervisors and helpers are usable, or why not. A VMM's last words are"
            " in the message, and in `alloc logs -stderr`."
        ),
    ),
    (
        "The life of a machine",
        ("driver/", "vmlib/"),
        (
            "`chv ps` and `chv inspect` show what there is. What could not be taken back is tried again: by the next"
            " start, DestroyTask or sweep."
        ),
    ),
)

HEAD = """\
# Messages

Every message of the driver, with its cause and its cure. Made of the code by `python -m tests.messages`; `make lint`
says when it is out of date. `…` stands for a value of the moment. Words of task events have a page of their own:
[events.md](events.md); `chv doctor` prints the cure beside what it finds.

The second column says who can act:

| who | what it means | what Nomad does |
| --- | --- | --- |
| job | the job asks for what can never work: correct it | fails the task, without another try |
| node | the node lacks something or is set up wrongly: its operator can mend it | fails the task, without another try |
| wait | taken by somebody else for now | tries again by the job's `restart` block |
| VMM | the hypervisor refused, or ended; its own words are added | tries again when the machine had not started |
| guest | the guest has no agent, or does not answer | gives the message to who called |
| Nomad | the call names what is not there | |
| health | the node's health text, which `chv doctor` shows as well | shows it in `nomad node status -verbose` |

What a message has in brackets at its end is in the third column here.
"""


@dataclass(frozen=True, slots=True, order=True)
class Message:
    """One row."""

    text: str
    who: str
    cure: str


def collect() -> dict[str, list[Message]]:
    """By topic."""
    found: dict[str, set[Message]] = {title: set() for title, _, _ in TOPICS}
    for path in (path for top in ("driver", "vmlib") for path in sorted((CHECKOUT / top).rglob("*.py"))):
        name = str(path.relative_to(CHECKOUT))
        if not name.startswith(LEFT_OUT):
            title = next(title for title, prefixes, _ in TOPICS if name.startswith(prefixes))
            found[title] |= set(_messages(path))
    return {title: sorted(messages) for title, messages in found.items()}


def page() -> str:
    found = collect()
    parts = [HEAD]
    for title, _, words in TOPICS:
        rows = "".join(f"| {_cell(one.text)} | {one.who} | {_plain(one.cure)} |\n" for one in found[title])
        parts.append(f"## {title}\n\n{words}\n\n| message | who | cure |\n| --- | --- | --- |\n{rows}")
    return "\n".join(parts)


def _messages(path: Path) -> Iterator[Message]:
    tree = ast.parse(path.read_text())
    constants = _constants(tree)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        cure = next((_text(given[name], constants) for name in HINTS if name in given), "")
        if (who := ACTORS.get(_name(call))) is not None:
            said = given.get("found") or (call.args[0] if call.args else None)
        elif _name(call) == "add" and _is_of_complaints(call) and len(call.args) > 1:
            who, said = ("node" if path.name == "config_plugin.py" else "job"), call.args[1]
        else:
            continue
        text = _text(said, constants) if said is not None else ""
        if any(map(str.isalpha, text.replace("…", ""))):
            if _name(call) == "add":
                text = f"{_text(call.args[0], constants)}: {text}"
            yield Message(text, who, cure)


def _name(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _is_of_complaints(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and "complaints" in ast.unparse(call.func.value)


def _constants(tree: ast.Module) -> dict[str, str]:
    """The texts that a module gives names to."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and isinstance(node.value.value, str):
                found[target.id] = node.value.value
    return found


def _text(node: ast.expr, constants: dict[str, str]) -> str:
    """What the expression says, with … where only the moment knows."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Constant(value=value):
            return str(value)
        case ast.JoinedStr(values=values):
            return "".join(_text(value, constants) for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left, constants) + _text(right, constants)
        case ast.IfExp(body=body, orelse=orelse):
            both = [text for text in (_text(body, constants), _text(orelse, constants)) if text]
            return both[0] if both else ""
        case ast.FormattedValue(value=ast.Name(id=name)) | ast.Name(id=name) if name in constants:
            return constants[name]
        case ast.Attribute(attr=name) if name.endswith("_CURE"):
            return "`chv doctor` says which package"
    return "…"


def _cell(text: str) -> str:
    return f"`{_plain(text).replace('`', chr(39))}`"


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    made = page()
    if sys.argv[1:] == ["--check"]:
        if PAGE.read_text() != made:
            sys.exit(
                "docs/messages.md is not what the code says: `.cache/venv/bin/python -m tests.messages` writes it anew"
            )
    else:
        PAGE.write_text(made)


if __name__ == "__main__":
    main()
