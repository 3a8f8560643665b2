"""A real guest: QEMU with TCG runs what the configuration says, its devices by descriptor."""

import contextlib
import json
import os
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.fakes.ch import config as configs
from tests.fakes.ch.config import RefusedError
from tests.fakes.ch.images import Image
from tests.fakes.ch.machine import Ears, Hardware
from tests.fakes.ch.says import Log
from tests.fakes.ch.taps import traffic
from tests.fakes.ch.threads import Loop, die_with_parent

_ANSWER_S = 30.0
_ACCEL = ["-accel", "tcg,thread=multi,tb-size=32", "-cpu", "max"]


class Qemu:
    """An engine. What QEMU says of itself is taken in by `loop`; calls come from the VMM's thread."""

    def __init__(self, loop: Loop, ears: Ears, *, binary: str, log: Log) -> None:
        self._loop = loop
        self._ears = ears
        self._binary = binary
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._serial: socket.socket | None = None
        self._channel: socket.socket | None = None
        self._qmp: Qmp | None = None
        self._hardware: Hardware | None = None
        self._names: dict[str, list[str]] = {}
        self._heard = False  # anything on the serial port since the last start
        self._starts = 0
        self._resetting = threading.Lock()  # two at once would undo each other's "set-action"

    def boot(self, hardware: Hardware, *, held: bool) -> None:
        self._hardware = hardware
        self._names = configs.names(dict(hardware.config))
        self._heard = False
        self._starts = 1
        pairs = {name: socket.socketpair() for name in ("serial", "channel", "qmp")}
        theirs = {name: pair[1].fileno() for name, pair in pairs.items()}
        argv = [self._binary, *arguments(hardware, self._names, theirs)]
        error_out, error_in = os.pipe2(os.O_CLOEXEC)

        def become() -> None:
            die_with_parent()
            if hardware.cpus:
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(0, hardware.cpus)

        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=error_in,
                env={"PATH": os.environ.get("PATH", os.defpath), "TMPDIR": "/tmp"},
                pass_fds=tuple(sorted({*theirs.values(), *_descriptors(hardware)})),
                preexec_fn=become,  # noqa: PLW1509  two system calls, no lock
            )
        except OSError as exc:
            raise RefusedError("Error from hypervisor", f"{self._binary}: {exc.strerror}") from exc
        finally:
            os.close(error_in)
            for _, end in pairs.values():
                end.close()
        self._serial, self._channel = pairs["serial"][0], pairs["channel"][0]
        self._loop.call(lambda: self._loop.watch(error_out, lambda: self._take_error(error_out)))
        self._loop.call(lambda: self._watch(self._serial, self._take_serial))
        self._loop.call(lambda: self._watch(self._channel, self._take_channel))
        self._qmp = Qmp(pairs["qmp"][0])
        try:
            self._qmp.greet()
            if not held:
                self._qmp.execute("cont")
        except OSError as exc:
            self.stop()
            raise RefusedError("Error from hypervisor", f"qemu: {exc}") from exc
        qmp = self._qmp
        qmp.heard = lambda: self._loop.call(self._take_events)
        self._loop.call(lambda: self._watch(qmp.sock, self._take_qmp))

    def reset(self) -> None:
        with self._resetting:
            self._reset()

    def _reset_again(self) -> None:
        """After a reset that is no reboot. A guest may ask in several ways at once; one start answers them all."""
        with self._resetting:
            if self._qmp is not None and self._qmp.execute("query-status")["status"] == "shutdown":
                self._reset()

    def _reset(self) -> None:
        assert self._qmp is not None
        self._heard = False
        self._starts += 1
        # A reset ends in "shutdown" as the guest's own do, unless it is told otherwise.
        self._qmp.execute("stop")
        self._qmp.execute("set-action", {"reboot": "reset"})
        self._qmp.execute("system_reset")
        deadline = time.monotonic() + _ANSWER_S
        while self._qmp.execute("query-status")["status"] != "prelaunch":  # it answers before it has done it
            if time.monotonic() > deadline:
                raise TimeoutError("qemu does not reset")
            time.sleep(0.01)
        self._qmp.execute("set-action", {"reboot": "shutdown"})
        self._qmp.execute("cont")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        for sock in (self._serial, self._channel, self._qmp.sock if self._qmp else None):
            if sock is not None:
                self._loop.ask(partial(self._forget, sock))
        self._serial = self._channel = self._qmp = None

    def pause(self) -> None:
        self._execute("stop")

    def resume(self) -> None:
        self._execute("cont")

    def press(self) -> None:
        self._execute("system_powerdown")

    def nmi(self) -> None:
        self._execute("inject-nmi")

    def typed(self, data: bytes) -> None:
        if self._serial is not None:
            with contextlib.suppress(OSError):
                self._serial.sendall(data)

    def to_channel(self, data: bytes) -> None:
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.sendall(data)

    def counters(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        stats = {one.get("qdev", ""): one["stats"] for one in self._execute("query-blockstats")}
        for index, name in enumerate(self._names.get("disks", [])):
            one: dict[str, Any] = next((value for path, value in stats.items() if f"/dev{index}/" in path), {})
            words = {"read_bytes": "rd_bytes", "write_bytes": "wr_bytes", "read_ops": "rd_operations"}
            words["write_ops"] = "wr_operations"
            found[name] = {ours: int(one.get(qemus, 0)) for ours, qemus in words.items()}
        assert self._hardware is not None
        for name, fds in zip(self._names.get("net", []), self._hardware.nics, strict=True):
            found[name] = traffic(fds[0])
        return found

    def set_balloon(self, size_bytes: int) -> None:
        self._execute("balloon", {"value": self._memory() - size_bytes})

    def ballooned(self) -> int:
        assert self._hardware is not None
        if "balloon" not in self._hardware.config:
            return 0
        return self._memory() - int(self._execute("query-balloon")["actual"])

    def _memory(self) -> int:
        assert self._hardware is not None
        return memory_of(self._hardware.config)

    def _execute(self, command: str, given: dict[str, Any] | None = None) -> Any:
        if self._qmp is None:
            raise RefusedError("VM is not running")
        return self._qmp.execute(command, given)

    def _watch(self, sock: socket.socket | None, readable: Any) -> None:
        if sock is not None and sock.fileno() >= 0:
            self._loop.watch(sock.fileno(), readable)

    def _forget(self, sock: socket.socket) -> None:
        if sock.fileno() >= 0:
            self._loop.unwatch(sock.fileno())
            sock.close()

    def _take_serial(self) -> None:
        if self._serial is None:
            return
        data = _read(self._serial)
        if data:
            if not self._heard:
                self._heard = True
                self._ears.alive()
            self._ears.output(data)
        else:
            self._loop.unwatch(self._serial.fileno())

    def _take_channel(self) -> None:
        if self._channel is None:
            return
        data = _read(self._channel)
        if data:
            self._ears.channel(data)
        else:
            self._loop.unwatch(self._channel.fileno())

    def _take_error(self, fd: int) -> None:
        text = os.read(fd, 4096)
        if text:
            self._log.say("WARN", f"qemu: {text.decode(errors='replace').strip()}")
        else:
            self._loop.unwatch(fd)
            os.close(fd)

    def _take_qmp(self) -> None:
        qmp = self._qmp
        if qmp is None:
            return
        if not qmp.pump():
            self._loop.unwatch(qmp.sock.fileno())
            if self._process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(1.0)
                self._ears.crashed(f"qemu ended with {self._process.returncode}")
            return
        self._take_events()

    def _take_events(self) -> None:
        qmp = self._qmp
        while qmp is not None and (event := qmp.next_event()) is not None:
            match event:
                case {"event": "SHUTDOWN", "data": {"reason": "guest-shutdown"}}:
                    self._ears.power_off()
                case {"event": "SHUTDOWN", "data": {"reason": "guest-reset"}}:
                    # SeaBIOS resets the machine once more when it finds itself started by a reset. That is no reboot.
                    if self._heard or self._starts == 1:
                        self._ears.reset()
                    else:
                        threading.Thread(target=self._reset_again, daemon=True).start()
                case {"event": "GUEST_PANICKED"}:
                    self._ears.panic()
                case {"event": "VSERPORT_CHANGE", "data": {"open": False}}:
                    self._ears.channel_closed()


class Qmp:
    """A conversation with QEMU's monitor. Two threads may take part: one asks, one takes in events."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.heard: Callable[[], None] = lambda: None
        self._lock = threading.RLock()
        self._data = b""
        self._events: list[dict[str, Any]] = []
        self._answers: list[dict[str, Any]] = []
        sock.setblocking(False)

    def greet(self) -> None:
        self.execute("qmp_capabilities")

    def execute(self, command: str, given: dict[str, Any] | None = None) -> Any:
        """Raises OSError when QEMU ends or says no."""
        with self._lock:
            request = {"execute": command, **({"arguments": given} if given else {})}
            self.sock.setblocking(True)
            try:
                self.sock.sendall(json.dumps(request).encode() + b"\n")
            finally:
                self.sock.setblocking(False)
            deadline = time.monotonic() + _ANSWER_S
            with selectors.DefaultSelector() as selector:
                selector.register(self.sock, selectors.EVENT_READ)
                while not self._answers:
                    if not selector.select(max(0.0, deadline - time.monotonic())):
                        raise TimeoutError(f"{command}: no answer within {_ANSWER_S:g} s")
                    if not self.pump():
                        raise ConnectionError(f"{command}: it ended")
            answer = self._answers.pop(0)
        if self._events:
            self.heard()
        if "error" in answer:
            raise OSError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def pump(self) -> bool:
        """Take in what is there; False at the end."""
        with self._lock:
            try:
                data = self.sock.recv(1 << 16)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            *lines, self._data = (self._data + data).split(b"\n")
            for message in map(json.loads, filter(bytes.strip, lines)):
                if "event" in message:
                    self._events.append(message)
                elif "QMP" not in message:
                    self._answers.append(message)
            return True

    def next_event(self) -> dict[str, Any] | None:
        with self._lock:
            return self._events.pop(0) if self._events else None


def _read(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 16)
    except OSError:
        return b""


# ---------------------------------------------------------------------------------------------------------------------
# command line


def arguments(hardware: Hardware, names: dict[str, list[str]], ends: dict[str, int]) -> list[str]:
    config = hardware.config
    cpus = config["cpus"]
    threads = cpus.get("topology", {}).get("threads_per_core", 1)
    vcpus = cpus["boot_vcpus"]
    size = memory_of(config)
    words = [
        "-nodefaults", "-no-user-config", "-display", "none", "-S",
        "-action", "reboot=shutdown,shutdown=pause,panic=none",
        "-machine", "q35,usb=off,vmport=off,memory-backend=ram",
        "-object", f"memory-backend-memfd,id=ram,size={size},share={'on' if config.get('fs') else 'off'}",
        *_ACCEL,
        "-smp", f"{vcpus},sockets=1,cores={vcpus // threads},threads={threads}",
        "-m", f"{size}b",
        "-rtc", "base=utc",
        "-device", "virtio-rng-pci",
        "-chardev", f"socket,id=qmp,fd={ends['qmp']}", "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=serial,fd={ends['serial']}", "-serial", "chardev:serial",
        "-device", "virtio-serial-pci,id=ports",
        "-chardev", f"socket,id=channel,fd={ends['channel']}",
        "-device", "virtserialport,bus=ports.0,chardev=channel,name=org.chv.agent.0",
    ]  # fmt: skip
    if config["pvpanic"]:
        words += ["-device", "pvpanic-pci"]
    if "balloon" in config:
        words += ["-device", "virtio-balloon-pci"]
    if hardware.kernel is not None:
        words += ["-kernel", f"/proc/self/fd/{hardware.kernel}", "-append", config["payload"].get("cmdline", "")]
    if hardware.initrd is not None:
        words += ["-initrd", f"/proc/self/fd/{hardware.initrd}"]
    for index, (disk, image) in enumerate(zip(config.get("disks", []), hardware.disks, strict=True)):
        words += list(_disk(index, image, disk))
    for index, (net, fds) in enumerate(zip(config.get("net", []), hardware.nics, strict=True)):
        many = len(fds) > 1
        queues = f"fds={':'.join(map(str, fds))}" if many else f"fd={fds[0]}"
        more = f",mq=on,vectors={2 * len(fds) + 2}" if many else ""
        words += ["-netdev", f"tap,id=net{index},{queues}"]
        words += ["-device", f"virtio-net-pci,netdev=net{index},mac={net['mac']},romfile={more}"]
    for share in config.get("fs", []):
        tag = share["tag"]
        words += ["-chardev", f"socket,id=fs-{tag},fd={hardware.sockets[tag]}"]
        words += ["-device", f"vhost-user-fs-pci,chardev=fs-{tag},tag={tag}"]
    if "tpm" in hardware.sockets:
        words += ["-chardev", f"socket,id=tpm,fd={hardware.sockets['tpm']}"]
        words += ["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0"]
    return words


def memory_of(config: Any) -> int:
    memory = config["memory"]
    return int(memory["size"] or sum(zone["size"] for zone in memory.get("zones", [])))


def _disk(index: int, image: Image, disk: Any) -> Iterator[str]:
    """The graph from the bottom up. Locks are the VMM's own."""
    below: str | None = None
    for depth in range(len(image.layers) - 1, -1, -1):
        layer = image.layers[depth]
        readonly = disk["readonly"] or depth > 0
        number = index * 16 + depth + 1
        yield from ("-add-fd", f"fd={layer.fd},set={number}")
        node = f"disk{index}-{depth}"
        file = {
            "driver": "host_device" if layer.block_device else "file",
            "filename": f"/dev/fdset/{number}",
            "locking": "off",
            "read-only": readonly,
            "discard": "unmap",
        }
        one: dict[str, Any] = {"driver": layer.driver, "node-name": node, "file": file, "read-only": readonly}
        if layer.driver == "qcow2":
            one["backing"] = below
        yield from ("-blockdev", json.dumps(one))
        below = node
    serial = f",serial={disk['serial']}" if "serial" in disk else ""
    boots = ",bootindex=1" if index == 0 else ""
    yield from ("-device", f"virtio-blk-pci,id=dev{index},drive={below}{serial}{boots}")


def _descriptors(hardware: Hardware) -> Iterator[int]:
    yield from (fd for fd in (hardware.kernel, hardware.initrd, hardware.firmware) if fd is not None)
    for image in hardware.disks:
        yield from (layer.fd for layer in image.layers)
    for fds in hardware.nics:
        yield from fds
    yield from hardware.sockets.values()
