"""Further disks of real machines: what the guest sees, what stays, what goes, and who may have it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import DATA, Host, host_for
from vmlib.errors import NoCapacityError, SpecError
from vmlib.postflight import persistent_disks
from vmlib.spec import DiskSpec, FileRef

MIB = 1 << 20


@pytest.fixture
def host(request: pytest.FixtureRequest, guest: Guest, short_dir: Path) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, request.param) as host:
        yield host


qemu = pytest.mark.parametrize("host", ["qemu"], indirect=True)
fake = pytest.mark.parametrize("host", ["fake"], indirect=True)


@qemu
def test_the_guest_sees_each_disk_by_its_serial_and_may_write_where_it_may(host: Host) -> None:
    source = host.directory / "x.raw"
    source.write_bytes(b"from-the-file".ljust(1 * MIB, b" "))
    ref = FileRef(root=host.directory, relative="x.raw")
    disks = (
        DiskSpec(name="new", format="raw", size_bytes=4 * MIB, serial="new"),
        DiskSpec(name="grown", format="raw", source=ref, size_bytes=2 * MIB, serial="grown"),
        DiskSpec(name="ro", format="raw", source=ref, readonly=True, serial="ro"),
        DiskSpec(name="q", format="qcow2", size_bytes=16 * MIB, serial="q"),
    )
    words = "write=new:a write=grown:b write=ro:c write=q:d read=new read=grown read=ro read=q"
    one = host.start(words, disks=disks)
    one.until_line("read q")
    assert [line for line in one.out.lines if line.startswith("disk ")] == [
        f"disk vda {4 * MIB} new",
        f"disk vdb {2 * MIB} grown",
        f"disk vdc {1 * MIB} ro",
        f"disk vdd {16 * MIB} q",
    ]
    said = [line for line in one.out.lines if line.startswith(("wrote", "not wrote", "read"))]
    assert said == [
        *("wrote new", "wrote grown", "not wrote ro", "wrote q"),
        *("read new a", "read grown b", "read ro from-the-file", "read q d"),
    ]
    assert source.read_bytes().startswith(b"from-the-file ")
    one.machine.destroy()

    again = host.start("read=new read=grown read=q", disks=disks)  # a restart of the same machine
    again.until_line("read q")
    assert [line for line in again.out.lines if line.startswith("read")] == ["read new a", "read grown b", "read q d"]
    again.machine.destroy()


@qemu
def test_a_persistent_disk_goes_from_machine_to_machine_with_what_is_on_it(host: Host) -> None:
    one = host.start("write=data:kept", task="one", disks=(DATA,))
    assert [notice.kind for notice in one.machine.notices] == ["disk created"]
    one.until_line("wrote data")
    with pytest.raises(NoCapacityError, match=r"disk\[0\]: persistent disk .* is in use by alloc/one"):
        host.start(task="two", disks=(DATA,))
    one.machine.destroy()
    host.machines.remove("alloc/one")
    two = host.start("read=data", task="two", disks=(DATA,))
    assert two.machine.notices == ()
    two.until_line("read data kept")
    two.machine.destroy()


@fake
def test_a_machine_that_does_not_come_to_run_gives_the_disk_back(host: Host) -> None:
    missing = DiskSpec(name="x", format="raw", source=FileRef(root=host.directory, relative="no.raw"))
    with pytest.raises(SpecError, match=r"disk\[1\].source"):
        host.start(task="one", disks=(DATA, missing))
    (disk,) = persistent_disks(host.layout).list()
    assert disk.holder is None
    host.start("tick", task="two", disks=(DATA,))
    (disk,) = persistent_disks(host.layout).list()
    assert disk.holder is not None
    assert disk.holder.name == "alloc/two"


@fake
@pytest.mark.parametrize(
    ("disk", "complaint"),
    [
        (DiskSpec(name="d", format="raw", size_bytes=3 << 40), "disk[0].size = 3 TiB: expected at most 2 TiB"),
        (
            DiskSpec(name="d", format="qcow2", source=FileRef(root=Path("/"), relative="etc/hostname"), readonly=True),
            "declared qcow2, but its header says",
        ),
    ],
)
def test_what_cannot_be_a_disk_is_refused_by_key(host: Host, disk: DiskSpec, complaint: str) -> None:
    with pytest.raises(SpecError) as caught:
        host.start(disks=(disk,))
    assert complaint in str(caught.value)
