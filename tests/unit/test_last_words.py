"""What a panic is told with: the console's last words."""

import pytest

from vmlib.keeper.keeper import last_words


@pytest.mark.parametrize(
    ("console", "words"),
    [
        (b"", ""),
        (b"\r\n \r\n", ""),
        (
            b"[    1.2] Kernel panic - not syncing: VFS: no root\r\n[    1.2] CPU: 0 PID: 1\r\nCall Trace:\r\n",
            "Kernel panic - not syncing: VFS: no root",
        ),
        (b"Kernel panic - first\nup again\nKernel panic - second\n", "Kernel panic - second"),
        (b"boot\r\none\r\n\r\ntwo\r\nthree", "one / two / three"),
        (b"\x1b[31mred\x1b[0m\x07\xff", "[31mred[0m\ufffd"),  # nothing that a terminal obeys
    ],
)
def test_the_reason_else_the_last_lines(console: bytes, words: str) -> None:
    assert last_words(console) == words


def test_they_are_short_enough_for_an_event() -> None:
    assert len(last_words(b"x" * 4096)) == 300
