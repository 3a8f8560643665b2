"""The NoCloud seed disk: its files as a pure function of what was asked for, and the ISO image that carries them.

user-data and a given network-config are the user's, byte for byte; vendor-data is ours. cloud-init reads all of it,
cloudbase-init on Windows everything but vendor-data.
"""

import base64
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from pathlib import Path
from typing import Any, Literal

from vmlib.disk.copy import told
from vmlib.errors import SpecError
from vmlib.files import open_ref, write_atomic
from vmlib.guest.delivery import boothook
from vmlib.guest.environment import environment_file
from vmlib.resources import DiskAttachment, OpenFile, ShareAttachment
from vmlib.spec import FileRef, NicSpec, SeedSpec

MAX_FILE_BYTES = 1 << 20

GuestOs = Literal["linux", "windows"]

_LABEL = "cidata"
# One fixed moment on everything in the image: the same input must give the same bytes.
_EPOCH_S = 1_600_000_000
_SECTOR_BYTES = 2048
_FIRST_DESCRIPTOR = 16
_MODIFICATION_DATE_AT = 830  # in a primary or supplementary volume descriptor

# Which key of the job fills which file, so that a complaint names something its author has written.
_KEY_OF_FILE = {
    "meta-data": "ssh_authorized_keys",
    "user-data": "user_data",
    "network-config": "network_config",
    "vendor-data": "share",  # the agent beside it has one size, which fits
    "nomad.env": "env",
}

# JSON is YAML but for these: YAML 1.1 takes some as line breaks and refuses the others unless they are escaped.
_NOT_FOR_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def seed_files(
    spec: SeedSpec,
    nics: Sequence[NicSpec] = (),
    *,
    vendor_config: Mapping[str, object] | None = None,
    guest_os: GuestOs = "linux",
) -> dict[str, bytes]:
    """The files of the seed, by name. Raises SpecError when one is too large.

    `vendor_config` is what we want of cloud-init, as its cloud-config has it; user-data overrides it key by key.
    """
    files = {
        "meta-data": _meta_data(spec),
        "user-data": spec.user_data or b"",  # must exist, may be empty
    }
    if spec.network_config is not None:
        files["network-config"] = spec.network_config
    elif nics:
        files["network-config"] = _network_config(nics)
    vendor_parts = []
    if spec.agent:
        vendor_parts.append(("cloud-boothook", boothook()))
    if vendor_config:
        vendor_parts.append(("cloud-config", b"#cloud-config\n" + _json(vendor_config)))
    if vendor_parts and guest_os != "windows":
        files["vendor-data"] = _vendor_data(vendor_parts)
    if spec.environment:
        files["nomad.env"] = _environment_file(spec.environment)
    for name, data in files.items():
        if len(data) > MAX_FILE_BYTES:
            raise SpecError(f"{_KEY_OF_FILE[name]}: {len(data)} bytes in {name}, expected at most {MAX_FILE_BYTES}")
    return files


def with_user_data(spec: SeedSpec) -> SeedSpec:
    """The same with the user-data read from its file, if it was given as one. Raises SpecError."""
    if spec.user_data_file is None:
        return spec
    return replace(spec, user_data=load_user_data(spec.user_data_file), user_data_file=None)


def load_user_data(ref: FileRef) -> bytes:
    """Read the file that `user_data` names. Raises SpecError when it cannot be read or is too large."""
    fd = open_ref(ref, key="user_data", max_bytes=MAX_FILE_BYTES)
    with open(fd, "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
        size = os.fstat(fd).st_size
    if len(data) > MAX_FILE_BYTES:
        raise SpecError(f"user_data = {str(ref)!r}: {size} bytes, expected at most {MAX_FILE_BYTES}")
    return data


def write_seed(path: Path, files: Mapping[str, bytes]) -> DiskAttachment:
    """Write the image, readable by its owner only, and open it; the caller owns the descriptor.

    An older seed at `path` is replaced. The same files give the same bytes.
    """
    with told(f"seed disk {path}"):
        write_atomic(path, _iso(files), mode=0o600)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    return DiskAttachment(name="seed", file=OpenFile(fd=fd, path=path), format="raw", readonly=True)


def _meta_data(spec: SeedSpec) -> bytes:
    data: dict[str, object] = {"instance-id": spec.instance_id, "local-hostname": spec.hostname}
    if spec.ssh_authorized_keys:
        # Here and not as ssh_authorized_keys in vendor-data: a list of that name in user-data replaces the vendor's,
        # and vendor-data can be switched off, while keys of the metadata are added to whatever the user has. It is
        # also the one place where cloudbase-init looks on Windows, for a list since 1.1.5.
        data["public-keys"] = list(spec.ssh_authorized_keys)
    return _json(data)


def cloud_config(shares: Sequence[ShareAttachment]) -> dict[str, object]:
    """What we ask of the guest's cloud-init by vendor-data; the user's own keys of the same name win."""
    config: dict[str, object] = {}
    if shares:
        config["mounts"] = share_mounts(shares)
    return config


def share_mounts(shares: Sequence[ShareAttachment]) -> list[list[str]]:
    """The lines of the guest's fstab. A share that fails to mount keeps no guest from coming up."""
    return [
        [share.tag, share.guest_path, "virtiofs", f"{'ro' if share.readonly else 'rw'},nofail", "0", "0"]
        for share in shares
    ]


def _network_config(nics: Sequence[NicSpec]) -> bytes:
    # Version 2 for all: cloudbase-init reads it since 1.1.7, and an older one leaves Windows to DHCP.
    # `set-name` always: without it the name depends on the guest's kernel and udev. netN and not ethN, because the
    # kernel may be giving out an ethN name at the moment of the renaming.
    # A MAC is a JSON string, so it is quoted: 52:54:00:12:34:56 without quotes is one base-60 integer in YAML 1.1.
    return _json(
        {
            "version": 2,
            "ethernets": {
                f"net{index}": {
                    "match": {"macaddress": nic.mac.lower()},
                    "set-name": f"net{index}",
                    **_addressing(nic),
                }
                for index, nic in enumerate(nics)
            },
        }
    )


def _addressing(nic: NicSpec) -> dict[str, object]:
    """Addresses, routes and name servers of one interface, or that it has to ask for them."""
    config: dict[str, object] = {}
    if nic.addresses:
        config["addresses"] = list(nic.addresses)
        if nic.gateways:
            config["routes"] = [_default_route(nic, ip_address(gateway)) for gateway in nic.gateways]
    else:
        config["dhcp4"] = True
        # A router says whether there is DHCPv6. Asking for that without a router, as `dhcp6` does, can hold up a boot.
        config["accept-ra"] = True
    if nic.dns or nic.search:
        servers = {"addresses": list(nic.dns)} if nic.dns else {}
        search = {"search": list(nic.search)} if nic.search else {}
        config["nameservers"] = servers | search
    return config


def _default_route(nic: NicSpec, gateway: IPv4Address | IPv6Address) -> dict[str, object]:
    # Not `default`, which cloud-init takes for an address before 25.1.
    route: dict[str, object] = {"to": "0.0.0.0/0" if gateway.version == 4 else "::/0", "via": str(gateway)}
    near = gateway.version == 6 and gateway.is_link_local
    if not near and not any(gateway in ip_interface(address).network for address in nic.addresses):
        route["on-link"] = True  # as some networks of containers have it: every address a network of its own
    return route


def _vendor_data(parts: Sequence[tuple[str, bytes]]) -> bytes:
    """A MIME message of parts, each with the kind that cloud-init knows it by (`text/KIND`)."""
    # base64, because cloud-init spoils what is not ASCII when it decodes a part of eight bits. The boundary has a
    # character that base64 has not.
    boundary = "_" + hashlib.sha256(b"\0".join(body for _, body in parts)).hexdigest()[:32]
    lines = [f'Content-Type: multipart/mixed; boundary="{boundary}"', "MIME-Version: 1.0", ""]
    for kind, body in parts:
        lines += [
            f"--{boundary}",
            f'Content-Type: text/{kind}; charset="utf-8"',
            "Content-Transfer-Encoding: base64",
            "",
        ]
        lines += base64.encodebytes(body).decode().splitlines()
    return "\n".join([*lines, f"--{boundary}--", ""]).encode()


def _environment_file(environment: Mapping[str, str]) -> bytes:
    for name, value in environment.items():
        if "\0" in name + value:
            raise SpecError(f"env: {name!r} holds a NUL byte, expected text")
    return environment_file(dict(environment))


def _json(data: object) -> bytes:
    # Not ASCII only: JSON would write a character beyond U+FFFF as two escapes, which YAML reads as two characters.
    text = json.dumps(data, ensure_ascii=False, indent=1)
    return _NOT_FOR_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode() + b"\n"


def _iso(files: Mapping[str, bytes]) -> bytes:
    # Imported here: it takes a while, and the plugin's cold start does not need it.
    import pycdlib

    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=_LABEL)
    for number, (name, data) in enumerate(sorted(files.items())):
        # ISO names know neither lower case nor dashes; guests read the Rock Ridge or Joliet name.
        image.add_fp(
            io.BytesIO(data),
            len(data),
            f"/F{number:07d}.;1",
            rr_name=name,
            joliet_path="/" + name,
            file_mode=0o100400,  # root only, inside the guest too: there may be secrets in it
        )
    moment = time.gmtime(_EPOCH_S)
    stamp = time.strftime("%Y%m%d%H%M%S00", moment).encode() + b"\0"
    for descriptor in (image.pvd, image.joliet_vd):
        _freeze_volume(descriptor, moment, stamp)
    out = io.BytesIO()
    image.write_fp(out)
    image.close()
    return _with_modification_date(bytearray(out.getvalue()), stamp)


def _freeze_volume(descriptor: Any, moment: time.struct_time, stamp: bytes) -> None:
    from pycdlib.dates import VolumeDescriptorDate

    for field in ("volume_creation_date", "volume_effective_date"):
        date = VolumeDescriptorDate()
        date.parse(stamp)
        setattr(descriptor, field, date)
    # One flat directory: the children of the root are our files, `.` and `..`.
    for record in (descriptor.root_dir_record, *descriptor.root_dir_record.children):
        for date in _dates(record):
            date.years_since_1900, date.month, date.day_of_month = moment.tm_year - 1900, moment.tm_mon, moment.tm_mday
            date.hour, date.minute, date.second, date.gmtoffset = moment.tm_hour, moment.tm_min, moment.tm_sec, 0


def _dates(record: Any) -> Iterable[Any]:
    yield record.date
    if record.rock_ridge is None:
        return
    for area in (record.rock_ridge.dr_entries, record.rock_ridge.ce_entries):
        stamps = getattr(area, "tf_record", None)
        for field in ("creation_time", "access_time", "modification_time", "attribute_change_time"):
            date = getattr(stamps, field, None)
            if date is not None:
                yield date


def _with_modification_date(image: bytearray, stamp: bytes) -> bytes:
    """Put `stamp` where pycdlib has written the present moment: the volume descriptors' modification date."""
    for at in range(_FIRST_DESCRIPTOR * _SECTOR_BYTES, len(image), _SECTOR_BYTES):
        kind = image[at]
        if kind == 255:  # the end of the descriptors
            break
        if kind in (1, 2):  # primary, supplementary (Joliet)
            date_at = at + _MODIFICATION_DATE_AT
            image[date_at : date_at + len(stamp)] = stamp
    return bytes(image)
