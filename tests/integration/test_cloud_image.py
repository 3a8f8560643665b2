"""A Debian cloud image by UEFI: cloud-init obeys our vendor-data beside user-data of the job's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.build import Guest
from tests.integration.machines import Host, host_for, root_of
from vmlib.disk.seed import seed_files, write_seed
from vmlib.spec import DiskSpec, FileRef, SeedSpec

BOOT_S = 300.0  # on a busy machine; a minute on an idle one


@pytest.fixture
def host(guest: Guest, short_dir: Path) -> Iterator[Host]:
    with host_for(short_dir, guest.directory, "qemu") as host:
        yield host


@pytest.mark.needs("uefi", "cloud-image")
@pytest.mark.timeout(400)
def test_cloud_init_of_an_image_that_boots_by_uefi_obeys_vendor_data_beside_user_data(host: Host) -> None:
    # bootcmd is what runs first, so the test does not wait for all of cloud-init.
    vendor = {"bootcmd": [["echo", "vendor ä 😀"], ["poweroff", "-f"]]}
    user = b"#cloud-config\nruncmd: [[echo, later]]\n"
    files = seed_files(SeedSpec(instance_id="i", hostname="h", user_data=user), vendor_config=vendor)
    seed = host.directory / "seed.iso"
    with open(write_seed(seed, files).file.fd, "rb"):
        pass
    one = host.start(
        boot=None,
        firmware="uefi",
        memory_mib=512,
        root=root_of(host.guest, "debian.qcow2"),
        disks=(
            DiskSpec(
                name="seed", format="raw", source=FileRef(root=host.directory, relative="seed.iso"), readonly=True
            ),
        ),
    )
    assert one.end(timeout_s=BOOT_S).exit_code == 0
    assert "cloud-init" in one.out.text
    assert "vendor ä 😀" in one.out.text
