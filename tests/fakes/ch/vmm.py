"""The VMM: its states and what each call does in them. All of it runs in the VMM's own thread."""

import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tests.fakes.ch import config as configs
from tests.fakes.ch import images, taps, threads
from tests.fakes.ch.behaviour import Behaviour, die, leave
from tests.fakes.ch.config import RefusedError
from tests.fakes.ch.light import Light
from tests.fakes.ch.machine import Ears, Engine, Hardware
from tests.fakes.ch.qemu import Qemu, memory_of
from tests.fakes.ch.says import Events, Log
from tests.fakes.ch.schema import FACTS
from tests.fakes.ch.serial import Serial
from tests.fakes.ch.vsock import Vsock

NOT_CREATED = "VM is not created"
NOT_RUNNING = "VM is not running"


class Vmm:
    def __init__(self, behaviour: Behaviour, log: Log, events: Events, *, no_shutdown: bool) -> None:
        self.loop = threads.Loop()  # calls, and what the guest does to its machine
        self._io = threads.Loop()  # bytes of the guest's
        self._io.start("serial-manager")
        self._behaviour = behaviour
        self._log = log
        self._events = events
        self._no_shutdown = no_shutdown
        self._config: configs.Config | None = None
        self._state = ""  # of the VM: "", Running or Paused
        self._serial: Serial | None = None
        self._vsock: Vsock | None = None
        self._engine: Engine | None = None
        self._hardware: Hardware | None = None
        self._threads = threads.Idle()
        self._alive: list[str] = []  # devices that the guest drives
        self._panicked = False
        self.at_end: Callable[[], None] = lambda: None

    # -----------------------------------------------------------------------------------------------------------------
    # calls

    def ping(self) -> dict[str, Any]:
        return {
            "build_version": self._behaviour.build_version,
            "version": self._behaviour.full_version,
            "pid": os.getpid(),
            "features": ["io_uring", "kvm"],
        }

    def create(self, body: configs.Config) -> None:
        if self._config is not None:
            raise RefusedError("VM is already created")
        self._behaviour.learn(body.get("payload", {}).get("cmdline", ""))
        self._config = configs.normal(body, _properties)
        if self._behaviour.word("keep-config") is not None:
            raise RefusedError("Error creating console devices", "Error creating console device", "chfake: told so")
        self._open_serial()

    def delete(self) -> None:
        if self._config is None:
            return
        if self._state:
            self.shutdown()
        self._close_serial()
        self._config = None
        self._events.say("vm", "deleted")

    def boot(self) -> None:
        if self._state:
            raise RefusedError("VM is already created")
        self._events.say("vm", "booting")
        if self._config is None:
            raise RefusedError("VM config is missing")
        configs.check(self._config)
        if self._serial is None:
            self._open_serial()
        hardware = self._gather()
        try:
            self._start_threads()
            if "vsock" in self._config:
                listening = self._behaviour.word("vsock-listen")
                self._vsock = Vsock(
                    self._io,
                    self._config["vsock"]["socket"],
                    listening=int(listening) if listening else None,
                    to_guest=lambda data: self._engine.to_channel(data) if self._engine else None,
                )
            self._engine = self._new_engine()
            self._panicked = False
            self._alive = []
            self._engine.boot(hardware, held=self._behaviour.word("dead-boot") is not None)
        except BaseException:
            self._engine = None
            self._release(hardware)
            raise
        self._hardware = hardware
        self._state = "Running"
        self._events.say("vm", "booted")
        for word, end in (("exit-after", self._exit_now), ("signal-after", self._die_now)):
            if (value := self._behaviour.word(word)) is not None:
                seconds, _, how = value.partition(":")
                self.loop.after(float(seconds), partial(end, how))

    def shutdown(self) -> None:
        self._expect_running()
        self._unplug()
        self._events.say("vm", "shutdown")

    def reboot(self) -> None:
        self._events.say("vm", "rebooting")
        if not self._state or self._config is None:
            raise RefusedError(NOT_CREATED)
        assert self._engine is not None
        if self._behaviour.word("reboot-hang") is not None:
            self._engine.stop()
            threads.for_ever()
        self._threads.stop()
        self._close_serial()
        self._open_serial()
        self._start_threads()
        self._alive = []
        self._panicked = False
        self._state = "Running"
        self._engine.reset()
        self._events.say("vm", "rebooted")

    def pause(self) -> None:
        if self._state != "Running":
            raise RefusedError(NOT_RUNNING if not self._state else "Invalid VM state transition")
        assert self._engine is not None
        self._events.say("vm", "pausing")
        self._engine.pause()
        self._state = "Paused"
        self._events.say("vm", "paused")

    def resume(self) -> None:
        if self._state != "Paused":
            raise RefusedError(NOT_RUNNING if not self._state else "Invalid VM state transition")
        assert self._engine is not None
        self._events.say("vm", "resuming")
        self._engine.resume()
        self._state = "Running"
        self._events.say("vm", "resumed")

    def power_button(self) -> None:
        self._expect_running()
        if self._behaviour.word("ignore-button") is None:
            assert self._engine is not None
            self._engine.press()

    def nmi(self) -> None:
        self._expect_running()
        assert self._engine is not None
        self._engine.nmi()

    def info(self) -> dict[str, Any]:
        if self._config is None:
            raise RefusedError(NOT_CREATED)
        size = memory_of(self._config)
        if self._engine is not None:
            size -= self._engine.ballooned()
        info: dict[str, Any] = {"config": self._config, "state": self._state or "Created", "memory_actual_size": size}
        if self._state:
            names = [name for group in configs.names(self._config).values() for name in group]
            info["device_tree"] = {
                name: {"id": name, "resources": [], "children": [], "pci_bdf": f"0000:00:{number:02x}.0"}
                for number, name in enumerate(names, start=1)
            }
        return info

    def counters(self) -> dict[str, dict[str, int]]:
        self._expect_running()
        assert self._engine is not None
        return self._engine.counters()

    def resize(self, body: Mapping[str, Any]) -> None:
        if self._config is None:
            raise RefusedError(NOT_CREATED)
        if (vcpus := body.get("desired_vcpus")) is not None:
            if self._state:
                raise RefusedError("CPU hot-plug is not played")
            self._config["cpus"]["boot_vcpus"] = vcpus
        if (ram := body.get("desired_ram")) is not None:
            if self._state:
                raise RefusedError("RAM hot-plug is not played")
            self._config["memory"]["size"] = ram
        if (balloon := body.get("desired_balloon")) is not None and "balloon" in self._config:
            self._config["balloon"]["size"] = balloon
            if self._engine is not None:
                self._engine.set_balloon(balloon)

    def add_net(self, body: configs.Config, fds: list[int]) -> None:
        """Takes descriptors of its own; the caller's stay the caller's."""
        if self._config is None:
            raise RefusedError(NOT_CREATED)
        net = configs.net({key: value for key, value in body.items() if key != "fds"})
        if fds:
            net["fds"] = [os.dup(fd) for fd in fds]
        changed = {**self._config, "net": [*self._config.get("net", []), net]}
        try:
            configs.check(changed)
            if self._state:
                raise RefusedError("Error from device manager", "hot-plug of interfaces is not played")
        except RefusedError:
            for fd in net.get("fds", []):
                os.close(fd)
            raise
        self._config = changed

    def remove_device(self, name: str) -> None:
        if self._config is None:
            raise RefusedError(NOT_CREATED)
        for key in ("net", "disks", "fs"):
            kept = [one for one in self._config.get(key, []) if one.get("id") != name]
            if len(kept) < len(self._config.get(key, [])) and not self._state:
                self._config[key] = kept
                return
        raise RefusedError(f'No device with id "{name}" to remove')

    def end(self) -> None:
        """As `vmm.shutdown`, or for a signal."""
        self.delete()
        self._events.say("vmm", "shutdown")

    def signalled(self) -> None:
        self._log.say("INFO", "VM exit event")
        self.end()
        self.at_end()

    # -----------------------------------------------------------------------------------------------------------------
    # what the guest does

    def _power_off(self) -> None:
        if not self._state:
            return
        # Earlier releases do not tell a guest's end from any other.
        self._log.say("INFO", "VM guest exit event" if self._behaviour.release >= (52, 0) else "VM exit event")
        self._resets()
        if self._no_shutdown:
            self.shutdown()
            return
        self.end()
        self.at_end()

    def _guest_reset(self) -> None:
        if not self._state:
            return
        self._log.say("INFO", "VM reset event")
        if not self._panicked:
            self._resets()
        try:
            self.reboot()
        except RefusedError as exc:
            self._log.say("ERROR", f"Failed to reboot: {exc}")
            leave(1)

    def _panic(self) -> None:
        if self._state and self._config is not None and self._config["pvpanic"]:
            self._panicked = True
            self._events.say("guest", "panic", {"event": "panic"})
        elif self._state:
            self._panicked = True

    def _comes_alive(self) -> None:
        if self._state and not self._alive and self._config is not None:
            self._alive = [name for group in configs.names(self._config).values() for name in group]
            for name in self._alive:
                self._events.say("virtio-device", "activated", {"id": name})

    def _resets(self) -> None:
        for name in self._alive:
            self._events.say("virtio-device", "reset", {"id": name})

    def _crashed(self, why: str) -> None:
        if self._state:
            self._log.say("ERROR", f"vCPU thread panicked: {why}")
            self._log.say("INFO", "VM exit event")
            self.end()
            self.at_end()

    # -----------------------------------------------------------------------------------------------------------------
    # parts

    def _expect_running(self) -> None:
        if not self._state:
            raise RefusedError(NOT_RUNNING)

    def _new_engine(self) -> Engine:
        def later(what: Callable[[], None]) -> Callable[[], None]:
            return lambda: self.loop.call(what)

        ears = Ears(
            output=lambda data: self._serial.output(data) if self._serial else None,
            channel=lambda data: self._vsock.from_guest(data) if self._vsock else None,
            channel_closed=lambda: self._vsock.guest_closed() if self._vsock else None,
            alive=later(self._comes_alive),
            power_off=later(self._power_off),
            reset=later(self._guest_reset),
            panic=later(self._panic),
            crashed=lambda why: self.loop.call(lambda: self._crashed(why)),
        )
        if self._behaviour.guest == "light":
            return Light(self._io, ears)
        return Qemu(self._io, ears, binary=self._behaviour.qemu, log=self._log)

    def _open_serial(self) -> None:
        assert self._config is not None
        serial = self._config["serial"]
        # Without `file` the program panics at a File; that is a caller's fault here, too.
        self._serial = Serial(self._io, serial, lambda data: self._engine.typed(data) if self._engine else None)
        if serial["mode"] == "Pty":
            serial["file"] = self._serial.path

    def _close_serial(self) -> None:
        if self._serial is not None:
            self._serial.close()
            self._serial = None

    def _start_threads(self) -> None:
        assert self._config is not None
        cpus = self._config["cpus"]
        affinity = {one["vcpu"]: set(one["host_cpus"]) for one in cpus.get("affinity", [])}
        self._threads = threads.Idle()
        names = configs.names(self._config)
        disks = zip(names.get("disks", []), self._config.get("disks", []), strict=True)
        nets = zip(names.get("net", []), self._config.get("net", []), strict=True)
        self._threads.start(f"{name}_q{queue}" for name, disk in disks for queue in range(disk["num_queues"]))
        self._threads.start(f"{name}_qp{pair}" for name, net in nets for pair in range(net["num_queues"] // 2))
        self._threads.start(name for kind in ("rng", "vsock", "balloon") for name in names.get(kind, []))
        unpinned = self._threads.start_vcpus(cpus["boot_vcpus"], affinity)
        if unpinned is not None:
            self._log.say("ERROR", f"Failed scheduling the vCPU {unpinned} on the expected CPU set")
            threads.for_ever()

    def _gather(self) -> Hardware:
        """Open all that the machine uses. Raises RefusedError, with nothing left open."""
        assert self._config is not None
        config = self._config
        hardware = Hardware(config=config)
        try:
            payload = config["payload"]
            rules = images.Rules(config.get("landlock_rules", [])) if config["landlock_enable"] else None
            for disk in config.get("disks", []):
                hardware.disks.append(images.open_disk(disk, allowed=rules))
            hardware.nics = [net.get("fds", []) for net in config.get("net", [])]
            taps.check(hardware.nics)
            for share in config.get("fs", []):
                hardware.sockets[share["tag"]] = _connected(share["socket"])
            if "tpm" in config:
                hardware.sockets["tpm"] = _connected(config["tpm"]["socket"])
            if "firmware" in payload:
                hardware.firmware = images.open_boot_file(payload["firmware"], "firmware")
            else:
                hardware.kernel = images.open_boot_file(payload["kernel"], "kernel")
                if "initramfs" in payload:
                    hardware.initrd = images.open_boot_file(payload["initramfs"], "initramfs")
        except BaseException:
            self._release(hardware)
            raise
        wanted = {cpu for one in config["cpus"].get("affinity", []) for cpu in one["host_cpus"]}
        hardware.cpus = wanted if len(config["cpus"].get("affinity", [])) == config["cpus"]["boot_vcpus"] else set()
        return hardware

    def _release(self, hardware: Hardware) -> None:
        self._threads.stop()
        if self._vsock is not None:
            vsock, self._vsock = self._vsock, None
            self._io.ask(lambda: vsock.close(unlink=True))
        for fd in (hardware.kernel, hardware.initrd, hardware.firmware, *hardware.sockets.values()):
            if fd is not None:
                os.close(fd)
        for image in hardware.disks:
            image.close()

    def _unplug(self) -> None:
        assert self._engine is not None
        assert self._hardware is not None
        self._engine.stop()
        self._state = ""
        self._alive = []
        self._close_serial()
        self._engine = None
        self._release(self._hardware)
        self._hardware = None

    def _exit_now(self, how: str) -> None:
        leave(int(how or 0))

    def _die_now(self, how: str) -> None:
        die(how or "SEGV")


def _connected(path: str) -> int:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(path)
    except OSError as exc:
        sock.close()
        words = f"{exc.strerror} (os error {exc.errno})"
        raise RefusedError("Error from device manager", "Cannot create vhost-user device", words) from exc
    return sock.detach()


def _properties(schema: Any) -> Mapping[str, Any] | None:
    found = FACTS["schemas"].get(schema, {}) if isinstance(schema, str) else {}
    properties: Mapping[str, Any] | None = found.get("properties")
    return properties
