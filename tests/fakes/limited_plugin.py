"""`chv` as it is, but for its patience with Cloud Hypervisor and guest agents: seconds that would be minutes, or the
other way round.

`CHV_TEST_LIMITS` in its environment is JSON with any of `call`, `start`, `add`, `boot`, `reboot` and `agent`, each in
seconds.
"""

import json
import os
import sys
from pathlib import Path

from driver import config_task
from tests import setup
from vmlib.hypervisor import ch_api

_IMPORT = "from driver.main import main\n"


def write(directory: Path) -> Path:
    """An executable for the agent's plugin_dir, named as the plugin is."""
    executable = directory / "chv"
    setup.write_executable(executable, python=Path(sys.executable))
    text = executable.read_text()
    assert _IMPORT in text
    executable.write_text(text.replace(_IMPORT, f"from {__name__} import main\n"))
    return executable


def main() -> int:
    limits: dict[str, float] = json.loads(os.environ.get("CHV_TEST_LIMITS", "{}"))
    if "call" in limits:
        ch_api.CALL_TIMEOUT_S = limits["call"]

    from vmlib import machine  # not before: they take the limit of a call from there
    from vmlib.hypervisor import cloud_hypervisor

    for name, of in (("start", "_START_TIMEOUT_S"), ("add", "_ADD_TIMEOUT_S"), ("boot", "_BOOT_TIMEOUT_S")):
        if name in limits:
            setattr(cloud_hypervisor, of, limits[name])
    if "reboot" in limits:
        # The name by which the module calls it: it depends on the machine, so there is no constant to set.
        machine.reboot_timeout_s = lambda *_, **__: limits["reboot"]  # type: ignore[attr-defined]
    if "agent" in limits:
        config_task.AGENT_WAIT_S = limits["agent"]

    from driver.main import main as serve

    return serve()
