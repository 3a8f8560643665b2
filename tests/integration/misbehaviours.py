"""What each misbehaviour of the fake Cloud Hypervisor comes to, with the words for it in tests/fakes/ch/behaviour.py.

The tests of machines and those of the plugin say the same of them. All is with a limit of LIMIT_S for each call that
makes the machine (thrice that until the first answer) and for a reboot, which a user's take far longer to reach.
"""

LIMIT_S = 2.0
STOP_S = 2.0  # the kill_timeout of STOPS

ALSO_TESTED = {
    "vsock-listen",  # does what it should: test_fake_ch
}
BEFORE_ITS_END = "the VMM ended with status 0 before its guest had come to an end"

_REFUSED = "Error from API: The VM could not"
_NO_CONSOLE = "Error creating console devices: Error creating console device"
_NO_HTTP = r"BadStatusLine('\x00ÿ no answer of a server \r\n'), expected an HTTP answer"
_SECCOMP = "the VMM was killed by SIGSYS: seccomp allows it no system call 20 in thread http-server"

# What a start says, and whether Nomad is to try again: whatever ends at its start may have been unlucky.
STARTS = {
    "hang=vmm.ping": ("vmm.ping: no answer from the VMM within 6 s", False),
    "hang=vm.create": ("vm.create: no answer from the VMM within 2 s", False),
    "hang=vm.info": ("vm.info: no answer from the VMM within 5 s", False),
    "hang=vm.boot": ("vm.boot: no answer from the VMM within 2 s", False),
    "slow=vm.boot:60": ("vm.boot: no answer from the VMM within 2 s", False),
    "garbage=vm.create": (f"vm.create: {_NO_HTTP}", False),
    "garbage=vm.info": (f"vm.info: {_NO_HTTP}", False),
    "garbage=vm.boot": (f"vm.boot: {_NO_HTTP}", False),
    "half=vm.create": ("vm.create: the VMM closed the connection", False),
    "half=vm.boot": ("vm.boot: the VMM closed the connection", False),
    "fail=vm.create": (f"vm.create: {_REFUSED} be created: chfake: told so", False),
    "fail=vm.info": ("vm.info: Error from API: The VM info is not available: chfake: told so", False),
    "fail=vm.boot": (f"vm.boot: {_REFUSED} boot: chfake: told so", False),
    "keep-config": (f"vm.create: {_REFUSED} be created: {_NO_CONSOLE}: chfake: told so", False),
    "fail=vm.boot:45000": (_SECCOMP, True),
    "exit=vmm.ping:3": ("the VMM ended with status 3", True),
    "exit=vm.create": (BEFORE_ITS_END, True),
    "exit=vm.boot": (BEFORE_ITS_END, True),
    "exit=vm.boot:1": ("the VMM ended with status 1", True),
    "ending=vm.create": (BEFORE_ITS_END, True),
    "signal=vm.create:SEGV": ("the VMM was killed by SIGSEGV", True),
    "signal=vm.boot:BUS": ("the VMM was killed by SIGBUS", True),
}

# The VMM's own words, which StartTask adds.
SAID_BY_THE_VMM = {
    "fail=vm.boot:45000": ": ==== Possible seccomp violation ====\n"
    "Syscall number: 20 (arch: 0xc000003e, tid: 1, thread: http-server)\n"
    "Try running with `strace -ff` to identify the cause",
}

# What a start with an interface says.
NICS = {
    "hang=vm.add-net": "vm.add-net: no answer from the VMM within 2 s",
    "fail=vm.add-net": "vm.add-net: Error from API: The network device could not be added to the VM: chfake: told so",
    "garbage=vm.add-net": f"vm.add-net: {_NO_HTTP}",
    "exit=vm.add-net": BEFORE_ITS_END,
}

# How a running machine ends, of whose guest these words are: exit code, signal, message.
RUNS = {
    "chfake.exit-after=0.5": (1, 0, BEFORE_ITS_END),
    "chfake.exit-after=0.5:3": (3, 0, "the VMM ended with status 3"),
    "chfake.signal-after=0.5:SEGV": (139, 11, "the VMM was killed by SIGSEGV"),
    "chfake.signal-after=0.5:BUS": (135, 7, "the VMM was killed by SIGBUS"),
    "chfake.signal-after=0.5:SYS": (159, 31, "the VMM was killed by SIGSYS"),
    "chfake.reboot-hang reboot-once": (1, 0, "the guest's reboot hung, the VMM was killed after 2 s"),
    "panic": (1, 0, "guest panic: Kernel panic - not syncing: sysrq triggered crash"),
    "chfake.mute sleep=1 poweroff": (0, 0, ""),
    "chfake.slow=vm.boot:1 poweroff": (0, 0, ""),
    "chfake.stderr=vm.boot:3000000 poweroff": (0, 0, ""),
    "chfake.stderr=vm.create:3000000 exit=4": (4, 0, ""),
}

# VMMs that the stop ladder meets, and how they end: exit code, message, the events of it.
_IN_TIME = "forced off: the guest did not power off within 2 s"
_QUIT, _TERM, KILLED = (
    f"{_IN_TIME}, {how}" for how in ("the VMM was told to quit", "SIGTERM to the VMM", "SIGKILL to the VMM")
)
STOPS = {
    "chfake.ignore-button": (137, _QUIT, [_QUIT]),
    "chfake.dead-boot": (137, _QUIT, [_QUIT]),
    "chfake.ignore-button chfake.ending=vmm.shutdown": (137, _QUIT, [_QUIT]),
    "chfake.ignore-button chfake.fail=vmm.shutdown": (137, _TERM, [_QUIT, _TERM]),
    "chfake.ignore-button chfake.hang=vmm.shutdown": (137, KILLED, [_QUIT, _TERM, KILLED]),
    "chfake.hang=vm.power-button": (137, KILLED, [_QUIT, _TERM, KILLED]),
    "chfake.garbage=vm.power-button": (0, "", []),
    "chfake.fail=vm.power-button": (137, _QUIT, [_QUIT]),
}

# The same for machines that are paused when the stop comes: they are resumed first.
PAUSED = {
    "": (0, "", []),
    "chfake.fail=vm.resume": (137, _QUIT, [_QUIT]),
    "chfake.garbage=vm.resume": (137, _QUIT, [_QUIT]),
    "chfake.hang=vm.resume": (137, KILLED, [_QUIT, _TERM, KILLED]),
    "chfake.hang=vm.resume chfake.ignore-button": (137, KILLED, [_QUIT, _TERM, KILLED]),
    "chfake.ignore-button chfake.hang=vmm.shutdown": (137, KILLED, [_QUIT, _TERM, KILLED]),
}

# What the plugin adds, who knows what to do about a short time.
ADVICE = "; most guests need a kill_timeout of 30 s, Nomad's default is 5 s"


def advised(end: tuple[int, str, list[str]]) -> tuple[int, str, list[str]]:
    code, message, events = end
    return code, message and f"{message}{ADVICE}", [f"{event}{ADVICE}" for event in events]
