"""From a request to its answer: paths, verbs, bodies, and the shapes of refusals."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fakes.ch import behaviour as behaviours
from tests.fakes.ch.behaviour import Behaviour
from tests.fakes.ch.config import RefusedError
from tests.fakes.ch.says import Log
from tests.fakes.ch.schema import FACTS, misfits
from tests.fakes.ch.server import Request, answer
from tests.fakes.ch.vmm import NOT_CREATED, Vmm

_ROOT = "/api/v1/"
_DEADLY_BYTES = 40_000  # an error answer of that size is a system call that seccomp does not allow

# What could not be done, by call.
_REFUSALS = {
    "vm.create": "The VM could not be created",
    "vm.delete": "The VM could not be deleted",
    "vm.boot": "The VM could not boot",
    "vm.info": "The VM info is not available",
    "vm.counters": "The VM info is not available",
    "vm.pause": "The VM could not be paused",
    "vm.resume": "The VM could not resume",
    "vm.shutdown": "The VM could not shutdown",
    "vm.reboot": "The VM could not reboot",
    "vm.power-button": "Error triggering power button",
    "vm.nmi": "Error triggering NMI",
    "vm.resize": "The VM could not be resized",
    "vm.remove-device": "The device could not be removed from the VM",
    "vm.add-net": "The network device could not be added to the VM",
    "vm.snapshot": "The VM could not be snapshotted",
    "vm.restore": "The VM could not be restored",
}
_SECCOMP = """
==== Possible seccomp violation ====
Syscall number: 20 (arch: 0xc000003e, tid: 1, thread: http-server)
Try running with `strace -ff` to identify the cause
"""
_MISSING = (NOT_CREATED, "VM config is missing")


class Calls:
    """Answers requests, as the API's thread does; `vmm` does what they ask for."""

    def __init__(self, vmm: Vmm, behaviour: Behaviour, log: Log, *, seccomp: bool) -> None:
        self._vmm = vmm
        self._behaviour = behaviour
        self._log = log
        self._seccomp = seccomp
        self._ended = False
        self._bare: dict[str, Callable[[], Any]] = {
            "vmm.ping": vmm.ping,
            "vm.info": vmm.info,
            "vm.counters": vmm.counters,
            "vmm.shutdown": self._end,
            "vm.delete": vmm.delete,
            "vm.boot": vmm.boot,
            "vm.shutdown": vmm.shutdown,
            "vm.reboot": vmm.reboot,
            "vm.pause": vmm.pause,
            "vm.resume": vmm.resume,
            "vm.power-button": vmm.power_button,
            "vm.nmi": vmm.nmi,
        }

    def answer(self, request: Request) -> bytes | None:
        call = request.path.removeprefix(_ROOT)
        known = FACTS["endpoints"].get(call) if request.path.startswith(_ROOT) else None
        if known is None:
            return self._refuse(404, "Not Found")
        if request.verb != known["verb"]:
            return self._refuse(400, "Bad Request")
        behaviours.before_call(self._behaviour, call)
        said = self._do(call, request, known)
        self._vmm_ends_if_asked()
        behaviour = self._behaviour
        if behaviour.for_call("garbage", call) is not None:
            return b"\x00\xff no answer of a server \r\n\r\n" + bytes(range(64))
        if behaviour.for_call("half", call) is not None:
            return None
        if behaviour.for_call("ending", call) is not None:
            behaviours.leave(0)
        return said

    def _do(self, call: str, request: Request, known: dict[str, Any]) -> bytes:
        if known["body"] is None:
            if request.body is not None:
                return self._refuse(400, "Bad Request")
            body = None
        else:
            if request.body is None:
                return answer(400, raw=b"") if call == "vm.create" else self._refuse(400, "Bad Request")
            try:
                body = json.loads(request.body)
            except ValueError as exc:
                return self._refuse(400, "Failed to deserialize JSON", str(exc))
            if found := self._judge(call, body):
                return self._refuse(400, "Failed to deserialize JSON", *found)
        if (length := self._behaviour.for_call("fail", call)) is not None:
            told = "chfake: told so".ljust(int(length or 0), ".")
            return self._refuse(500, "Error from API", _REFUSALS.get(call, "It could not be done"), told)
        self._log.say("INFO", f"API request event: {_said(call)}", "vmm/src/api/mod.rs:1")
        try:
            result = self._act(call, body, request.fds)
        except RefusedError as exc:
            status = 404 if exc.chain[-1] in _MISSING and self._behaviour.release >= (53, 0) else 500
            return self._refuse(status, "Error from API", _REFUSALS.get(call, "It could not be done"), *exc.chain)
        if call == "vmm.shutdown":
            return answer(200)
        return answer(204) if result is None else answer(200, result)

    def _act(self, call: str, body: Any, fds: list[int]) -> Any:
        if call in self._bare:
            return self._bare[call]()
        match call:
            case "vm.create":
                self._vmm.create(body)
            case "vm.add-net":
                self._vmm.add_net(body, fds)
            case "vm.resize":
                self._vmm.resize(body)
            case "vm.remove-device":
                self._vmm.remove_device(body.get("id", ""))
            case _:
                raise RefusedError("chfake does not play it")
        return None

    def _judge(self, call: str, body: Any) -> list[str]:
        found = misfits(call, body)
        if found and self._behaviour.report:
            with Path(self._behaviour.report).open("a") as report:
                report.writelines(f"{call}: {line}\n" for line in found)
        if self._behaviour.strict:
            return [f"chfake: {line}" for line in found]
        # The program drops what it does not know without a word.
        return [line for line in found if "has no such property" not in line and "expected at least" not in line]

    def _refuse(self, status: int, *chain: str) -> bytes:
        self._log.say("INFO", f"HTTP API error response: {': '.join(chain)}", "vmm/src/api/http/mod.rs:106")
        said = answer(status, list(chain))
        if len(said) >= _DEADLY_BYTES and self._seccomp:
            os.write(2, _SECCOMP.encode())
            behaviours.die("SYS")
        return said

    def _end(self) -> None:
        self._vmm.end()
        self._ended = True

    def _vmm_ends_if_asked(self) -> None:
        if self._ended:
            self._vmm.loop.after(0.0, self._vmm.at_end)


def _said(call: str) -> str:
    """The name of a call in the log: VmPowerButton."""
    return "".join(word.capitalize() for word in re.split("[.-]", call))
