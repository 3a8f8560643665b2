"""Files on a server: which mounts a machine needs, with which options, and what each failure means to whom."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from driver.cli.doctor_nfs import NfsFacts, nfs_lines
from vmlib import far, remote
from vmlib.disk import nfs, nfs_options, nfs_probe
from vmlib.errors import NoCapacityError, SpecError
from vmlib.spec import DirectBoot, DiskSpec, FileRef, MachineSpec, NfsExport, RootDisk, SeedSpec

VMS = NfsExport(name="vms", server="10.0.0.5", export="/srv/vms")
ISOS = NfsExport(name="isos", server="nas", export="/srv/isos", read_only=True)


def on(export: NfsExport, relative: str = "x.raw") -> FileRef:
    return FileRef(root=Path("/"), relative=relative, nfs=export)


SPEC = MachineSpec(
    id="a/b/1",
    name="a/b",
    owner="nomad",
    vcpus=1,
    memory_mib=128,
    boot=DirectBoot(kernel=on(VMS, "vmlinuz"), initrd=FileRef(root=Path("/srv/images"), relative="initrd")),
    firmware=on(VMS, "OVMF.fd"),
    root=RootDisk(image=on(VMS), format="raw"),
    disks=(DiskSpec(name="iso", format="raw", source=on(ISOS), readonly=True),),
    seed=SeedSpec(instance_id="i", hostname="h", user_data_file=on(VMS, "user-data"), environment={"A": "b"}),
)


# -- which mounts ----------------------------------------------------------------------------------------------------


def test_a_machine_needs_each_export_that_it_names_a_file_of_once() -> None:
    assert nfs.exports_of(SPEC) == (ISOS, VMS)
    assert nfs.exports_of(replace(SPEC, boot=None, root=None, seed=None, firmware="bios")) == (ISOS,)
    assert nfs.exports_of(replace(SPEC, boot=None, root=None, seed=None, firmware="", disks=())) == ()


def test_every_file_on_an_export_is_looked_for_where_that_is_mounted_and_no_other_one() -> None:
    found = nfs.with_roots(SPEC, {"vms": Path("/m/vms"), "isos": Path("/m/isos")})
    assert found.boot is not None
    assert found.seed is not None
    assert found.root is not None
    vms, isos = Path("/m/vms"), Path("/m/isos")
    assert found.boot.kernel == replace(on(VMS, "vmlinuz"), root=vms)
    assert found.boot.initrd == FileRef(root=Path("/srv/images"), relative="initrd")
    assert found.firmware == replace(on(VMS, "OVMF.fd"), root=vms)
    assert found.root.image == replace(on(VMS), root=vms)
    assert found.disks[0].source == replace(on(ISOS), root=isos)
    assert found.seed.user_data_file == replace(on(VMS, "user-data"), root=vms)
    assert found.seed.environment == {"A": "b"}
    assert (found.id, found.owner) == (SPEC.id, SPEC.owner)


def test_a_file_on_an_export_is_called_what_the_job_called_it() -> None:
    assert str(nfs.with_roots(on(VMS, "a/b.raw"), {"vms": Path("/m")})) == "nfs://vms/a/b.raw"


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ("", "vers=4.2,hard,nosharecache"),
        ("vers=4.1", "vers=4.1,hard,nosharecache"),
        ("nfsvers=4.0,rsize=65536", "vers=4.0,rsize=65536,hard,nosharecache"),
        ("hard, nosuid ,nodev,noexec,nosharecache", "vers=4.2,hard,nosharecache"),
        ("port=20490,sec=krb5p,nocto", "vers=4.2,port=20490,sec=krb5p,nocto,hard,nosharecache"),
    ],
)
def test_a_mount_has_the_operators_options_and_always_ours(options: str, given: str) -> None:
    assert list(nfs_options.faults(nfs_options.split(options))) == []
    assert nfs_options.kernel_options(nfs_options.split(options)) == given


def test_the_port_is_the_one_of_the_options() -> None:
    assert nfs_options.port(()) == 2049
    assert nfs_options.port(("vers=4.1", "port=20490")) == 20490


# -- what is mounted -------------------------------------------------------------------------------------------------

MOUNTINFO = """\
22 1 259:0 / / rw,relatime - ext4 /dev/nvme0n1 rw
41 22 0:34 / /var/lib/my\\040vms/nfs/0a1b/vms rw,nosuid - nfs4 10.0.0.5:/srv/vms rw,vers=4.2
42 22 0:35 / /var/lib/my\\040vms/nfs/0a1b/isos ro,nosuid shared:7 master:1 - nfs4 nas:/srv/isos ro,vers=4.2
43 22 0:36 / /var/lib/my\\040vms/nfs/ffff/vms rw,nosuid - nfs4 10.0.0.5:/srv/vms rw,vers=4.2
44 22 0:37 / /var/lib/my\\040vms/nfs/0a1b/tmp rw - tmpfs tmpfs rw
45 42 0:38 / /var/lib/my\\040vms/nfs/0a1b/isos/deep rw - nfs4 nas:/srv/isos/deep rw
"""


def test_the_mounts_of_one_machine_are_read_from_the_kernels_list(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTINFO)
    top = Path("/var/lib/my vms/nfs/0a1b")
    assert nfs.mounted_beneath(top, tmp_path / "mountinfo") == [top / "vms", top / "isos"]
    assert nfs.mounted_beneath(Path("/var/lib/my vms/nfs"), tmp_path / "mountinfo") == []


# -- who can act on a failure ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "error", "words"),
    [
        (far.SilentError(10), NoCapacityError, "10.0.0.5 did not answer within 10 s"),
        (far.FarError("open", errno.ESTALE, "stale file handle"), NoCapacityError, "stale file handle (10.0.0.5)"),
        (far.FarError("read", errno.EIO, "input/output error"), NoCapacityError, "input/output error (10.0.0.5)"),
        (far.FarError("child", 0, "it has ended"), NoCapacityError, "it has ended (10.0.0.5)"),
        (far.FarError("write", errno.ENOSPC, "no space"), NoCapacityError, "no space left on the host"),
        (far.FarError("open", errno.ENOENT, "no such file"), SpecError, "no such file, expected a readable file"),
        (far.FarError("open", errno.EXDEV, "x"), SpecError, "leads out of nfs://vms, expected a file beneath it"),
        (far.FarError("kind", 0, "not a regular file"), SpecError, "not a regular file"),
        (far.FarError("size", errno.EFBIG, "4097"), SpecError, "4097 bytes, expected at most 4096"),
    ],
)
def test_a_failure_is_the_jobs_or_passes_by_itself(failure: Exception, error: type, words: str) -> None:
    assert isinstance(failure, far.FarError | far.SilentError)
    found = remote.in_words(failure, on(VMS), key="image", max_bytes=4096)
    assert type(found) is error
    assert str(found) == f"image = 'nfs://vms/x.raw': {words}"


def test_a_refusal_of_root_comes_with_its_cure() -> None:
    found = remote.in_words(far.FarError("open", errno.EACCES, "permission denied"), on(VMS), key="image")
    assert isinstance(found, SpecError)
    assert "no_root_squash" in found.hint


# -- chv doctor ------------------------------------------------------------------------------------------------------


def facts(**changes: object) -> NfsFacts:
    fine = NfsFacts(in_kernel=True, client_id="n1", host_name="node", silence={"vms": "", "isos": ""})
    return replace(fine, **changes)  # type: ignore[arg-type]


def test_doctor_says_nothing_of_servers_where_there_are_none() -> None:
    assert list(nfs_lines({}, facts(in_kernel=False))) == []


def test_doctor_names_each_export_and_whether_its_server_answers() -> None:
    silence = {"vms": "no answer within 5 s", "isos": ""}
    assert list(nfs_lines({"vms": VMS, "isos": ISOS}, facts(silence=silence))) == [
        (
            "nfs vms",
            "problem",
            "10.0.0.5:/srv/vms: no answer within 5 s",
            "look at the server, and at firewalls on the way to it",
        ),
        ("nfs isos", "ok", "nas:/srv/isos read-only: the server answers", ""),
        ("nfs client", "ok", "has an identity of its own, 'n1'", ""),
    ]


def test_doctor_warns_where_a_second_host_of_this_name_would_take_the_disks() -> None:
    (*_, last) = nfs_lines({"vms": VMS}, facts(client_id="", host_name="localhost"))
    assert last[:2] == ("nfs client", "warning")
    assert "name 'localhost' alone" in last[2]
    assert "nfs4_unique_id" in last[3]


def test_doctor_says_that_a_kernel_has_no_nfs() -> None:
    first = next(iter(nfs_lines({"vms": VMS}, facts(in_kernel=False))))
    assert first[:3] == ("nfs", "problem", "this kernel has no NFS version 4")


@pytest.mark.parametrize(
    ("identifier", "parameter", "expected"),
    [(None, None, ""), ("(null)", "", ""), ("(null)", "n1", "n1"), ("netns", "n1", "netns")],
)
def test_the_identity_of_this_host_is_what_its_kernel_was_told(
    tmp_path: Path, identifier: str | None, parameter: str | None, expected: str
) -> None:
    places = {
        "sys/fs/nfs/net/nfs_client/identifier": identifier,
        "sys/module/nfs/parameters/nfs4_unique_id": parameter,
    }
    for name, text in places.items():
        if text is not None:
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_text(f"{text}\n")
    assert nfs_probe.client_id(tmp_path) == expected
