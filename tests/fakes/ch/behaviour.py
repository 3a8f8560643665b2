"""What the fake shall do otherwise than Cloud Hypervisor would: from a file beside it, and from the kernel's words.

The file is NAME.json beside the executable NAME, as it was called; every key may be left out:

    version      what it says it is: 51.2, 53.0 (default)
    guest        qemu (a real one, default) | light (the test guest is played)
    qemu         the QEMU to use
    strict       false: bodies that do not fit the API description are taken as the program takes them
    report       a file to which a line is added for each body that does not fit
    misbehave    a list of the words below

The environment variables CHV_FAKE_CH (JSON with the same keys) and CHV_FAKE_CH_VERSION go before the file. A word may
also stand on the kernel command line as `chfake.WORD`, and counts from `vm.create` on:

    hang=CALL               never answers it; the VMM thread is stuck, SIGTERM is ignored
    slow=CALL:SECONDS       answers late
    garbage=CALL            answers what is no HTTP
    half=CALL               answers half a head and hangs up
    fail=CALL[:BYTES]       500 with a chain of messages, of that length, and nothing done
    exit=CALL[:STATUS]      ends without an answer, with that status (0)
    signal=CALL:NAME        is killed by that signal (SEGV)
    stderr=CALL:BYTES       writes that much to stderr first, waiting for its reader
    ending=CALL             ends without an answer after it is done, as vmm.shutdown may
    exit-after=SECONDS[:STATUS], signal-after=SECONDS[:NAME]    so long after the boot
    ignore-button           the guest never hears of the power button
    dead-boot               vm.boot succeeds, but no guest runs
    reboot-hang             a reboot never ends, as one outside the cpuset
    keep-config             vm.create fails, its config stays
    mute                    the event monitor says nothing
    vsock-listen=PORT       somebody in the guest listens there: the agent port's other side
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes.ch import threads

_OF_CALLS = frozenset({"hang", "slow", "garbage", "half", "fail", "exit", "signal", "stderr", "ending"})
_OF_MACHINES = frozenset({"exit-after", "signal-after", "ignore-button", "dead-boot", "reboot-hang", "keep-config"})
WORDS = _OF_CALLS | _OF_MACHINES | {"mute", "vsock-listen"}


@dataclass(slots=True, kw_only=True)
class Behaviour:
    version: str = "53.0"
    guest: str = "qemu"
    qemu: str = "qemu-system-x86_64"
    strict: bool = True
    report: str = ""
    misbehave: list[str] = field(default_factory=list)

    def word(self, name: str) -> str | None:
        """What stands after `name=`, "" for the bare word, None when it was not said."""
        return next((word.partition("=")[2] for word in self.misbehave if word.partition("=")[0] == name), None)

    def for_call(self, name: str, call: str) -> str | None:
        """What stands after `name=call:`."""
        for word in self.misbehave:
            what, _, value = word.partition("=")
            about, _, rest = value.partition(":")
            if what == name and about == call:
                return rest
        return None

    def learn(self, cmdline: str) -> None:
        """Take the words from a kernel command line."""
        prefix = "chfake."
        self.misbehave += [word.removeprefix(prefix) for word in cmdline.split() if word.startswith(prefix)]
        self.check()

    def check(self) -> None:
        """Raises ValueError for a word that there is not."""
        if unknown := {word.partition("=")[0] for word in self.misbehave} - WORDS:
            raise ValueError(f"the fake does not know {', '.join(sorted(unknown))}")

    @property
    def release(self) -> tuple[int, int]:
        major, minor, *_ = (int(number) for number in self.version.split("."))
        return major, minor

    @property
    def full_version(self) -> str:
        return self.version if self.version.count(".") == 2 else f"{self.version}.0"

    @property
    def build_version(self) -> str:
        """As `git describe` has it: v53.0, v51.2, v50.1.1."""
        return f"v{self.version}"


def load(executable: Path, environment: Mapping[str, str]) -> Behaviour:
    """Raises ValueError, TypeError for what is not as above: the fixture's author must hear of it."""
    beside = executable.with_name(f"{executable.name}.json")
    found: dict[str, Any] = json.loads(beside.read_text()) if beside.exists() else {}
    found |= json.loads(environment.get("CHV_FAKE_CH", "{}"))
    if "CHV_FAKE_CH_VERSION" in environment:
        found["version"] = environment["CHV_FAKE_CH_VERSION"]
    one = Behaviour(**found)
    one.misbehave = list(one.misbehave)
    one.check()
    return one


def before_call(behaviour: Behaviour, call: str) -> None:
    """Everything that happens before `call` is done, or instead of it."""
    if (size := behaviour.for_call("stderr", call)) is not None:
        left = int(size or 1 << 20)
        while left > 0:
            left -= os.write(2, b"." * min(left, 79) + b"\n")
    if (seconds := behaviour.for_call("slow", call)) is not None:
        time.sleep(float(seconds or 1))
    if behaviour.for_call("hang", call) is not None:
        threads.for_ever()
    if (status := behaviour.for_call("exit", call)) is not None:
        leave(int(status or 0))
    if (name := behaviour.for_call("signal", call)) is not None:
        die(name or "SEGV")


def leave(status: int) -> None:
    sys.stderr.flush()
    os._exit(status)


def die(name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    threads.default_signal(number)
    os.kill(os.getpid(), number)
    threads.for_ever()
