"""A task's environment as a file for shells. Runs at both ends, as `wire.py` does: nothing that Python 3.6 lacks."""

import json
import re
from typing import Dict

_SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPECIAL_IN_QUOTES = re.compile(r'[\\"$`]')


def environment_file(environment: Dict[str, str]) -> bytes:
    """Assignments for `sh`, and for systemd's EnvironmentFile, which understands double quotes the same way.

    (Single quotes would do for `sh` alone: systemd does not know how to continue after `'\\''`.)
    """
    lines = []
    for name, value in sorted(environment.items()):
        if _SHELL_NAME.fullmatch(name):
            lines.append('{}="{}"\n'.format(name, _SPECIAL_IN_QUOTES.sub(lambda match: "\\" + match.group(), value)))
        else:
            # json.dumps keeps a line break in the name from ending the comment.
            lines.append("# not a name that sh can hold: {}\n".format(json.dumps(name)))
    return "".join(lines).encode()
