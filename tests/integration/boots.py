"""Another boot of this host, as far as programs can tell: a mount namespace in which its boot id is another one."""

import uuid
from pathlib import Path

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_ENTER = 'mount --bind "$1" ' + _BOOT_ID + ' && shift && exec "$@"'


def in_another_boot(directory: Path, *argv: str) -> list[str]:
    """The command line that runs `argv` there; a file for the boot id is made in `directory`."""
    boot_id = directory / f"boot-id-{uuid.uuid4().hex[:8]}"
    boot_id.write_text(f"{uuid.uuid4()}\n")
    return ["unshare", "--mount", "sh", "-c", _ENTER, "boot", str(boot_id), *argv]
