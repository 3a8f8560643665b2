"""The plugin block and the task block: every key with its type, default, limits and meaning.

Nomad checks names and types by the `Spec` made from these tables, in its own words. All that is refused beyond that
is refused by `driver.decode` and the `driver.config_*` modules, in ours. The tables of docs/plugin.md and docs/task.md
are made of them, see `tests/reference.py`.
"""

from driver._pb import hclspec_pb2 as pb
from driver.schema import PATH_MAX_BYTES, Block, Key, Members, spec

# Limits in bytes. A value that is far too long has to be stopped here: it may travel on in a VMM's own messages.
_NAME = 255
_CMDLINE = 2047  # Linux on x86 reads 2048 with the final NUL
_FILE = 1 << 20  # of the seed
_CPU_LIST = 4096


def _choice(name: str, *works: str, meaning: str, hidden: tuple[str, ...] = ()) -> Key:
    """One of several words; the first is the default."""
    return Key(name=name, default=works[0], works=works, hidden=hidden, meaning=meaning)


def _path(name: str, *, meaning: str) -> Key:
    return Key(name=name, max_bytes=PATH_MAX_BYTES, meaning=meaning)


def _switch(name: str, *, meaning: str, default: bool = False) -> Key:
    return Key(name=name, kind="bool", default=default, meaning=meaning)


PLUGIN: Members = (
    Key(
        name="data_dir",
        default="/var/lib/chv",
        max_bytes=PATH_MAX_BYTES,
        meaning="disks, seeds and records of the machines; has to survive a reboot",
    ),
    Key(
        name="run_dir",
        default="/run/chv",
        max_bytes=PATH_MAX_BYTES,
        meaning="sockets; at most 67 bytes long, because a socket's path may have 107",
    ),
    _choice(
        "hypervisor",
        "auto",
        "cloud-hypervisor",
        "qemu",
        hidden=("fake",),
        meaning=(
            "`auto`: the best one for each task, Cloud Hypervisor before QEMU; `cloud-hypervisor` or `qemu`: only "
            "that one"
        ),
    ),
    Key(
        name="vm_uids",
        meaning=(
            '`"200000-265535"`: each machine runs as a uid of its own from this range. The recommended way. Nothing '
            "else on the host may use them"
        ),
    ),
    Key(
        name="vm_user",
        default="chv",
        meaning=(
            "without `vm_uids`, the user that all machines run as. When the host has no such user either, they run "
            "as the plugin's own, and health text and `chv doctor` warn"
        ),
    ),
    Block(
        name="cloud_hypervisor",
        form="one",
        members=(
            Key(
                name="binary",
                default="cloud-hypervisor",
                max_bytes=PATH_MAX_BYTES,
                meaning=(
                    "a name to be found on PATH, or an absolute path; version 51.2 or later, but not 52.0; "
                    "53.0 is recommended"
                ),
            ),
            _path(
                "firmware",
                meaning=(
                    "a `CLOUDHV.fd` or `hypervisor-fw`, for machines that boot from a disk. Empty: QEMU runs those"
                ),
            ),
        ),
    ),
    Block(
        name="qemu",
        form="one",
        members=(
            Key(
                name="binary",
                default="qemu-system-x86_64",
                max_bytes=PATH_MAX_BYTES,
                meaning="a name to be found on PATH, or an absolute path; version 7.2 or later",
            ),
            _choice(
                "accel",
                "auto",
                "kvm",
                "tcg",
                meaning=(
                    "`auto`: KVM where hardware virtualisation works, else TCG; `kvm`: nothing else; `tcg`: never KVM"
                ),
            ),
        ),
    ),
    Block(
        name="cores",
        form="one",
        members=(
            Key(
                name="dedicated",
                max_bytes=_CPU_LIST,
                meaning=(
                    'CPUs for machines alone, such as `"4-7,12"`, withheld from Nomad with `reserved.cores`; '
                    '`"auto"`: all that Nomad reports as withheld'
                ),
            ),
            Key(
                name="housekeeping",
                max_bytes=_CPU_LIST,
                meaning=(
                    "CPUs for VMM threads and shared machines, none of them dedicated. Empty: usable ones that "
                    "nobody holds"
                ),
            ),
            _choice(
                "smt",
                "core",
                "thread",
                meaning="what a vCPU gets: `core`: a physical core; `thread`: a logical CPU",
            ),
            _switch(
                "tokens",
                meaning="dedicated cores go only to jobs that hold `chv/core` devices",
            ),
            _choice(
                "partition",
                "",
                "root",
                "isolated",
                meaning="`root` or `isolated`: a cgroup v2 partition of the dedicated cores",
            ),
        ),
    ),
    Key(
        name="image_max_size",
        default="2TiB",
        meaning="the largest disk a guest may see",
    ),
    Key(
        name="image_paths",
        kind="strings",
        default=(),
        max_bytes=PATH_MAX_BYTES,
        meaning=(
            "host directories beneath which jobs may name images, kernels and the like. Links that lead out of them "
            'are not followed. With `root_mode = "direct"` a job may also write to a file there, unless nobody may '
            "(`chmod a-w`)"
        ),
    ),
    Key(
        name="default_network",
        meaning=(
            "the network of machines that name none: a label, or `alloc`. Empty: the network namespace of their "
            "group where it has one, else none"
        ),
    ),
    Block(
        name="network",
        form="map",
        members=(
            Key(
                name="mode",
                works=("user", "macvtap", "bridge"),
                meaning=(
                    "has to be given. `macvtap`: machines beside the host on one of its interfaces; `bridge`: "
                    "machines on a bridge that you made; `user`: a process of ours is the router, the guest gets "
                    "10.0.2.15 by DHCP, reaches what the host reaches, and is reached by Nomad's ports"
                ),
            ),
            Key(
                name="parent",
                meaning="`macvtap`, where it has to be given: the interface",
            ),
            _choice(
                "macvtap_mode",
                "",
                "bridge",
                "private",
                "vepa",
                "passthru",
                meaning=(
                    "`macvtap`: how guests on one parent see each other. Empty or `bridge`: directly; `private`: "
                    "not at all; `vepa`: by way of a switch that sends back; `passthru`: one machine has the whole "
                    "parent"
                ),
            ),
            Key(
                name="filter",
                kind="bool",
                default=False,
                meaning=(
                    "`macvtap`, `bridge`: drop what a guest sends from another MAC, or from other than its static "
                    "addresses ([what exactly](networks.md#what-a-guest-may-send))"
                ),
            ),
            Key(
                name="host_shim",
                meaning=(
                    "`macvtap` with `macvtap_mode` `bridge`: an address with prefix for this host, such as "
                    "`192.168.1.5/24`, by which guests and host reach each other "
                    "([how](networks.md#host-and-guests-on-one-parent))"
                ),
            ),
            Key(
                name="bridge",
                meaning="`bridge`, where it has to be given: the bridge",
            ),
        ),
    ),
    Block(
        name="nfs",
        form="map",
        members=(
            Key(
                name="server",
                max_bytes=_NAME,
                meaning="a host name or an address; has to be given",
            ),
            _path(
                "export",
                meaning="the directory that the server exports; has to be given",
            ),
            Key(
                name="options",
                max_bytes=_NAME,
                meaning="mount options with commas between them, see below",
            ),
            _switch(
                "read_only",
                meaning="nothing of it can be written to",
            ),
        ),
    ),
    Key(
        name="vfio_allow",
        kind="strings",
        default=(),
        meaning=(
            "PCI addresses of devices of this host's that jobs may give to their guests by `vfio`, as `0000:65:00.0`"
        ),
    ),
    Key(
        name="hooks",
        kind="strings",
        default=(),
        max_bytes=PATH_MAX_BYTES,
        meaning=(
            'hooks of your own volume system, each `"NAME"` or `"NAME:ARGUMENT"`, for every machine and in this '
            "order: [hooks.md](hooks.md)"
        ),
    ),
    Block(
        name="gc",
        form="one",
        members=(
            Key(
                name="image_cache_max",
                default="50GiB",
                meaning=(
                    "how much the image cache may take of the host's disk; the image that was used longest ago goes "
                    'first. What a machine builds on stays and is not counted. `"0"`: nothing stays that no machine '
                    "has"
                ),
            ),
            Key(
                name="image_cache_max_age",
                default="30d",
                meaning="an image that was not used for so long is removed",
            ),
            Key(
                name="orphan_grace",
                default="5m",
                meaning=(
                    "how long a running machine may be without its alloc's directory, and what is left of a start "
                    "that nobody knows (processes, cgroups, links, mounts, run directories, half-made files) may "
                    "stay, before it is removed"
                ),
            ),
            _switch(
                "dry_run",
                meaning="remove nothing; say in the log what would be",
            ),
        ),
    ),
)

TASK: Members = (
    _path(
        "image",
        meaning="a disk image to boot from; optional with `kernel`",
    ),
    _choice(
        "image_format",
        "",
        "raw",
        "qcow2",
        meaning=(
            "`raw` or `qcow2`. Empty: by the suffix `.raw` or `.qcow2` (before `.xz`, `.zst` or `.gz`), and an "
            "image with another name needs it. Always checked against the file's header"
        ),
    ),
    _choice(
        "root_mode",
        "overlay",
        "copy",
        "direct",
        meaning=(
            "what becomes of the image: `overlay`: writes go to a file of the machine's; `copy`: a copy of its own. "
            "Both are kept over restarts of the alloc and gone with it. `direct`: the guest writes to this very "
            "file"
        ),
    ),
    Key(
        name="root_size",
        meaning='grow the root disk to this size, such as `"20GiB"`; a disk never shrinks. Empty: the image\'s own',
    ),
    _path(
        "kernel",
        meaning="boot this kernel directly (bzImage or ELF), without firmware",
    ),
    _path(
        "initrd",
        meaning="goes with `kernel`",
    ),
    Key(
        name="cmdline",
        max_bytes=_CMDLINE,
        meaning=(
            "the kernel's command line, as given, at most 2047 bytes. Empty: `console=ttyS0`. The serial console is "
            "ttyS0. No place for secrets: it stands in the VMM's argument list, where everybody on the host can "
            "read it"
        ),
    ),
    _path(
        "firmware",
        meaning=(
            "what boots the image: `bios`, `uefi`, or the path of firmware of your own (with a `/` in it). Empty: "
            "the hypervisor's own, BIOS on QEMU. Not with `kernel`"
        ),
    ),  # or a word
    _choice(
        "guest_os",
        "linux",
        "windows",
        meaning="`linux`, or `windows`, see below",
    ),
    _switch(
        "tpm",
        meaning="the guest has a TPM 2.0, played by the node's `swtpm`",
    ),
    Key(
        name="vcpus",
        kind="number",
        default=None,
        meaning="what the guest sees, 1 to 255. Not given: what `cores` or devices give, else 1 (2 with `expose`)",
    ),
    _choice(
        "placement",
        "exclusive",
        "shared",
        meaning="`exclusive`: each vCPU has a core of its own; `shared`: none, vCPUs float",
    ),
    _choice(
        "threads",
        "hide",
        "expose",
        meaning="`hide`: one vCPU a core, its other threads idle; `expose`: two, and `vcpus` is even",
    ),
    _choice(
        "numa",
        "prefer",
        "strict",
        "spread",
        meaning=(
            "`prefer`: as few NUMA nodes as possible; `strict`: one, or the task fails; `spread`: over the nodes evenly"
        ),
    ),
    _choice(
        "emulator",
        "shared",
        "isolate",
        meaning="`shared`: VMM threads run on housekeeping CPUs; `isolate`: on one more core of the machine's own",
    ),
    _switch(
        "hugepages",
        meaning="the guest's RAM is made of huge pages of the host",
    ),
    Key(
        name="hostname",
        max_bytes=253,
        meaning="RFC 1123. Not given: `JOB-TASK`, made of letters, digits and `-`",
    ),
    Key(
        name="ssh_authorized_keys",
        kind="strings",
        default=(),
        max_bytes=8192,
        secret=True,
        meaning="for the image's default user, beside the keys that user-data may name; at most 64 of 8 KiB each",
    ),
    Key(
        name="user_data",
        max_bytes=_FILE,
        many_lines=True,
        secret=True,
        meaning="a path, or the text itself when it starts with `#` or `{`; at most 1 MiB, handed on byte for byte",
    ),
    Key(
        name="network_config",
        max_bytes=_FILE,
        many_lines=True,
        secret=True,
        meaning="text that replaces the generated network-config, at most 1 MiB, handed on byte for byte",
    ),
    Block(
        name="disk",
        form="list",
        max_items=24,
        members=(
            Key(
                name="name",
                meaning="a lower case letter, then at most 15 of a-z 0-9 _ -; each name once",
            ),
            Key(
                name="size",
                meaning='a new disk of so many bytes, such as `"10GiB"`; with `source` the copy is grown to it',
            ),
            _switch(
                "persistent",
                meaning="the disk outlives the alloc, see below; needs `size`, takes no `source`",
            ),
            Key(
                name="serial",
                meaning="by which the guest knows it, at most 20 letters, digits, . _ and -. Empty: its name",
            ),
            Key(
                name="rate_limit",
                meaning=(
                    "bytes a second that it may read and write, together, as `100MiB`; at least `64KiB`. Empty: no "
                    "limit"
                ),
            ),
            _path(
                "source",
                meaning=(
                    "the file whose content it has, a path as above. Read-only the file itself is used, otherwise a "
                    "copy"
                ),
            ),
            _switch(
                "readonly",
                meaning="the guest cannot write to it; needs `source`, takes no `size`",
            ),
            _choice(
                "format",
                "",
                "raw",
                "qcow2",
                meaning="`raw` or `qcow2`. Empty: by the suffix of `source`; a disk without is raw",
            ),
        ),
    ),
    Block(
        name="network_interface",
        form="list",
        max_items=16,
        members=(
            Key(
                name="network",
                meaning="the label of a `network` block of the operator's, or `alloc`; has to be given",
            ),
            Key(
                name="mac",
                meaning=(
                    "a unicast address. Not given: a locally administered one, made of a hash of alloc id, task "
                    "name and the interface's number, so the same over restarts"
                ),
            ),
            Key(
                name="address",
                kind="strings",
                default=(),
                meaning=(
                    "the guest's own addresses, at most 16, each with the length of its prefix. Empty: DHCP for "
                    "IPv4, and for IPv6 what the router announces"
                ),
            ),
            Key(
                name="gateway",
                max_bytes=128,
                meaning=(
                    "the router, one of each family with a comma between; inside the subnet of one of the addresses"
                ),
            ),
            Key(
                name="dns",
                kind="strings",
                default=(),
                meaning="addresses of name servers",
            ),
            Key(
                name="rate_limit",
                meaning=(
                    "bytes a second in each direction, as `100MiB`; at least `64KiB`. Needs `cloud-hypervisor`. "
                    "Empty: no limit"
                ),
            ),
        ),
    ),
    _choice(
        "on_reboot",
        "restart",
        "exit",
        meaning="when the guest reboots: `restart`: the task goes on, with an event; `exit`: the task ends with 0",
    ),
    _choice(
        "on_panic",
        "exit",
        "restart",
        meaning="when the guest's kernel panics: `exit`: the task ends with 1; `restart`: the guest is reset",
    ),
    _switch(
        "agent",
        default=True,
        meaning="offer the guest agent (see below); Linux only",
    ),
    _choice(
        "wait_for",
        "",
        "agent",
        meaning=(
            "`agent`: the task has started when the guest agent answers, for which it has ten minutes: "
            "[guest.md](guest.md#ready). A machine that ends before makes the start fail at once. Not with `agent = "
            "false`"
        ),
    ),
    Key(
        name="share",
        kind="strings",
        default=(),
        meaning=(
            "which of the task's directories the guest has: `local` at `/local`, `secrets` at `/secrets`, `alloc` "
            "at `/alloc`"
        ),
    ),
    _switch(
        "balloon",
        meaning="the guest gives back memory that it does not use, and has it again when it needs it",
    ),
    Key(
        name="vfio",
        kind="strings",
        default=(),
        max_items=8,
        meaning=(
            "PCI addresses of devices of the host's that the guest takes over, at most 8, each in the node's "
            "[`vfio_allow`](plugin.md#vfio_allow); not together with `balloon`. All RAM is locked in place"
        ),
    ),
    _choice(
        "hypervisor",
        "",
        "cloud-hypervisor",
        "qemu",
        hidden=("fake",),
        meaning=(
            "empty: the best one that the node has and that can run this machine, `cloud-hypervisor` before `qemu`; "
            "the `machine started` event says why. Named, it is that one or none: "
            "[cloud-hypervisor.md](cloud-hypervisor.md)"
        ),
    ),
)


def plugin_spec() -> pb.Spec:
    """What ConfigSchema answers."""
    return spec(PLUGIN)


def task_spec() -> pb.Spec:
    """What TaskConfigSchema answers."""
    return spec(TASK)
