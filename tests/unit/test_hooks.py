"""What goes between the plugin and a hook's process, and what an operator may write to select one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.errors import HostError
from vmlib.hook_wire import pack, unpack
from vmlib.hooks import GivenDisk, Prepared, find_hook, load_hook, split
from vmlib.spec import (
    CoresSpec,
    DirectBoot,
    DiskKey,
    DiskSpec,
    FileRef,
    MachineSpec,
    NicSpec,
    RootDisk,
    SeedSpec,
    UserLink,
)

REF = FileRef(root=Path("/srv/images"), relative="a\nb.raw")
SPEC = MachineSpec(
    id="a/b/c",
    name="a/b",
    owner="nomad",
    vcpus=2,
    memory_mib=512,
    boot=DirectBoot(kernel=REF),
    root=RootDisk(image=REF, format="raw", size_bytes=1 << 40),
    disks=(
        DiskSpec(name="d", format="qcow2", persistent=DiskKey(namespace="n", job="j", group="g", index=3, name="d")),
    ),
    seed=SeedSpec(instance_id="i", hostname="h", user_data=b"\xff\0#", environment={"A": "b"}),
    nics=(NicSpec(network="n", link=UserLink(), mac="52:54:00:12:34:56"),),
    cores=CoresSpec(exclusive=True, given=frozenset({1, 2}), tokens={0: 2}),
    labels={"job": "j", "meta.x": "y"},
    alive_while=Path("/alloc"),
)


def test_a_whole_machine_arrives_as_it_was_sent() -> None:
    assert unpack(pack(SPEC)) == SPEC
    given_ = Prepared(disks=(GivenDisk(name="v", path=Path("/x"), readonly=True),), spec=SPEC)
    assert unpack(pack({"done": given_})) == {"done": given_}


def test_a_message_is_one_line() -> None:
    assert pack(SPEC).count(b"\n") == 1


plain = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.text(min_size=1).map(Path)
words = st.recursive(plain, lambda one: st.tuples(one, one) | st.dictionaries(st.text(), one))


@given(words)
def test_what_is_packed_is_what_is_unpacked(value: object) -> None:
    assert unpack(pack(value)) == value


def test_what_is_no_word_of_ours_is_not_handed_on() -> None:
    @dataclass(frozen=True)
    class FileRef:
        root: Path

    for value in (object(), FileRef(Path("/"))):
        with pytest.raises(TypeError):
            pack(value)


@pytest.mark.parametrize(
    "line", [b"", b"x", b'{"class": "Path", "members": {}}', b'{"class": "FileRef", "members": {}}']
)
def test_a_line_of_somebody_elses_is_no_message(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        unpack(line)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("shelf", ("shelf", "")), ("shelf:/srv/a:b", ("shelf", "/srv/a:b")), ("", ("", ""))],
)
def test_a_hook_is_a_name_and_what_it_is_told(wanted: str, expected: tuple[str, str]) -> None:
    assert split(wanted) == expected


class Package:
    """An installed package, as far as its entry points go."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        monkeypatch.syspath_prepend(directory)

    def add(self, name: str, points: Mapping[str, str]) -> None:
        info = self._directory / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        lines = "".join(f"{key} = {value}\n" for key, value in points.items())
        (info / "entry_points.txt").write_text(f"[chv.hooks]\n{lines}")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    return Package(tmp_path, monkeypatch)


def test_a_hook_that_nobody_installed_is_the_operators_to_mend() -> None:
    with pytest.raises(HostError, match="no installed package has an entry point of that name") as caught:
        find_hook("nosuch")
    assert "install the package" in caught.value.hint


def test_a_hook_is_found_by_its_entry_point(package: Package) -> None:
    package.add("one", {"mine": "collections:OrderedDict"})
    assert find_hook("mine").value == "collections:OrderedDict"
    assert type(load_hook("mine")).__name__ == "OrderedDict"


def test_two_packages_with_one_name_are_not_chosen_between(package: Package) -> None:
    package.add("one", {"mine": "a:A"})
    package.add("two", {"mine": "b:B"})
    with pytest.raises(HostError, match=r"several entry points .*: a:A, b:B"):
        find_hook("mine")


def test_a_hook_that_cannot_be_made_says_which_and_why(package: Package) -> None:
    package.add("one", {"mine": "nowhere_to_be_found:X"})
    with pytest.raises(HostError, match="nowhere_to_be_found:X cannot be made: ModuleNotFoundError"):
        load_hook("mine")
