"""Bytes that a machine's keeper passes on, of the guest's channel or its console: on the loop, without a thread."""

import asyncio
import json
from pathlib import Path
from typing import Any

from vmlib.errors import HypervisorError

_ANSWER_S = 5.0

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def open_stream(control: Path, op: str, **wish: Any) -> tuple[Stream, dict[str, Any]]:
    """Ask for bytes; the stream has nothing else after the answer, which is returned too. The caller closes it.

    Raises HypervisorError when the keeper refuses, or does not answer in time.
    """
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(str(control))
            try:
                writer.write(json.dumps({"op": op, **wish}).encode() + b"\n")
                answer = json.loads(await reader.readline() or b"{}")
            except BaseException:
                writer.close()
                raise
    except (OSError, ValueError) as exc:
        raise HypervisorError(f"the keeper does not answer {op!r}: {exc}") from exc
    if not isinstance(answer, dict) or not answer.get("ok"):
        writer.close()
        reason = answer.get("reason") if isinstance(answer, dict) else None
        raise HypervisorError(f"the keeper refused {op!r}: {reason or 'it is gone'}")
    return (reader, writer), answer
