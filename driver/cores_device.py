"""The DevicePlugin service of `chv-cores`: shows Nomad the dedicated cores that the driver published, as devices.

It decides nothing. An instance is a token: the driver counts them and chooses the cores itself.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio

from driver._pb import base_pb2, device_pb2_grpc
from driver._pb import device_pb2 as pb
from driver.cores_shown import CpuTime, Shown, cpu_times, groups, parse, reservation, stats_groups
from driver.device_schema import DeviceConfig, decode_device_config
from driver.errors import rpc
from vmlib import process
from vmlib.paths import Layout

log = logging.getLogger(__name__)

_POLL_S = 1.0
_SHORTEST_STATS_S = 0.1
_STAT = Path("/proc/stat")

Context = grpc.aio.ServicerContext[object, object]
_Version = tuple[int, int, int] | None  # which version of a file that is replaced, never changed; None = there is none


class CoresDevice(device_pb2_grpc.DevicePluginServicer):
    """Has nothing of its own: all is read anew when it changes. Streams stay until they are cancelled."""

    def __init__(self) -> None:
        self._layout = _layout(decode_device_config(b"\x80"))
        self._said = ""  # the last complaint about the file

    async def configure(self, msgpack_config: bytes, nomad: base_pb2.NomadConfig | None) -> None:
        """SetConfig. The same bytes get the same verdict on every launch."""
        self._layout = _layout(decode_device_config(msgpack_config or b"\x80"))

    @rpc
    async def Fingerprint(
        self, request: pb.FingerprintRequest, context: Context
    ) -> AsyncIterator[pb.FingerprintResponse]:
        # Beside the loop, because a disk may hang.
        version, last = await asyncio.to_thread(self._look)
        yield pb.FingerprintResponse(device_group=groups(last))
        while True:
            await asyncio.sleep(_POLL_S)
            if await asyncio.to_thread(_version, self._layout.cores) == version:
                continue
            version, now = await asyncio.to_thread(self._look)
            if now != last:
                last = now
                log.info("dedicated cores changed cores=%d", len(now.units))
                yield pb.FingerprintResponse(device_group=groups(now))

    @rpc
    async def Reserve(self, request: pb.ReserveRequest, context: Context) -> pb.ReserveResponse:
        _, shown = await asyncio.to_thread(self._look)
        return pb.ReserveResponse(container_res=reservation(shown, request.device_ids))

    @rpc
    async def Stats(self, request: pb.StatsRequest, context: Context) -> AsyncIterator[pb.StatsResponse]:
        interval = request.collection_interval
        interval_s = max(_SHORTEST_STATS_S, interval.seconds + interval.nanos / 1e9)
        before: dict[int, CpuTime] = {}
        while True:
            try:
                answer, before = await asyncio.to_thread(self._stats, before)
            except Exception:  # this stream must not end for one bad look
                log.exception("look at the cores failed")
            else:
                yield answer
            await asyncio.sleep(interval_s)

    # -- called beside the loop ----------------------------------------------------------------------------------

    def _look(self) -> tuple[_Version, Shown]:
        """What is published, and which version of the file that is, or an older one. Says once why there is none."""
        path = self._layout.cores
        version = _version(path)  # taken first: a file that is replaced meanwhile is read again
        complaint, shown = "", Shown()
        try:
            shown = parse(path.read_text(), boot_id=process.boot_id())
        except FileNotFoundError:
            pass
        except OSError as exc:
            complaint = (exc.strerror or str(exc)).lower()
            version = None  # it may be readable the next time, as it is
        except ValueError as exc:
            complaint = f"expected what the driver writes there ({exc})"
        if complaint != self._said:
            self._said = complaint
            if complaint:
                log.warning("no dedicated cores path=%s: %s", path, complaint)
        return version, shown

    def _stats(self, before: dict[int, CpuTime]) -> tuple[pb.StatsResponse, dict[int, CpuTime]]:
        _, shown = self._look()
        now = cpu_times(_STAT.read_text())
        answer = stats_groups(shown, _holders(self._layout.ledger), before, now, at=time.time())
        return pb.StatsResponse(groups=answer), now


def _layout(config: DeviceConfig) -> Layout:
    # The run directory is the driver's alone.
    return Layout(config.data_dir, config.data_dir)


def _version(path: Path) -> _Version:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _holders(ledger: Path) -> dict[int, str]:
    """Who holds which CPU, in words."""
    # The plugin's cold start is short, and statistics come later.
    from vmlib.cores.ledger import read_entries

    boot_id = process.boot_id()
    return {
        cpu: holder_words(entry.name, entry.owner)
        for entry in read_entries(ledger)
        if entry.boot_id == boot_id
        for cpu in entry.placement.cpus
    }


def holder_words(name: str, owner: str) -> str:
    """`web of alloc 1a2b3c4d` for a machine of Nomad's, whose name is ALLOC/TASK."""
    alloc, slash, task = name.partition("/")
    return f"{task} of alloc {alloc[:8]}" if owner == "nomad" and slash else f"{name} ({owner})"
