"""The command line of passt for a user-mode link, which decides what its guest gets and sees. Pure."""

from vmlib.resources import StreamNic

# The network behind it, as QEMU's own user mode has it. A copy of the host's addresses, which is what passt would give
# by itself, is not in question: the guest could not reach the host by them, nor would they tell anybody who it is.
_MAC, _ADDRESS, _PREFIX, _GATEWAY = "52:55:0a:00:02:02", "10.0.2.15", "24", "10.0.2.2"
_MAX_RESOLVERS = 3  # as many as libc asks; passt does not start with more than a few


def passt_argv(program: str, nic: StreamNic, *, resolvers: tuple[str, ...]) -> list[str]:
    """`resolvers` are the host's, for a guest that has none of its own."""
    given = tuple(one for one in nic.dns if ":" not in one) or resolvers
    argv = [
        program,
        "--foreground",
        "--quiet",
        "--fd",
        "{fd:vmm}",
        "--pid",
        "/proc/self/fd/1",  # written once it serves
        "--no-map-gw",
        # The interface whose addresses it would copy. All are given, so it may be one that is everywhere.
        "--interface",
        "lo",
        "--ipv4-only",
        "--mac-addr",
        _MAC,
        "--address",
        _ADDRESS,
        "--netmask",
        _PREFIX,
        "--gateway",
        _GATEWAY,
        *(word for one in given[:_MAX_RESOLVERS] or ("none",) for word in ("--dns", one)),
    ]
    for forward in nic.forwards:
        where = f"{forward.host_ip}/{forward.host_port}" if forward.host_ip else str(forward.host_port)
        argv += ["-t" if forward.protocol == "tcp" else "-u", f"{where}:{forward.guest_port}"]
    return argv
