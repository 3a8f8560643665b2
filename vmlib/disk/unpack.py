"""Compressed images, unpacked into sparse files: from a descriptor, within limits that a hostile one cannot leave.

What comes out is not looked at here: whoever wants it checks it as any other image.
"""

import lzma
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import zstandard

from vmlib.disk.copy import told
from vmlib.disk.image import HEAD_BYTES, header_says, in_words
from vmlib.errors import NoCapacityError, SpecError

Kind = Literal["xz", "zst", "gz"]
# Bytes of the compressed file that are done, and all of them.
Progress = Callable[[int, int], None]

CHUNK_BYTES = 64 * 1024  # the smallest hole
_PIECE_BYTES = 1 << 20  # what a decoder gives at once, where it can be told
_MAGIC_BYTES = 6  # the longest of them
_PROGRESS_S = 1.0
_XZ_OVERHEAD_BYTES = 4 << 20  # what the decoder needs beside its window

_ZEROS = bytes(CHUNK_BYTES)
_NAMES: dict[Kind, str] = {"xz": "xz-compressed", "zst": "zstd-compressed", "gz": "gzip-compressed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackLimits:
    """How much one image may take of the host."""

    max_bytes: int  # what comes out, holes counted
    max_s: float = 3600.0
    # Against bombs: data that has to be written, for each byte read. Holes cost nothing and are not counted, because an
    # honest disk that is nearly empty shrinks several thousandfold.
    max_ratio: int = 250
    ratio_from_bytes: int = 64 << 20  # not judged before so much is written
    max_window_bytes: int = 128 << 20  # memory of the decoder: xz -9 needs 64 MiB, zstd --ultra -22 all of this


def packed_name(name: str) -> tuple[str, Kind | None]:
    """What a name promises: `debian.qcow2.xz` is `debian.qcow2` and xz; None means that it is not packed."""
    stem, dot, suffix = name.rpartition(".")
    for kind in _NAMES:
        if dot and suffix.lower() == kind:
            return stem, kind
    return name, None


def kind_of(head: bytes) -> Kind | None:
    """What the first bytes of a file say that it is packed with; None when they say nothing of the sort."""
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    if head.startswith(b"\x1f\x8b"):
        return "gz"
    # The second is a frame to be skipped, with which some tools begin.
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F):
        return "zst"
    return None


def expect_kind(head: bytes, kind: Kind, *, what: str) -> None:
    """Raise SpecError unless the first bytes of a file are what its name promises. `what` is `image = 'x.xz'`."""
    if not head:
        raise SpecError(f"{what}: empty file, expected an image that is {_NAMES[kind]}")
    if kind_of(head) != kind:
        found = header_says(head) or "raw, or nothing we know"
        raise SpecError(f"{what}: its name says {_NAMES[kind]}, but its header says {found}")


def unpack(
    source_fd: int,
    target_fd: int,
    *,
    kind: Kind,
    limits: UnpackLimits,
    what: str,
    progress: Progress | None = None,
    read: Callable[[bytes], object] = len,
    target: str = "",
) -> int:
    """Fill the empty file `target_fd` with what the file `source_fd` holds, and return its size in bytes.

    Both stay the caller's, and their positions do not matter. Several streams in a row are one image, as for the tools
    that make them. `progress` is called at most once a second, and at the end; what it raises ends the work.
    `read` gets every byte of the source in order, as a checksum would want it. `target` says where there is no room.
    Raises SpecError (`what` begins the complaint), NoCapacityError when the host's disk is full or the time is up,
    HostError. The target holds something partial then, for the caller to throw away.
    """
    with told(f"{what}, {target}" if target else what):
        source = _Source(source_fd, kind=kind, what=what, limits=limits, progress=progress, seen=read)
        expect_kind(os.pread(source_fd, HEAD_BYTES, 0), kind, what=what)
        sparse = _Sparse(target_fd)
        for piece in _pieces(source, kind, limits):
            source.check_time()
            if sparse.size_bytes + len(piece) > limits.max_bytes:
                raise SpecError(f"{what}: unpacks to more than {in_words(limits.max_bytes)}, expected at most that")
            sparse.add(piece)
            if sparse.data_bytes > max(limits.ratio_from_bytes, limits.max_ratio * source.read_bytes):
                raise SpecError(
                    f"{what}: its first {source.read_bytes} bytes unpack to {sparse.data_bytes},"
                    f" expected at most {limits.max_ratio} times as many"
                )
        sparse.end()
        source.report_end()
        return sparse.size_bytes


# ---------------------------------------------------------------------------------------------------------------------
# reading


class _Source:
    """The compressed file, slice by slice; sees to time and progress, because every kind of input passes here."""

    def __init__(
        self,
        fd: int,
        *,
        kind: Kind,
        what: str,
        limits: UnpackLimits,
        progress: Progress | None,
        seen: Callable[[bytes], object],
    ) -> None:
        self.kind: Final = kind
        self.what: Final = what
        self.read_bytes = 0
        self._fd = fd
        self._seen = seen
        # Not more than there was at first: the job may go on writing while we read.
        self._total_bytes = os.fstat(fd).st_size
        self._limits = limits
        self._progress = progress
        self._began = self._reported = time.monotonic()

    def read(self, count: int) -> bytes:
        """The next bytes, no more than `count`; nothing at the end."""
        self.check_time()
        data = os.pread(self._fd, min(count, self._total_bytes - self.read_bytes), self.read_bytes)
        self.read_bytes += len(data)
        self._seen(data)
        return data

    def check_time(self) -> None:
        now = time.monotonic()
        if now - self._began > self._limits.max_s:
            raise NoCapacityError(
                f"{self.what}: not unpacked within {self._limits.max_s:g} s, after {self.read_bytes} of"
                f" {self._total_bytes} bytes"
            )
        if self._progress is not None and now - self._reported >= _PROGRESS_S:
            self._reported = now
            self._progress(self.read_bytes, self._total_bytes)

    def report_end(self) -> None:
        if self._progress is not None:
            self._progress(self._total_bytes, self._total_bytes)

    def broken(self, exc: Exception) -> SpecError:
        # "Error -3 while decompressing data: incorrect data check": the end says it all.
        reason = str(exc).rpartition(": ")[2].lower()
        return SpecError(f"{self.what}: broken {self.kind} data near byte {self.read_bytes}: {reason}")

    def wants_memory(self) -> SpecError:
        most = in_words(self._limits.max_window_bytes)
        return SpecError(f"{self.what}: packed with a larger {self.kind} window than we have, expected at most {most}")


def _pieces(source: _Source, kind: Kind, limits: UnpackLimits) -> Iterator[bytes]:
    """What all streams of the file hold, one after the other. Raises SpecError unless it is whole and nothing else."""
    start, slice_bytes = _STREAMS[kind](source, limits)
    data = source.read(slice_bytes)
    while data:
        stream = start()
        while not stream.ended:
            data = data or source.read(slice_bytes)
            if not data:
                raise SpecError(f"{source.what}: {kind} data cut short after {source.read_bytes} bytes")
            yield from stream.pieces(data)
            data = stream.rest()
        data = _next_stream(source, kind, data, slice_bytes)


def _next_stream(source: _Source, kind: Kind, data: bytes, slice_bytes: int) -> bytes:
    """The begin of the stream that follows; nothing at the end of the file."""
    padding = 0
    # gzip and xz fill up their last block on a tape with zeros; zstd knows no such thing.
    while kind != "zst" and (data or (data := source.read(slice_bytes))):
        left = data.lstrip(b"\0")
        padding += len(data) - len(left)
        data = left
        if data:
            break
    while len(data) < _MAGIC_BYTES and (more := source.read(slice_bytes)):
        data += more
    if (data and kind_of(data) != kind) or (kind == "xz" and padding % 4):
        at = source.read_bytes - len(data)
        raise SpecError(f"{source.what}: something else after its {kind} data at byte {at}, expected the end")
    return data


# ---------------------------------------------------------------------------------------------------------------------
# decoders


class _Stream(Protocol):
    """One compressed stream on its way out."""

    ended: bool

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What comes out when `data` goes in. Raises SpecError."""

    def rest(self) -> bytes:
        """What of the input did not belong to the stream."""


class _Gz:
    """A member of a gzip file."""

    def __init__(self, source: _Source) -> None:
        self.ended = False
        self._source = source
        self._decoder = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while True:
            try:
                piece = self._decoder.decompress(data, _PIECE_BYTES)
            except zlib.error as exc:
                raise self._source.broken(exc) from exc
            self.ended = self._decoder.eof
            data = self._decoder.unconsumed_tail
            if piece:
                yield piece
            # A full piece: there may be more in the decoder, although it has taken all input.
            if self.ended or (not data and len(piece) < _PIECE_BYTES):
                return

    def rest(self) -> bytes:
        return self._decoder.unused_data


class _Xz:
    """A stream of an xz file."""

    def __init__(self, source: _Source, memory_bytes: int) -> None:
        self.ended = False
        self._source = source
        self._decoder = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=memory_bytes)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while True:
            try:
                piece = self._decoder.decompress(data, _PIECE_BYTES)
            except lzma.LZMAError as exc:
                if "memory usage limit" in str(exc).lower():
                    raise self._source.wants_memory() from exc
                raise self._source.broken(exc) from exc
            self.ended = self._decoder.eof
            data = b""  # the decoder keeps what it has not used
            if piece:
                yield piece
            if self.ended or self._decoder.needs_input:
                return

    def rest(self) -> bytes:
        return self._decoder.unused_data


class _Zst:
    """A frame of a zstd file."""

    def __init__(self, source: _Source, decompressor: zstandard.ZstdDecompressor) -> None:
        self.ended = False
        self._source = source
        self._decoder = decompressor.decompressobj()

    def pieces(self, data: bytes) -> Iterator[bytes]:
        try:
            piece = self._decoder.decompress(data)
        except zstandard.ZstdError as exc:
            if "too much memory" in str(exc):
                raise self._source.wants_memory() from exc
            raise self._source.broken(exc) from exc
        self.ended = self._decoder.eof
        if piece:
            yield piece

    def rest(self) -> bytes:
        return self._decoder.unused_data


_Start = Callable[[], _Stream]


def _gz(source: _Source, _: UnpackLimits) -> tuple[_Start, int]:
    return lambda: _Gz(source), CHUNK_BYTES


def _xz(source: _Source, limits: UnpackLimits) -> tuple[_Start, int]:
    return lambda: _Xz(source, limits.max_window_bytes + _XZ_OVERHEAD_BYTES), CHUNK_BYTES


def _zst(source: _Source, limits: UnpackLimits) -> tuple[_Start, int]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=limits.max_window_bytes)
    # It cannot be told how much to give at once. Four bytes make at most a block of 128 KiB, so these make 32 MiB.
    return lambda: _Zst(source, decompressor), 1024


# How to begin a stream, and how much input to give it at once.
_STREAMS: dict[Kind, Callable[[_Source, UnpackLimits], tuple[_Start, int]]] = {"gz": _gz, "xz": _xz, "zst": _zst}


# ---------------------------------------------------------------------------------------------------------------------
# writing


class _Sparse:
    """The file that is made: whole chunks of zeros become holes."""

    def __init__(self, fd: int) -> None:
        self.size_bytes = 0  # so far, with what is not written yet
        self.data_bytes = 0  # written
        self._fd = fd
        self._pending = bytearray()

    def add(self, piece: bytes) -> None:
        self._pending += piece
        self.size_bytes += len(piece)
        if len(self._pending) >= _PIECE_BYTES:
            self._write(len(self._pending) // CHUNK_BYTES * CHUNK_BYTES)

    def end(self) -> None:
        self._write(len(self._pending))
        # A hole at the end is nothing but this length.
        os.ftruncate(self._fd, self.size_bytes)

    def _write(self, count: int) -> None:
        """Take the first `count` bytes of what is pending; `count` is whole chunks, or all there is."""
        at = self.size_bytes - len(self._pending)
        start = 0  # of a run of chunks with data
        for chunk in range(0, count, CHUNK_BYTES):
            end = min(chunk + CHUNK_BYTES, count)
            if self._pending.startswith(_ZEROS[: end - chunk], chunk):
                self._write_out(at + start, start, chunk)
                start = end
        self._write_out(at + start, start, count)
        del self._pending[:count]

    def _write_out(self, at: int, start: int, end: int) -> None:
        with memoryview(self._pending) as pending:
            while start < end:
                with pending[start:end] as data:
                    written = os.pwrite(self._fd, data, at)
                self.data_bytes += written
                start, at = start + written, at + written
