"""What is to be done for the host's own place among its guests, without a kernel."""

from dataclasses import replace
from pathlib import Path

from vmlib.net.netlink import Interface
from vmlib.net.shim import Mine, Shim, decide

SHIM = Shim(network="lan", parent="eno1", address="192.168.1.9/24")
NOMAD, DEV = Mine(owner="nomad", run_dir=Path("/run/chv")), Mine(owner="dev", run_dir=Path("/tmp/run"))
PARENT = Interface(index=2, name="eno1", mac="02:00:00:00:00:01", mtu=1500, up=True, carrier=True)
MADE = Interface(
    index=7, name=SHIM.name, mac="02:00:00:00:00:09", mtu=1500, up=True, carrier=True, kind="macvlan", mode="bridge",
    alias=NOMAD.mark, parent=2,
)  # fmt: skip
ADDRESSES = {2: (), 7: ("192.168.1.9/24",)}


def done(*links: Interface, mine: Mine = NOMAD, wanted: tuple[Shim, ...] = (SHIM,)) -> list[str]:
    steps, faults = decide(wanted, links, ADDRESSES, mine)
    assert faults == []
    return [step.do for step in steps]


def test_is_made_once() -> None:
    assert done(PARENT) == ["make"]
    assert done(PARENT, MADE) == []


def test_its_name_is_one_that_the_kernel_takes() -> None:
    assert len(SHIM.name) <= 15
    assert SHIM.name != replace(SHIM, address="192.168.1.10/24").name
    assert SHIM.name != replace(SHIM, parent="eno2").name


def test_what_a_crash_left_half_made_is_finished() -> None:
    half = replace(MADE, alias="", up=False)
    steps, _ = decide((SHIM,), (PARENT, half), {}, NOMAD)
    assert [step.do for step in steps] == ["mark", "address", "up"]


def test_two_plugins_with_one_config_do_not_fight() -> None:
    assert done(PARENT, MADE, mine=DEV) == []
    by_dev = replace(MADE, alias=DEV.mark)
    assert done(PARENT, by_dev, mine=NOMAD) == ["mark"]
    assert done(PARENT, by_dev, mine=DEV) == []
    assert done(PARENT, by_dev, mine=replace(DEV, run_dir=Path("/tmp/other"))) == []


def test_only_what_is_ours_is_taken_away() -> None:
    assert done(PARENT, MADE, wanted=()) == ["remove"]
    assert done(PARENT, MADE, wanted=(), mine=DEV) == []
    assert done(PARENT, replace(MADE, alias="somebody's"), wanted=()) == []


def test_another_address_is_another_shim() -> None:
    assert done(PARENT, MADE, wanted=(replace(SHIM, address="192.168.1.10/24"),)) == ["remove", "make"]


def test_one_on_the_wrong_parent_is_made_anew() -> None:
    assert done(PARENT, replace(MADE, parent=3)) == ["remove", "make"]


def test_a_name_that_is_taken_is_said_and_left_alone() -> None:
    steps, (fault,) = decide((SHIM,), (PARENT, replace(MADE, alias="somebody's")), ADDRESSES, NOMAD)
    assert steps == []
    assert fault.endswith(f"link {SHIM.name} is there and not ours, remove it")


def test_a_missing_parent_is_said() -> None:
    steps, (fault,) = decide((SHIM,), (), {}, NOMAD)
    assert steps == []
    assert "network lan: host_shim = 192.168.1.9/24: there is no interface eno1" in fault


def test_a_parent_that_hides_the_guests_is_said_and_the_shim_made_all_the_same() -> None:
    for own in ("192.168.1.5/24", "192.168.1.5/25"):
        steps, (fault,) = decide((SHIM,), (PARENT,), {2: (own,)}, NOMAD)
        assert [step.do for step in steps] == ["make"]
        assert f"eno1 itself has {own}" in fault
    narrow = replace(SHIM, address="192.168.1.129/25")
    assert decide((narrow,), (PARENT,), {2: ("192.168.1.5/24",)}, NOMAD)[1] == []
    assert decide((SHIM,), (PARENT,), {2: ("10.0.0.5/8", "fe80::1/64")}, NOMAD)[1] == []
