"""Newline-framed messages without I/O: bytes in, whole lines out, never more than a bound in memory.

Standard library only: the keeper reads QMP, the guest channel and its own clients with it.
"""


class LineTooLongError(ValueError):
    """The peer sent more than the bound without a line break."""


class LineBuffer:
    """Collects bytes and gives back complete lines (without the line break, CR LF counts as one).

    With `skip_long` a line that is too long is left out as if it had never been sent; else it is an error.
    """

    def __init__(self, max_line: int, *, skip_long: bool = False) -> None:
        self._max_line = max_line
        self._skip_long = skip_long
        self._skipping = False  # the line that is not complete yet was too long already
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take what was read; return the lines that are complete now. Raises LineTooLongError."""
        self._rest += data
        *lines, rest = self._rest.split(b"\n")
        if self._skip_long:
            if self._skipping and lines:
                del lines[0]
                self._skipping = False
            lines = [line for line in lines if len(line) <= self._max_line]
            if self._skipping or len(rest) > self._max_line:
                self._skipping = True
                rest = bytearray()
        elif len(rest) > self._max_line or any(len(line) > self._max_line for line in lines):
            self._rest = bytearray()
            raise LineTooLongError(f"a line of more than {self._max_line} bytes")
        self._rest = bytearray(rest)
        return [bytes(line).removesuffix(b"\r") for line in lines]
