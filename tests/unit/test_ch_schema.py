"""The facts of Cloud Hypervisor's API description, and the judge that reads them.

`tests/fakes/ch/schema.json` holds the facts; `make_schema.py` beside it makes them from the description. Where that is
at hand, this checks that the two agree.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.ch import make_schema
from tests.fakes.ch.schema import misfits

PAGE = Path(__file__).parent.parent.parent.parent / "shared/facts/cloud-hypervisor-openapi.yaml"

VM: dict[str, Any] = {
    "payload": {"kernel": "/k", "cmdline": "console=ttyS0"},
    "cpus": {"boot_vcpus": 1, "max_vcpus": 1, "affinity": [{"vcpu": 0, "host_cpus": [3]}], "core_scheduling": "Off"},
    "memory": {"size": 1 << 28},
    "disks": [{"path": "/d", "image_type": "Qcow2", "backing_files": True}],
    "serial": {"mode": "Pty"},
    "vsock": {"cid": 3, "socket": "/s"},
}


def test_the_facts_are_those_of_the_description() -> None:
    if not PAGE.exists():
        pytest.skip(f"the API description {PAGE.name} is not here")
    assert make_schema.render(make_schema.facts(PAGE.read_text())) == make_schema.SCHEMA.read_text()


def test_a_body_that_fits_has_no_misfits() -> None:
    assert misfits("vm.create", VM) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cpu": {}}, "VmConfig.cpu: VmConfig has no such property"),
        ({"payload": None}, "VmConfig.payload = None: expected an object"),
        ({"iommu": 1}, "VmConfig.iommu = 1: expected a boolean"),
        ({"memory": {"size": True}}, "VmConfig.memory.size = True: expected an integer"),
        ({"memory": {"size": "1G"}}, "VmConfig.memory.size = '1G': expected an integer"),
        ({"disks": {}}, "VmConfig.disks = {}: expected a list"),
        (
            {"disks": [{"image_type": "raw"}]},
            "VmConfig.disks[0].image_type = 'raw': expected one of FixedVhd, Qcow2, Raw, Unknown, Vhdx",
        ),
        ({"vsock": {"cid": 2, "socket": "/s"}}, "VmConfig.vsock.cid = 2: expected at least 3"),
        ({"vsock": {"cid": 3}}, "VmConfig.vsock.socket: required, not there"),
        ({"net": [{"fds": [3]}]}, "VmConfig.net[0].fds: NetConfig has no such property"),
    ],
)
def test_a_misfit_is_named_with_its_place(change: dict[str, Any], said: str) -> None:
    assert misfits("vm.create", VM | change) == [said]


def test_an_endpoint_without_a_body_takes_none() -> None:
    assert misfits("vm.boot", None) == []
    assert misfits("vm.boot", {}) == ["vm.boot: takes no body"]


def test_a_line_that_is_not_understood_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2: 'nothing of the kind', expected key: value"):
        make_schema.read("paths:\n  nothing of the kind\n")
