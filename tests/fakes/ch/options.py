"""The command line of Cloud Hypervisor, as far as it concerns a VMM that is told the rest over its API."""

import sys
from dataclasses import dataclass

_USAGE = "\n\nUsage: cloud-hypervisor [OPTIONS]\n\nFor more information, try '--help'."

_WITH_VALUE = ("--api-socket", "--event-monitor", "--log-file", "--log-format", "--seccomp", "--restore")
# Each of these needs a payload on the same command line.
_OF_A_VM = (
    "--cmdline", "--initramfs", "--cpus", "--memory", "--memory-zone", "--numa", "--disk", "--net", "--fs", "--pmem",
    "--rng", "--rtc", "--balloon", "--serial", "--console", "--debug-console", "--vsock", "--device", "--user-device",
    "--vdpa", "--generic-vhost-user", "--tpm", "--platform", "--pci-segment", "--rate-limit-group", "--landlock-rules",
)  # fmt: skip
_OF_A_VM_BARE = ("--pvpanic", "--watchdog", "--landlock")
_PAYLOADS = ("--kernel", "--firmware")


@dataclass(slots=True, kw_only=True)
class Options:
    api_path: str = ""
    api_fd: int | None = None
    events_path: str = ""
    events_fd: int | None = None
    log_file: str = ""
    verbosity: int = 0
    seccomp: str = "true"
    no_shutdown: bool = False


def parse(words: list[str], *, version: str) -> Options:
    """Ends the process for --version and --help (0), for a usage error (2) and for what it does not play (1)."""
    if not words:
        _usage_error("no arguments")
    found = Options()
    seen = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        seen.append(name)
        if name in ("--version", "-V"):
            print(f"cloud-hypervisor {version}")
            raise SystemExit(0)
        if name in ("--help", "-h"):
            print("Launch a cloud-hypervisor VMM.\n\nUsage: cloud-hypervisor [OPTIONS]")
            raise SystemExit(0)
        if name in _WITH_VALUE or name in _OF_A_VM or name in _PAYLOADS:
            if not equals:
                if not left or left[0].startswith("-"):
                    _usage_error(f"a value is required for '{name} <{name[2:]}>' but none was supplied")
                value = left.pop(0)
            _take(found, name, value)
        elif word.startswith("-v") and not word.strip("v-"):
            found.verbosity += word.count("v")
        elif name == "--no-shutdown":
            found.no_shutdown = True
        elif name not in _OF_A_VM_BARE:
            _usage_error(f"unexpected argument '{word}' found")
    if any(name in seen for name in (*_OF_A_VM, *_OF_A_VM_BARE)) and not any(name in seen for name in _PAYLOADS):
        _usage_error("the following required arguments were not provided:\n  <--kernel <kernel>|--firmware <firmware>>")
    if any(name in seen for name in _PAYLOADS):
        print("this one plays machines that are told over the API", file=sys.stderr)
        raise SystemExit(1)
    return found


def _take(found: Options, name: str, value: str) -> None:
    if name == "--api-socket":
        found.api_path, found.api_fd = _path_or_fd(value)
    elif name == "--event-monitor":
        found.events_path, found.events_fd = _path_or_fd(value)
    elif name == "--log-file":
        found.log_file = value
    elif name == "--seccomp":
        if value not in ("true", "false", "log", "errno"):
            _usage_error(f"invalid value '{value}' for '--seccomp <seccomp>'")
        found.seccomp = value


def _path_or_fd(value: str) -> tuple[str, int | None]:
    key, equals, rest = value.partition("=")
    if not equals:
        return value, None
    if key == "path":
        return rest, None
    if key == "fd" and rest.isdecimal():
        return "", int(rest)
    print(f"Error parsing {value!r}", file=sys.stderr)
    raise SystemExit(1)


def _usage_error(text: str) -> None:
    print(f"error: {text}{_USAGE}", file=sys.stderr)
    raise SystemExit(2)
