"""The launcher's pure part: descriptor numbers into the command line."""

import pytest

from vmlib.launcher import substitute


def test_names_become_the_numbers_of_descriptors() -> None:
    argv = ["vmm", "-chardev", "socket,id=qmp,fd={fd:qmp},server=on", "/proc/self/fd/{fd:disk.root}", "{fd:a}{fd:a}"]
    assert substitute(argv, {"qmp": 7, "disk.root": 12, "a": 3}) == [
        "vmm",
        "-chardev",
        "socket,id=qmp,fd=7,server=on",
        "/proc/self/fd/12",
        "33",
    ]


def test_what_is_no_placeholder_stays_as_it_is() -> None:
    argv = ["{}", "{fd}", "{fd:}", "{FD:qmp}", "{{fd:UPPER}}", "$HOME"]
    assert substitute(argv, {}) == argv


def test_a_descriptor_that_is_missing_is_no_silent_word() -> None:
    with pytest.raises(KeyError):
        substitute(["{fd:nowhere}"], {"qmp": 3})
