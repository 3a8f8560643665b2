"""What becomes of a machine whose Cloud Hypervisor misbehaves: each word that the fake knows, with a played guest."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.ch.behaviour import WORDS
from tests.fakes.ch.install import install, tell
from tests.guest.build import Guest
from tests.integration.machines import NOTHING, READY, Host, Running, host_for
from tests.integration.misbehaviours import ALSO_TESTED, LIMIT_S, NICS, PAUSED, RUNS, STARTS, STOP_S, STOPS
from tests.integration.networks import network
from vmlib import cpuset
from vmlib import machine as machine_module
from vmlib.cores.plan import Policy
from vmlib.cores.service import CoreSettings
from vmlib.errors import HypervisorError
from vmlib.hypervisor import cloud_hypervisor
from vmlib.hypervisor.cloud_hypervisor import CloudHypervisor
from vmlib.hypervisor.select import attach
from vmlib.machine import Machines
from vmlib.resources import Resources
from vmlib.settings import HostSettings
from vmlib.spec import CoresSpec, MacvtapLink, NicSpec

CPUS = sorted(os.sched_getaffinity(0))
SLACK_S = 12.0  # of a busy host, besides the limits


class LightHost(Host):
    """Its VMM is the fake one, whose guest is played."""

    policy = Policy()

    @property
    def fake(self) -> Path:
        place = self.directory / "fake"
        if not place.exists():
            place.mkdir()
            install(place, guest="light")
        return place / "cloud-hypervisor"

    @property
    def machines(self) -> Machines:
        hypervisor = CloudHypervisor(binary=str(self.fake), version="53.0")
        cores = CoreSettings(policy=lambda _: self.policy)
        return Machines(HostSettings(layout=self.layout, cores=cores), lambda _: (hypervisor, "by the test"), attach)

    def start(self, words: str = "", *, task: str = "web", **changes: Any) -> Running:
        """Words that begin with `chfake.` are for the fake, the others for its guest."""
        odd = [word.removeprefix("chfake.") for word in words.split() if word.startswith("chfake.")]
        tell(self.fake, guest="light", misbehave=odd)
        guest = [word for word in words.split() if not word.startswith("chfake.")]
        return super().start(" ".join(guest), task=task, **changes)

    def nothing_runs(self) -> bool:
        return self.processes() == NOTHING and list(self.layout.runs.iterdir()) == []


@pytest.fixture
def host(short_dir: Path, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> Iterator[LightHost]:
    monkeypatch.setattr(cloud_hypervisor, "_START_TIMEOUT_S", 3 * LIMIT_S)
    monkeypatch.setattr(cloud_hypervisor, "_ADD_TIMEOUT_S", LIMIT_S)
    monkeypatch.setattr(cloud_hypervisor, "_BOOT_TIMEOUT_S", LIMIT_S)
    monkeypatch.setattr(machine_module, "reboot_timeout_s", lambda *_, **__: LIMIT_S)
    with host_for(short_dir, guest.directory, "cloud-hypervisor", kind=LightHost) as one:
        assert isinstance(one, LightHost)
        yield one


def test_each_word_that_the_fake_knows_has_a_test() -> None:
    said = " ".join([*(f"chfake.{word}" for word in [*STARTS, *NICS]), *RUNS, *STOPS])
    assert set(re.findall(r"chfake\.([a-z-]+)", said)) | ALSO_TESTED == WORDS


# ---------------------------------------------------------------------------------------------------------------------
# starts


@pytest.mark.parametrize("word", STARTS)
def test_a_start_fails_in_time_with_the_cause_and_leaves_nothing(host: LightHost, word: str) -> None:
    begin = time.monotonic()
    with pytest.raises(HypervisorError) as failed:
        host.start(f"chfake.{word}")
    assert time.monotonic() - begin < 3 * LIMIT_S + SLACK_S
    assert str(failed.value) == STARTS[word][0]
    assert host.nothing_runs()


def test_an_interface_that_is_not_taken_in_time_ends_the_start(host: LightHost) -> None:
    lan = NicSpec(network="lan", link=MacvtapLink(parent="up0"), mac="52:54:00:00:00:0a")
    with network() as net:
        for word, words in NICS.items():
            with pytest.raises(HypervisorError, match=f"^{re.escape(words)}$"):
                net.host.do(partial(host.start, f"chfake.{word}", nics=(lan,)))
            assert host.nothing_runs()
            assert net.host.ours() == []


def test_what_the_vmm_complained_of_while_it_hung_is_told(host: LightHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins outside its cpuset, which cannot come from us: the affinity is put into the plan by hand."""
    outside = CPUS[-1] + 500
    monkeypatch.setattr(machine_module, "_placed", lambda res, _: _with_affinity(res, outside))
    with pytest.raises(HypervisorError) as failed:
        host.start()
    assert str(failed.value) == (
        "vm.boot: no answer from the VMM within 2 s: Failed scheduling the vCPU 0 on the expected CPU set"
    )


def test_a_refusal_is_told_at_once(host: LightHost) -> None:
    """There is nothing to wait for: the API has said why."""
    took = []
    for word in ("exit=vm.create", "fail=vm.create", "exit=vm.create", "fail=vm.create"):
        begin = time.monotonic()
        with pytest.raises(HypervisorError):
            host.start(f"chfake.{word}")
        took.append(time.monotonic() - begin)
    assert min(took[1], took[3]) < min(took[0], took[2]) + 1.5


def test_a_config_that_was_kept_after_a_failure_does_not_harm_the_next_start(host: LightHost) -> None:
    with pytest.raises(HypervisorError):
        host.start("chfake.keep-config")
    assert host.start("poweroff").end().exit_code == 0


# ---------------------------------------------------------------------------------------------------------------------
# running machines


@pytest.mark.parametrize("words", RUNS)
def test_a_running_machine_ends_with_the_right_cause(host: LightHost, words: str) -> None:
    record = host.start(words).end()
    assert (record.exit_code, record.signal, record.message) == RUNS[words]


def test_a_reboot_at_once_after_the_panic_does_not_outrun_on_panic(host: LightHost) -> None:
    one = host.start("panic")
    record = one.end()
    assert (record.exit_code, record.signal) == (1, 0)
    assert record.message.startswith("guest panic: Kernel panic")
    assert one.out.text.count("up") <= 2
    assert "rebooted" not in one.err.text


@pytest.mark.needs("cgroup")
@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU to give away, one to keep")
def test_a_cpuset_that_lacks_a_pin_makes_the_reboot_hang_and_that_is_told(host: LightHost) -> None:
    """A VMM is told its pins where the cores are the driver's own; it is then the kernel that refuses them."""
    host.policy = Policy(dedicated=frozenset(CPUS[-1:]), dedicated_only=True, usable=frozenset(CPUS[:-1]))
    one = host.start("sleep=3 reboot-once", cores=CoresSpec(exclusive=True))
    placement = one.machine.record.placement
    assert placement is not None
    assert placement.level == "node"
    group = host.machines.cores.groups(one.machine.id, placement).cpuset
    assert group is not None
    (group / "cpuset.cpus").write_text(",".join(str(cpu) for cpu in cpuset.read_cpus(group)[0] - {*placement.vcpus}))
    record = one.end()
    assert (record.exit_code, record.signal, record.message) == (
        1,
        0,
        "the guest's reboot hung, the VMM was killed after 2 s: Failed scheduling the vCPU 0 on the expected CPU set",
    )


# ---------------------------------------------------------------------------------------------------------------------
# stops


@pytest.mark.parametrize("words", STOPS)
def test_a_stop_takes_its_time_and_five_seconds_at_most(host: LightHost, words: str) -> None:
    one = _started(host, words)
    begin = time.monotonic()
    record = one.machine.stop(STOP_S)
    assert record is not None
    assert time.monotonic() - begin < STOP_S + 5.0 + SLACK_S / 4
    assert (record.exit_code, record.message) == STOPS[words][:2]


@pytest.mark.parametrize("words", PAUSED)
def test_a_paused_machine_is_resumed_and_stopped_in_the_same_time(host: LightHost, words: str) -> None:
    one = _started(host, words)
    one.machine.pause()
    begin = time.monotonic()
    record = one.machine.stop(STOP_S)
    assert record is not None
    assert time.monotonic() - begin < STOP_S + 5.0 + SLACK_S / 4
    assert (record.exit_code, record.message) == PAUSED[words][:2]


def _started(host: LightHost, words: str) -> Running:
    one = host.start(words)
    if "dead-boot" not in words:
        one.until_line(READY)
    return one


def _with_affinity(res: Resources, cpu: int) -> Resources:
    return replace(res, affinity=(frozenset({cpu}),))
