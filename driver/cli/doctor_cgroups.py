"""What `chv doctor` says of the host's cgroups. Pure, on a layout."""

from collections.abc import Iterator

from driver.cli.doctor_check import Check
from vmlib.cgroup import CgroupLayout

_WITHOUT = {
    "cpuset": "cores are kept by thread affinity alone, which anybody may undo",
    "cpu": "machines that share cores share them evenly, whatever their jobs ask for",
    "memory": "a VMM may take more than its job has, and what it takes is not counted",
    "pids": "a VMM may have any number of threads",
}


def cgroup_checks(layout: CgroupLayout) -> Iterator[Check]:
    """How the host has them, and a line for each controller that machines have to do without."""
    if not layout.tops:
        then = "machines run in the agent's own groups, and end with it"
        yield Check("cgroups", "warning", f"{layout.reason}: {then}", _cure_of_none(layout.reason))
        return
    several = f", {len(layout.tops)} hierarchies" if layout.kind != "v2" else ""
    yield Check("cgroups", "ok", f"{layout.kind}{several}")
    for name, then in _WITHOUT.items():
        if getattr(layout, name) is None:
            yield Check(f"cgroup {name}", "warning", f"controller {name} cannot be used: {then}", _cure(layout, name))


def _cure_of_none(reason: str) -> str:
    if "no groups can be made" in reason:
        return "run as root, with /sys/fs/cgroup mounted writable: mount -o remount,rw /sys/fs/cgroup"
    return "mount -t cgroup2 none /sys/fs/cgroup"


def _cure(layout: CgroupLayout, name: str) -> str:
    if layout.kind == "v2":
        return f"boot the kernel without cgroup_disable={name} and cgroup_no_v1, with cgroup_enable={name}"
    root = layout.tops[0].parent.parent
    return f"mkdir -p {root}/{name} && mount -t cgroup -o {name} cgroup {root}/{name}"
