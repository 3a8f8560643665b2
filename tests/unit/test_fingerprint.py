"""What a node says of itself."""

from driver import __version__
from driver._pb import driver_pb2 as pb
from driver.fingerprint import CoreFacts, NodeFacts, fingerprint
from driver.network_health import NetworkFacts
from driver.state import capabilities, fingerprint_response


def test_a_usable_node_is_healthy_and_lists_what_is_usable() -> None:
    found = fingerprint(
        NodeFacts(
            hypervisors=("cloud-hypervisor", "qemu"),
            cloud_hypervisor_version="53.0",
            qemu_version="7.2.22",
            accel="kvm",
            networks=(NetworkFacts(name="user0", mode="user", router="passt"),),
        )
    )
    assert found.health == "healthy"
    assert found.text == "Healthy"
    assert found.attributes == {
        "driver.chv": True,
        "driver.chv.version": __version__,
        "driver.chv.hypervisors": "cloud-hypervisor,qemu",
        "driver.chv.cloud_hypervisor.version": "53.0",
        "driver.chv.qemu.version": "7.2.22",
        "driver.chv.accel": "kvm",
        "driver.chv.network.user0": "user",
        "driver.chv.network.user0.router": "passt",
    }


def test_an_export_is_an_attribute_while_its_server_answers() -> None:
    attributes = fingerprint(NodeFacts(nfs=(("vms", "rw"), ("isos", "ro")))).attributes
    assert {key: value for key, value in attributes.items() if ".nfs." in key} == {
        "driver.chv.nfs.vms": "rw",
        "driver.chv.nfs.isos": "ro",
    }


def test_devices_that_a_job_may_take_now_are_one_attribute() -> None:
    attributes = fingerprint(NodeFacts(vfio=("0000:65:00.0", "0000:66:00.0"))).attributes
    assert attributes["driver.chv.vfio"] == "0000:65:00.0,0000:66:00.0"
    assert "driver.chv.vfio" not in fingerprint(NodeFacts()).attributes


def test_whole_cores_are_attributes_with_numbers() -> None:
    facts = CoreFacts(dedicated=4, free=3, largest_numa_block=2, mhz_floor=2600, smt=True)
    attributes = fingerprint(NodeFacts(cores=facts)).attributes
    assert {key: value for key, value in attributes.items() if ".cores." in key} == {
        "driver.chv.cores.dedicated": 4,
        "driver.chv.cores.free": 3,
        "driver.chv.cores.largest_numa_block": 2,
        "driver.chv.cores.mhz_floor": 2600,
        "driver.chv.cores.smt": True,
    }


def test_a_node_without_a_hypervisor_says_what_to_do_and_gets_no_jobs() -> None:
    found = fingerprint(NodeFacts(problems=("qemu: not on PATH",), warnings=("w",)))
    assert (found.health, found.text) == ("unhealthy", "qemu: not on PATH")


def test_a_warning_is_shown_but_keeps_nobody_from_running() -> None:
    found = fingerprint(NodeFacts(hypervisors=("qemu",), warnings=("machines run as uid 0: …",)))
    assert (found.health, found.text) == ("healthy", "machines run as uid 0: …")


def test_the_reply_keeps_the_types_of_attributes() -> None:
    reply = fingerprint_response(fingerprint(NodeFacts(accel="kvm")))
    assert reply.health == pb.FingerprintResponse.HEALTHY
    assert reply.attributes["driver.chv"].bool_val is True
    assert reply.attributes["driver.chv.accel"].string_val == "kvm"


def test_capabilities_are_those_of_the_design() -> None:
    have = capabilities()
    assert have.fs_isolation == pb.DriverCapabilities.IMAGE
    assert list(have.network_isolation_modes) == [pb.NetworkIsolationSpec.HOST, pb.NetworkIsolationSpec.GROUP]
    assert not have.must_create_network
    assert have.send_signals
    assert have.exec
    assert have.mount_configs == pb.DriverCapabilities.ANY_MOUNTS
