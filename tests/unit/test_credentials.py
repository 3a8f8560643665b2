"""One uid for each machine, and one user where the operator wants that."""

import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlib.credentials import for_user, ours, pick_uid, with_kvm
from vmlib.errors import NoCapacityError
from vmlib.resources import Credentials


@given(start=st.integers(1, 100), size=st.integers(0, 20), used=st.sets(st.integers(0, 130)))
def test_never_gives_a_uid_to_two(start: int, size: int, used: set[int]) -> None:
    allowed = range(start, start + size)
    if set(allowed) <= used:
        with pytest.raises(NoCapacityError, match=f"^vm_uids: all {size} uids are held by machines$"):
            pick_uid(allowed, used)
        return
    uid = pick_uid(allowed, used)
    assert uid in allowed
    assert uid not in used
    assert all(lower in used for lower in range(start, uid))


def test_a_user_that_is_not_there_is_none() -> None:
    assert for_user("no-such-user-here") is None
    assert for_user("") is None


def test_a_user_comes_with_its_own_group() -> None:
    entry = pwd.getpwall()[-1]
    who = for_user(entry.pw_name)
    assert who is not None
    assert (who.uid, who.gid) == (entry.pw_uid, entry.pw_gid)


def test_without_a_user_it_is_ourselves() -> None:
    assert ours() == Credentials(uid=os.getuid(), gid=os.getgid())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_kvm_adds_the_group_of_the_device_where_that_helps(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch()
    who = Credentials(uid=1, gid=2, groups=(3,))
    for mode, gid, groups in ((0o660, 7, (3, 7)), (0o666, 7, (3,)), (0o660, 0, (3,))):
        os.chown(device, -1, gid)
        device.chmod(mode)
        assert with_kvm(who, device) == Credentials(uid=1, gid=2, groups=groups)
