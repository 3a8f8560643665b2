"""A machine that was started: found again by anybody, asked, stopped, taken back. Starting it is `vmlib.machine`'s."""

import contextlib
import functools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vmlib import files, postflight, process
from vmlib.cores import service as cores
from vmlib.cores.ledger import read_entries
from vmlib.cores.service import Notice
from vmlib.cores.words import Entry
from vmlib.counters import MachineCounter
from vmlib.errors import HypervisorError
from vmlib.hypervisor.base import Counters, Usage, VcpuThread, Vmm
from vmlib.keeper import client as keeper
from vmlib.keeper import oom
from vmlib.keeper.verdict import Evidence, Verdict, judge
from vmlib.kinds import EventKind
from vmlib.ladder import Rung, ladder, sentence
from vmlib.net import known
from vmlib.net.counted import carried
from vmlib.paths import Layout, MachinePaths, RunPaths
from vmlib.process import Identity
from vmlib.record import ExitRecord, MachineRecord, NicRecord, load_exit, load_machine

log = logging.getLogger(__name__)

_TELL_S = 1.0
_KEEPER_S = 5.0  # for a keeper to write down how its VMM has ended
_DEAF_S = 0.5  # for one that did not hear of the stop
_ENDING_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NicView:
    """One interface, for people."""

    network: str
    mac: str
    link: str
    addresses: tuple[str, ...]  # without the length of the prefix; those that count on the link only are last
    lost: str  # why no frame passes; "" = all is well, or nobody looks


@dataclass(slots=True)
class Machine:
    """A machine that was started, by this process or an earlier one. Holds no state that is not on disk."""

    record: MachineRecord
    paths: MachinePaths
    layout: Layout
    attach: Callable[[Path], Vmm] = field(repr=False)
    notices: tuple[Notice, ...] = ()  # what its start meant for other machines

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def run(self) -> RunPaths:
        return RunPaths(Path(self.record.run_dir))

    @property
    def vmm_identity(self) -> Identity:
        return Identity(self.record.vmm_pid, self.record.vmm_start_time)

    def running(self) -> bool:
        """True while the VMM lives."""
        return self.record.boot_id == process.boot_id() and process.alive(self.vmm_identity)

    def exit_record(self) -> ExitRecord | None:
        """How it ended; None while it runs, and for the moment in which its keeper still writes that down."""
        return load_exit(self.paths.exit_record, self.id) or load_exit(self.run.exit_record, self.id)

    def settle(self, *, patience_s: float = _KEEPER_S, forced: str = "") -> ExitRecord | None:
        """To be called when the keeper does not answer: the machine's end, or None when a keeper has it again.

        A keeper that lives gets `patience_s` to tell the end of a VMM that is gone. `forced` is how the caller has
        ended the machine, should the keeper not have heard of it. Raises HypervisorError when neither can be had now;
        trying again later helps.
        """
        try:
            with files.locked(self.paths.lock):
                return self.settle_locked(patience_s=patience_s, forced=forced)
        except FileNotFoundError:
            return self._judge(forced)  # somebody removed the machine's directory

    def settle_locked(self, *, patience_s: float = _KEEPER_S, forced: str = "") -> ExitRecord | None:
        """The same, for a caller that holds the machine's lock."""
        if (record := self.exit_record()) is not None:
            return record
        if self.running():
            if not self._kept():
                keeper.adopt(self.run)
            return self.exit_record()
        if self._kept():
            process.wait_gone(self._keeper_identity(), patience_s)
        if (record := self.exit_record()) is None:
            record = self._judge(forced)
            current = load_machine(self.paths.record)
            if current is not None and current.id == self.id:  # else another start has the directory by now
                record.save(self.paths.exit_record)
        return record

    def _judge(self, forced: str) -> ExitRecord:
        """An end that no keeper wrote down, from what the last one had learned."""
        if self.record.boot_id != process.boot_id():
            verdict = Verdict(1, message="the machine ended while nobody watched, the host was rebooted")
        else:
            seen = Evidence.load(self.run.state.read_bytes() if self.run.state.exists() else b"")
            seen.forced = seen.forced or forced
            verdict = judge(seen, status=None, oom=oom.report_of_run(self.run))
        return ExitRecord(
            id=self.id,
            at=time.time(),
            exit_code=verdict.exit_code,
            signal=verdict.signal,
            message=verdict.message,
            oom_killed=verdict.oom_killed,
        )

    def _keeper_identity(self) -> Identity:
        return process.load_identity(self.run.keeper) or Identity(0, 0)

    def _kept(self) -> bool:
        return process.alive(self._keeper_identity())

    def nics(self) -> tuple[NicView, ...]:
        """Its interfaces, with the addresses that were learned since its start."""
        learned = known.load(self.run.links)
        return tuple(
            NicView(
                network=nic.network,
                mac=nic.mac,
                link=nic.link,
                addresses=learned.of(nic),
                lost=learned.lost.get(nic.link, ""),
            )
            for nic in self.record.nics
        )

    def status(self) -> str:
        """The VMM's word for the guest's state: `running`, `paused`, …"""
        with self._vmm() as vmm:
            return vmm.status()

    def vcpus(self) -> tuple[VcpuThread, ...]:
        with self._vmm() as vmm:
            return vmm.vcpus()

    def usage(self) -> Usage:
        """Interfaces that the VMM does not count are counted by the host's links; None for one that has none here."""
        with self._vmm() as vmm:
            told = vmm.usage()
        return told if told.nics else replace(told, nics=tuple(_counted(nic) for nic in self.record.nics))

    def counter(self) -> MachineCounter:
        """Of what it uses of its host, whatever the VMM does."""
        record = self.record
        return MachineCounter(self.run, self.vmm_identity, memory_mib=record.memory_mib, hugepages=record.hugepages)

    def pause(self) -> None:
        with self._vmm() as vmm:
            vmm.pause()

    def resume(self) -> None:
        with self._vmm() as vmm:
            vmm.resume()

    def resume_if_paused(self) -> bool:
        """True when it was."""
        with self._vmm() as vmm:
            paused = vmm.status() == "paused"
            if paused:
                vmm.resume()
        return paused

    def press_power_button(self) -> None:
        """Resumes a paused guest first, which could not hear it otherwise."""
        with self._vmm() as vmm:
            if vmm.status() == "paused":
                vmm.resume()
            vmm.power_button()

    def reboot(self) -> None:
        """Reset the guest, a paused one after resuming it. A machine that shall not reboot ends by that, with 0."""
        with self._vmm() as vmm:
            if vmm.status() == "paused":
                vmm.resume()
            try:
                vmm.reboot()
            except HypervisorError:
                # Its keeper may end the VMM before that has answered.
                ended = self.wait(_ENDING_S)
                if ended is None or ended.exit_code:
                    raise

    def nmi(self) -> None:
        """A non-maskable interrupt, which guests make a dump of or a panic, as they are set up."""
        with self._vmm() as vmm:
            vmm.nmi()

    @contextlib.contextmanager
    def _vmm(self) -> Iterator[Vmm]:
        vmm = self.attach(self.run.root)
        try:
            yield vmm
        finally:
            vmm.close()

    def climb(self, rung: Rung, timeout_s: float, *, advice: str = "", heard: bool = True) -> None:
        """Take one step of the ladder; `advice` goes into the event of a forced one.

        `heard` is what `announce_stop` has returned: without a keeper that hears, no time is lost with telling it.
        Never raises: what does not work is logged, and the next step comes.
        """
        if rung.forced and heard:
            self.note("forced off", sentence(rung, timeout_s, advice=advice), forced=True)
        try:
            match rung.step:
                case "power button":
                    self.press_power_button()
                case "quit":
                    with self._vmm() as vmm:
                        vmm.quit()
                case "terminate":
                    process.send_signal(self.vmm_identity, 15)
                case "kill":
                    postflight.kill_vmm(self.vmm_identity, self.run, self.layout)
        except HypervisorError as exc:
            log.warning("stop step failed step=%r task=%s: %s", rung.step, self.id, exc)

    def agent_socket(self) -> socket.socket:
        """The guest channel as bytes, for one who speaks `guest.wire`; the caller closes it. A later one ends it.

        Raises HypervisorError when the keeper does not answer.
        """
        try:
            return keeper.open_guest_channel(self.run.control, timeout_s=_TELL_S)
        except (OSError, ValueError) as exc:
            raise HypervisorError(f"the keeper does not answer 'agent': {exc}") from exc

    def console(self, *, write: bool, take: bool = False, who: str = "", notices: bool = False) -> keeper.Console:
        """The guest's console, see `keeper.open_console`. Raises HypervisorError when the keeper does not answer."""
        try:
            return keeper.open_console(
                self.run.control, write=write, take=take, who=who, notices=notices, timeout_s=_TELL_S
            )
        except (OSError, ValueError) as exc:
            raise HypervisorError(f"the keeper does not answer 'console': {exc}") from exc

    def ledger_entry(self) -> Entry | None:
        """Its cores; None once they are free again."""
        return next((entry for entry in read_entries(self.layout.ledger) if entry.id == self.id), None)

    def kill(self) -> None:
        """SIGKILL to the VMM; its end is then reported as that signal."""
        process.send_signal(self.vmm_identity, 9)

    def note(self, kind: EventKind, text: str, *, forced: bool = False) -> None:
        """Have the keeper tell an event and remember it for the verdict. A missing keeper is no reason to fail."""
        self._tell("note", kind=kind, text=text, forced=forced)

    def announce_stop(self, timeout_s: float) -> bool:
        """Have the keeper end the machine, should we die before the ladder's end; its cores are draining now.

        False when the keeper does not hear.
        """
        cores.drain(self.layout, self.id)
        return self._tell("stop", timeout_s=timeout_s)

    def _tell(self, op: str, **details: Any) -> bool:
        """To a keeper that is missing or hangs nothing can be told, which keeps nobody from going on."""
        try:
            with keeper.Connection.open(self.run.control, timeout_s=_TELL_S) as connection:
                connection.ask(op, **details)
        except (OSError, HypervisorError):
            return False
        return True

    def destroy(self) -> None:
        """Take back everything of this start, running or not. Raises HostError when something is left."""
        if not self.paths.root.exists():
            return
        with files.locked(self.paths.lock):
            take_back(self.paths, self.layout, self.id)

    def wait(self, timeout_s: float) -> ExitRecord | None:
        """Wait for the end; None when the machine still runs then."""
        return self.settle() if process.wait_gone(self.vmm_identity, timeout_s) else None

    def stop(self, timeout_s: float) -> ExitRecord | None:
        """Climb the ladder until the machine has ended; for callers without an event loop."""
        heard, forced = self.announce_stop(timeout_s), ""
        for rung in ladder(timeout_s):
            # A call that hangs must not hold up the next step, which may need no call.
            step = functools.partial(self.climb, rung, timeout_s, heard=heard)
            threading.Thread(target=step, daemon=True).start()
            forced = sentence(rung, timeout_s) if rung.forced else ""
            if process.wait_gone(self.vmm_identity, rung.wait_s):
                return self.settle(patience_s=_KEEPER_S if heard else _DEAF_S, forced=forced)
        return None


def take_back(paths: MachinePaths, layout: Layout, machine_id: str) -> None:
    """Undo all of that very start, for a caller that holds the machine's lock. Raises HostError."""
    record = load_machine(paths.record)
    if record is not None and record.id != machine_id:
        postflight.end_run(layout.run(machine_id), layout)  # another start has the directory by now
    else:
        postflight.clear(paths, layout)
    keeper.reap()


def _counted(nic: NicRecord) -> Counters | None:
    found = carried(nic.link, nic.ifindex)
    if found is None:
        return None
    return Counters(
        read_bytes=found.received_bytes,
        write_bytes=found.sent_bytes,
        read_ops=found.received_frames,
        write_ops=found.sent_frames,
    )
