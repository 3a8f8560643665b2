"""The helper processes of a machine as the keeper gets them: virtiofsd for shares, swtpm for a TPM, passt for links."""

import os
from pathlib import Path

from vmlib import cpuset, files, probe
from vmlib.cgroup import MachineGroups
from vmlib.errors import HostError
from vmlib.keeper.plan import Cage, HelperPlan
from vmlib.limits import TPM_LIMITS
from vmlib.net.passt import passt_argv
from vmlib.paths import Layout, RunPaths
from vmlib.probe import Program
from vmlib.resolvers import host_name_servers
from vmlib.resources import Credentials, Resources, ShareAttachment, StreamNic, TpmAttachment

# What a virtiofsd is for: files of any owner. Not CAP_MKNOD (27): a device that a guest made in a directory which other
# tasks share would be theirs to open.
_FILE_CAPABILITIES = (0, 1, 3, 4, 6, 7, 31)  # CHOWN DAC_OVERRIDE FOWNER FSETID SETGID SETUID SETFCAP
# What it needs for shutting itself in, and gives up then: SETPCAP SYS_CHROOT SYS_ADMIN SYS_RESOURCE.
_SANDBOX_CAPABILITIES = (8, 18, 21, 24)
_BIND_CAPABILITIES = (10,)  # NET_BIND_SERVICE, for ports below 1024
_NOBODY = 65534
# QEMU 5 to 7 brought one of its own and of its own version; what is developed since has begun with 1.
_FIRST_VERSION_IN_C = 5


def plans(res: Resources, run: RunPaths, groups: MachineGroups, layout: Layout) -> list[HelperPlan]:
    """All helpers of a machine. Raises HostError when a program that is needed is not there."""
    made = []
    if res.shares:
        virtiofsd = probe.virtiofsd_program()
        if virtiofsd.why_not:
            raise HostError(f"the share at {res.shares[0].guest_path}: {virtiofsd.why_not}", hint=probe.VIRTIOFSD_CURE)
        made += [share_helper(share, virtiofsd, run, groups) for share in res.shares]
    if res.tpm is not None:
        swtpm = probe.swtpm_program()
        if swtpm.why_not:
            raise HostError(f"tpm = true: {swtpm.why_not}", hint=probe.SWTPM_CURE)
        made.append(tpm_helper(res.tpm, swtpm.path, res.credentials, groups, layout))
    routed = [nic for nic in res.nics if isinstance(nic, StreamNic)]
    if routed:
        passt = probe.passt_program()
        if passt.why_not:  # it was there a moment ago
            raise HostError(f"network {routed[0].network!r}: {passt.why_not}", hint=probe.PASST_CURE)
        resolvers = host_name_servers(only_ipv4=True)
        made += [router_helper(nic, passt.path, res.credentials, groups, resolvers=resolvers) for nic in routed]
    return made


def share_helper(share: ShareAttachment, virtiofsd: Program, run: RunPaths, groups: MachineGroups) -> HelperPlan:
    """A virtiofsd that sees nothing but the shared directory. Read-only is the kernel's word, not the daemon's."""
    at = str(run.helper_mount(share.name))
    return HelperPlan(
        name=share.name,
        what=f"virtiofsd of share {share.tag}",
        argv=_virtiofsd_argv(virtiofsd, at),
        loss="what uses the share in the guest waits until the machine is restarted",
        directories={"shared": str(share.source)},
        bind="shared",
        bind_at=at,
        readonly=share.readonly,
        capabilities=[*_FILE_CAPABILITIES, *_SANDBOX_CAPABILITIES],
        cgroups=_cgroups(groups),
        seat=_seat(groups),
    )


def _virtiofsd_argv(virtiofsd: Program, directory: str) -> list[str]:
    if int(virtiofsd.version.partition(".")[0]) >= _FIRST_VERSION_IN_C:
        options = f"source={directory},modcaps=-mknod,announce_submounts,log_level=err"
        return [virtiofsd.path, "-f", "--fd={fd:listener}", "-o", options]
    return [
        virtiofsd.path,
        "--fd={fd:listener}",
        f"--shared-dir={directory}",
        "--modcaps=-mknod",
        "--inode-file-handles=never",  # they would need CAP_DAC_READ_SEARCH
        "--announce-submounts",
        "--log-level=error",
    ]


def tpm_helper(
    tpm: TpmAttachment, swtpm: str, credentials: Credentials, groups: MachineGroups, layout: Layout
) -> HelperPlan:
    """A swtpm as the VMM's user, shut in as that is.

    It opens its state through a descriptor, because others cannot walk to it.
    """
    hides = [str(layout.data_dir), str(layout.run_dir)]
    return HelperPlan(
        name=tpm.name,
        what="swtpm of the TPM",
        argv=[
            swtpm,
            "socket",
            "--tpm2",
            "--terminate",
            "--ctrl",
            "type=unixio,fd={fd:listener}",
            "--tpmstate",
            "dir=/proc/self/fd/{fd:state},mode=0600",
        ],
        loss="the guest has no TPM until the machine is restarted",
        directories={"state": str(tpm.state_dir)},
        uid=credentials.uid,
        gid=credentials.gid,
        cage=Cage(hides=hides) if probe.may_shut_in() else None,
        filtered=True,
        limits=TPM_LIMITS,
        cgroups=_cgroups(groups),
        seat=_seat(groups),
    )


def router_helper(
    nic: StreamNic, passt: str, credentials: Credentials, groups: MachineGroups, *, resolvers: tuple[str, ...]
) -> HelperPlan:
    """A passt as the VMM's user, whose guests do not reach the host's loopback."""
    low = any(forward.host_port < 1024 for forward in nic.forwards)
    return HelperPlan(
        name=nic.name,
        what=f"passt of network {nic.network}",
        argv=passt_argv(passt, nic, resolvers=resolvers),
        loss="connections through it were cut",
        calls=nic.name,
        tells_ready=True,
        netns=nic.netns,
        uid=credentials.uid or _NOBODY,  # as root it would not run
        gid=credentials.gid if credentials.uid else _NOBODY,
        capabilities=list(_BIND_CAPABILITIES) if low else [],
        cgroups=_cgroups(groups),
        seat=_seat(groups),
    )


def _cgroups(groups: MachineGroups) -> list[str]:
    """The VMM's, so that its limits hold for all; but with the keeper's CPUs, where that can be had apart (v1)."""
    apart = not groups.threaded and groups.cpuset != groups.memory
    return [str(groups.keeper_cpuset if apart and path == groups.cpuset else path) for path in groups.vmm]


def _seat(groups: MachineGroups) -> str:
    """On v2 one group says both whose memory it is and which CPUs; the VMM's other threads have a part of it."""
    if not groups.threaded or groups.cpuset is None:
        return ""
    return str(cpuset.thread_group_paths(groups.cpuset, 0)[0])


def make_tpm_dir(path: Path, credentials: Credentials) -> TpmAttachment:
    """The directory in which a TPM remembers, given to whoever the VMM runs as this time."""
    files.make_directory(path)
    for one in (path, *path.iterdir()):
        os.chown(one, credentials.uid, credentials.gid, follow_symlinks=False)
    return TpmAttachment(name="tpm", state_dir=path)
