"""What doctor says of Cloud Hypervisor, and of the firmware that its machines boot by."""

from dataclasses import replace
from pathlib import Path

from driver.cli.doctor_cloud import CloudFacts, Line, cloud_lines

FACTS = CloudFacts(version="53.0", qemu=True, landlock=True)


def firmware_line(path: Path | None, facts: CloudFacts = FACTS) -> Line:
    (line,) = (line for line in cloud_lines(facts, path) if line[0] == "cloud-hypervisor firmware")
    return line


def firmware_file(directory: Path, content: bytes, mode: int = 0o644) -> Path:
    path = directory / "CLOUDHV.fd"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_node_that_has_all_of_it_is_told_so(tmp_path: Path) -> None:
    path = firmware_file(tmp_path, b"\x7fELF\x02")
    assert [line[:2] for line in cloud_lines(FACTS, path)] == [("cloud-hypervisor firmware", "ok"), ("landlock", "ok")]


def test_a_version_before_the_recommended_one_is_warned_of() -> None:
    (line,) = (line for line in cloud_lines(replace(FACTS, version="51.2"), None) if "version" in line[0])
    assert (line[1], line[3]) == ("warning", "install 53.0 or later")


def test_without_firmware_it_is_said_who_boots_from_a_disk_then() -> None:
    assert firmware_line(None)[1:3] == (
        "warning",
        "none: QEMU runs what boots from a disk; that image needs firmware which no distribution ships",
    )
    assert "no machine can boot from a disk" in firmware_line(None, replace(FACTS, qemu=False))[2]


def test_a_firmware_file_that_no_machine_boots_by_is_told(tmp_path: Path) -> None:
    assert firmware_line(tmp_path / "none")[1:3] == ("warning", f"{tmp_path}/none: no such file or directory")
    ovmf = firmware_file(tmp_path, b"OVMF")
    assert firmware_line(ovmf)[1:3] == ("problem", f"{ovmf}: not an ELF file, no machine boots by it")
    hidden = firmware_file(tmp_path, b"\x7fELF", mode=0o640)
    assert firmware_line(hidden)[1:] == (
        "problem",
        f"{hidden}: not readable for everybody",
        f"chmod a+r {hidden}",
    )


def test_a_kernel_without_landlock_is_warned_of() -> None:
    line = cloud_lines(replace(FACTS, landlock=False), None)[-1]
    assert line[:2] == ("landlock", "warning")
    assert "Linux 6.2" in line[3]
