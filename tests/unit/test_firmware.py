"""UEFI firmware by its descriptors: which file counts, which firmware fits, which is best; and the store made of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from driver.cli.doctor_hypervisors import firmware_checks
from vmlib.disk.flash import open_firmware, prepare_uefi
from vmlib.errors import HostError, SpecError
from vmlib.hypervisor.fake import Fake
from vmlib.hypervisor.firmware import descriptor_files, find_firmware, read_descriptor
from vmlib.hypervisor.qemu import Qemu
from vmlib.resources import Firmware
from vmlib.spec import FileRef

MACHINE = "pc-q35-7.2"
USR = "usr/share/qemu/firmware"
ETC = "etc/qemu/firmware"


def descriptor(code: str = "/f/code.fd", **changes: Any) -> dict[str, Any]:
    return {
        "description": "UEFI",
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": code, "format": "raw"},
            "nvram-template": {"filename": "/f/vars.fd", "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3"],
        "tags": [],
    } | changes


def mapping(**changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = descriptor()["mapping"]
    return {"mapping": known | changes}


def install(root: Path, where: str, name: str, said: dict[str, Any] | str, *, files: bool = True) -> None:
    """A descriptor in `root`, and the files that it names."""
    (root / where).mkdir(parents=True, exist_ok=True)
    (root / where / name).write_text(said if isinstance(said, str) else json.dumps(said))
    if files and isinstance(said, dict):
        for part in ("executable", "nvram-template"):
            path = root / said["mapping"][part]["filename"].lstrip("/")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(part.encode().ljust(4096, b"\0"))


def found(root: Path) -> str:
    return str(find_firmware(MACHINE, root=root).code.relative_to(root))


# -- one descriptor --------------------------------------------------------------------------------------------------


def test_a_descriptor_says_what_to_boot_and_what_to_copy() -> None:
    one = read_descriptor("60-x.json", json.dumps(descriptor()).encode(), MACHINE)
    assert one is not None
    assert one.firmware == Firmware(code=Path("/f/code.fd"), variables=Path("/f/vars.fd"), smm=False)


def test_doctor_names_the_firmware_and_says_where_it_looked_when_there_is_none(tmp_path: Path) -> None:
    (none,) = firmware_checks([Qemu(root=tmp_path)])
    assert (none.check, none.verdict, none.cure) == (
        "firmware",
        "warning",
        "install OVMF, which is the package ovmf on Debian",
    )
    assert "/etc/qemu/firmware and /usr/share/qemu/firmware" in none.text
    install(tmp_path, USR, "50-x.json", descriptor("/f/x.fd"))
    (plain,) = firmware_checks([Qemu(root=tmp_path)])
    assert (plain.verdict, plain.text) == ("ok", f"{tmp_path}/f/x.fd, variables from {tmp_path}/f/vars.fd")


def test_doctor_warns_of_firmware_that_boots_signed_systems_only(tmp_path: Path) -> None:
    install(
        tmp_path, USR, "40-x.json", descriptor("/f/x.fd", features=["enrolled-keys", "requires-smm", "secure-boot"])
    )
    (one,) = firmware_checks([Qemu(root=tmp_path)])
    assert one.verdict == "warning"
    assert one.text.endswith(
        "; it protects them by system management mode; it enforces Secure Boot, so only signed systems boot"
    )


def test_doctor_says_nothing_of_firmware_where_no_hypervisor_boots_it() -> None:
    assert list(firmware_checks([Fake()])) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"interface-types": ["bios"]},
        {"interface-types": "uefi"},
        {"targets": [{"architecture": "aarch64", "machines": ["pc-q35-*"]}]},
        {"targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*"]}]},
        {"targets": [{"architecture": "x86_64", "machines": ["pc-q35-6.*"]}]},
        {"targets": []},
        {"targets": None},
        {"mapping": {"device": "memory", "filename": "/f/one.fd"}},
        {"mapping": {"device": "kernel", "filename": "/f/one.fd"}},
        {"mapping": "flash"},
        mapping(mode="combined"),
        mapping(mode="stateless"),
    ],
)
def test_firmware_of_another_kind_is_passed_over_without_a_word(changes: dict[str, Any]) -> None:
    assert read_descriptor("x.json", json.dumps(descriptor(**changes)).encode(), MACHINE) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"interface-types": ["bios", "uefi"]},
        {"targets": [{"architecture": "aarch64", "machines": ["virt-*"]}, descriptor()["targets"][0]]},
        {"targets": [{"architecture": "x86_64", "machines": ["pc-q35-7.2"]}]},
        {"features": None},
        {"something-new": {"a": 1}},
        mapping(mode="split"),
    ],
)
def test_firmware_that_fits_is_found_whatever_else_is_said(changes: dict[str, Any]) -> None:
    assert read_descriptor("x.json", json.dumps(descriptor(**changes)).encode(), MACHINE) is not None


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a descriptor"),
        (
            json.dumps(descriptor(**mapping(executable={"filename": "/f/c.qcow2", "format": "qcow2"}))).encode(),
            "executable is qcow2, expected raw",
        ),
        (
            json.dumps(descriptor(**mapping(executable={"filename": "c.fd", "format": "raw"}))).encode(),
            "executable names no file",
        ),
        (json.dumps(descriptor(**mapping(**{"nvram-template": None}))).encode(), "nvram-template names no file"),
    ],
)
def test_a_descriptor_that_cannot_be_used_says_why(data: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_descriptor("x.json", data, MACHINE)


# -- all of them -----------------------------------------------------------------------------------------------------


def test_the_first_by_file_name_wins_over_both_directories(tmp_path: Path) -> None:
    install(tmp_path, USR, "60-b.json", descriptor("/f/b.fd"))
    assert found(tmp_path) == "f/b.fd"
    install(tmp_path, ETC, "70-c.json", descriptor("/f/c.fd"))
    assert found(tmp_path) == "f/b.fd"
    install(tmp_path, USR, "50-a.json", descriptor("/f/a.fd"))
    assert found(tmp_path) == "f/a.fd"


def test_the_operators_directory_replaces_a_file_of_the_same_name(tmp_path: Path) -> None:
    install(tmp_path, USR, "60-x.json", descriptor("/f/packaged.fd"))
    install(tmp_path, ETC, "60-x.json", descriptor("/f/mine.fd"))
    assert found(tmp_path) == "f/mine.fd"
    assert descriptor_files(tmp_path) == {"60-x.json": tmp_path / ETC / "60-x.json"}


def test_an_empty_file_hides_the_one_of_its_name(tmp_path: Path) -> None:
    install(tmp_path, USR, "50-a.json", descriptor("/f/a.fd"))
    install(tmp_path, USR, "60-b.json", descriptor("/f/b.fd"))
    install(tmp_path, ETC, "50-a.json", "")
    assert found(tmp_path) == "f/b.fd"


def test_a_link_to_nothing_hides_as_well(tmp_path: Path) -> None:
    install(tmp_path, USR, "50-a.json", descriptor("/f/a.fd"))
    install(tmp_path, USR, "60-b.json", descriptor("/f/b.fd"))
    (tmp_path / ETC).mkdir(parents=True)
    (tmp_path / ETC / "50-a.json").symlink_to("/dev/null")
    assert found(tmp_path) == "f/b.fd"


def test_files_with_other_endings_are_none(tmp_path: Path) -> None:
    install(tmp_path, USR, "50-a.json.dpkg-old", descriptor("/f/a.fd"))
    install(tmp_path, USR, "60-b.json", descriptor("/f/b.fd"))
    assert found(tmp_path) == "f/b.fd"


def test_what_asks_less_of_a_guest_is_preferred_to_an_earlier_name(tmp_path: Path) -> None:
    enrolled = descriptor("/f/enrolled.fd", features=["enrolled-keys", "requires-smm", "secure-boot"])
    install(tmp_path, USR, "40-enrolled.json", enrolled)
    assert found(tmp_path) == "f/enrolled.fd"
    install(tmp_path, USR, "50-secure.json", descriptor("/f/secure.fd", features=["requires-smm", "secure-boot"]))
    assert found(tmp_path) == "f/secure.fd"
    assert find_firmware(MACHINE, root=tmp_path).smm
    install(tmp_path, USR, "60-plain.json", descriptor("/f/plain.fd"))
    assert found(tmp_path) == "f/plain.fd"
    assert not find_firmware(MACHINE, root=tmp_path).smm


def test_a_descriptor_whose_files_are_gone_is_passed_over(tmp_path: Path) -> None:
    install(tmp_path, USR, "50-a.json", descriptor("/f/gone.fd"), files=False)
    install(tmp_path, USR, "60-b.json", descriptor("/f/b.fd"))
    assert found(tmp_path) == "f/b.fd"


def test_without_any_the_operator_is_told_where_to_put_it_and_what_was_wrong_with_what_is_there(tmp_path: Path) -> None:
    install(tmp_path, USR, "40-bios.json", descriptor() | {"interface-types": ["bios"]})
    install(tmp_path, USR, "50-broken.json", "{")
    install(tmp_path, ETC, "60-gone.json", descriptor("/g/gone.fd"), files=False)
    (tmp_path / ETC / "70-dir.json").mkdir()
    with pytest.raises(HostError) as caught:
        find_firmware(MACHINE, root=tmp_path)
    assert str(caught.value) == (
        "firmware = 'uefi': no descriptor in /etc/qemu/firmware and /usr/share/qemu/firmware names UEFI firmware for"
        f" pc-q35-7.2 (50-broken.json: not JSON; 60-gone.json: {tmp_path}/g/gone.fd is not there;"
        " 70-dir.json: is a directory)"
    )
    assert caught.value.hint == "install OVMF, which is the package ovmf on Debian"


# -- flash of a machine ----------------------------------------------------------------------------------------------


@pytest.fixture
def firmware(tmp_path: Path) -> Firmware:
    return make_firmware(tmp_path, "a")


def make_firmware(directory: Path, name: str, *, variables_bytes: int = 8192) -> Firmware:
    code, variables = directory / f"{name}.code", directory / f"{name}.vars"
    code.write_bytes(b"c" * 4096)
    variables.write_bytes(name.encode() * variables_bytes)
    return Firmware(code=code, variables=variables)


def prepare(store: Path, firmware: Firmware) -> tuple[Path, bytes]:
    """The code that the VMM gets, and what is in the store."""
    files = prepare_uefi(store, lambda: firmware)
    assert files.variables is not None
    with open(files.code.fd, "rb") as code, open(files.variables.fd, "r+b") as variables:
        assert not code.writable()
        return files.code.path, variables.read()


def test_the_store_is_a_private_copy_of_the_template(tmp_path: Path, firmware: Firmware) -> None:
    store = tmp_path / "store.fd"
    assert prepare(store, firmware) == (firmware.code, b"a" * 8192)
    assert store.stat().st_mode & 0o777 == 0o600


def test_the_store_stays_with_its_firmware_whatever_is_best_by_now(tmp_path: Path, firmware: Firmware) -> None:
    store = tmp_path / "store.fd"
    prepare(store, firmware)
    store.write_bytes(b"w" * 8192)
    (tmp_path / "a.vars").write_bytes(b"n" * 8192)
    newer = make_firmware(tmp_path, "b", variables_bytes=4096)
    assert prepare(store, newer) == (firmware.code, b"w" * 8192)


def test_the_store_goes_on_with_another_firmware_of_its_size_when_its_own_is_gone(
    tmp_path: Path, firmware: Firmware
) -> None:
    store = tmp_path / "store.fd"
    prepare(store, firmware)
    firmware.code.unlink()
    newer = make_firmware(tmp_path, "b")
    assert prepare(store, newer) == (newer.code, b"a" * 8192)
    assert prepare(store, make_firmware(tmp_path, "c")) == (newer.code, b"a" * 8192)


def test_a_store_that_fits_no_firmware_any_more_is_kept_and_said(tmp_path: Path, firmware: Firmware) -> None:
    store = tmp_path / "store.fd"
    prepare(store, firmware)
    firmware.code.unlink()
    newer = make_firmware(tmp_path, "b", variables_bytes=4096)
    with pytest.raises(HostError) as caught:
        prepare(store, newer)
    assert str(caught.value) == (
        f"firmware {firmware.code}: this machine's variables are of it (8192 bytes), and do not fit {newer.code}"
        " (4096 bytes)"
    )
    assert store.read_bytes() == b"a" * 8192


def test_a_store_whose_making_was_cut_short_is_made_anew(tmp_path: Path, firmware: Firmware) -> None:
    store = tmp_path / "store.fd"
    prepare(store, firmware)
    store.unlink()
    (tmp_path / ".store.fd.0a1b2c3d").write_bytes(b"torn")
    newer = make_firmware(tmp_path, "b")
    assert prepare(store, newer) == (newer.code, b"b" * 8192)
    assert not list(tmp_path.glob(".store.fd.*"))


def test_code_and_store_together_fit_below_four_gib(tmp_path: Path, firmware: Firmware) -> None:
    firmware.code.write_bytes(b"\0" * (8 << 20))
    with pytest.raises(HostError, match="8388608 and 8192 bytes, expected multiples of 4096 bytes and at most 8 MiB"):
        prepare(tmp_path / "store.fd", firmware)


def test_firmware_of_a_job_is_opened_as_it_is(tmp_path: Path, firmware: Firmware) -> None:
    files = open_firmware(FileRef(root=tmp_path, relative="a.code"))
    with open(files.code.fd, "rb") as code:
        assert code.read() == b"c" * 4096
    assert files.variables is None


def test_firmware_of_a_job_that_is_no_flash_is_the_jobs(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 100)
    with pytest.raises(SpecError, match="100 bytes, expected multiples of 4096 bytes and at most 8 MiB"):
        open_firmware(FileRef(root=tmp_path, relative="x"))
