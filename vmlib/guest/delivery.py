"""The agent as what a guest gets: one file of Python, and the boothook that brings it there."""

import functools
import re
from pathlib import Path

# In the order in which they may use one another.
_PARTS = ("wire", "environment", "facts", "runs", "service", "agent")
_OURS = re.compile(r"^from vmlib\.guest\.\w+ import (?:\([^)]*\)|[^\n(]*)\n", re.MULTILINE)

# A boothook runs early on each boot, before users' own scripts. What it writes lies in /run: nothing of it is in an
# image that somebody makes of the guest. It never fails: to cloud-init that would be a guest that is not well.
_BOOTHOOK = """#!/bin/sh
# chv: brings the guest agent, which `nomad alloc exec` and others need. agent = false in the job leaves it out.
for python in python3 /usr/libexec/platform-python ''; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 6))' 2>/dev/null; then break; fi
done
if [ -z "$python" ]; then
    echo "chv: this guest has no Python of 3.6 or newer, so it gets no agent" >&2
    exit 0
fi
umask 077
if mkdir -p /run/chv && cat >/run/chv/agent.py <<'end of the guest agent'
{source}end of the guest agent
then
    umask 022 # for directories that this guest lacks
    "$python" -IS /run/chv/agent.py install || echo "chv: the guest agent does not run" >&2
fi
exit 0
"""


@functools.cache
def agent_source() -> str:
    """All of the agent as one file, for any Python from 3.6 on."""
    folder = Path(__file__).parent
    return "\n\n".join(_OURS.sub("", (folder / f"{part}.py").read_text()) for part in _PARTS)


@functools.cache
def boothook() -> bytes:
    """The script for vendor-data, kind `cloud-boothook`."""
    return _BOOTHOOK.format(source=agent_source()).encode()
