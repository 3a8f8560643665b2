"""A Debian cloud image on a real agent: what cloud-init makes of the seed, once for each instance and at each boot."""

import re
import time

import pytest

from tests.nomad.agent import Agent
from tests.nomad.test_jobs import job_file, task_of

BOOT_S = 300.0  # systemd and four runs of cloud-init's Python on an emulated CPU, which another test may share
FINISHED = r"Cloud-init v\. \S+ finished at .* Datasource DataSourceNoCloud \[seed=/dev/vd[a-z]\]"
ONCE = "first boot of this instance"  # said by the user-data, and thereby in no log but the guest's own


def shown(console: str) -> dict[str, str]:
    """What the job's script printed, by the first words of each line."""
    lines = re.findall(r"cloud-init\[\d+\]: (boot of \S+:|host name|key|address|share|root) +(.*)", console)
    return {name: text.strip() for name, text in lines}


@pytest.mark.needs("cloud-image")
@pytest.mark.timeout(800)
def test_cloud_init_sets_the_machine_up_once_and_a_restart_is_the_same_instance(dev_agent: Agent) -> None:
    job = dev_agent.run_job(job_file("cloud-image"))
    alloc = dev_agent.wait_alloc(job, "running", timeout_s=90)

    def console_of_boot(number: int) -> str:
        def look() -> str | None:
            time.sleep(2)  # it takes a minute, and the guest needs the CPU that each look takes
            text = dev_agent.logs(alloc).replace("\r", "")
            return text if len(re.findall(FINISHED, text)) == number else None

        return str(dev_agent.wait_for(f"boot {number} of the guest", look, timeout_s=BOOT_S))

    before = console_of_boot(1)
    first = shown(before)
    assert first["boot of cloud-image:"] == f"instance {alloc}-cloud-image"
    assert first["host name"] == "cloud-1"
    assert first["key"].startswith("ssh-ed25519 AAAA")
    assert first["key"].endswith(" you@example")
    assert first["address"].split()[:3] == ["net0", "UP", "10.0.2.15/24"]
    assert re.fullmatch(r"virtiofs rw,\S+ user-data", first["share"])
    assert int(first["root"]) > 2.5 * (1 << 30)  # the image's own root has half of it

    dev_agent.command("alloc", "restart", alloc, timeout_s=120)
    console = console_of_boot(2)
    assert shown(console[len(before) :]) == first
    assert console.count(ONCE) == 1
    # The guest agent is there again, and has the task's environment.
    told = dev_agent.command("alloc", "exec", "-i=false", "-t=false", alloc, "printenv", "NOMAD_JOB_NAME")
    assert told.stdout == "cloud-image\n"

    dev_agent.command("job", "stop", "-detach", job)
    dev_agent.wait_alloc(job, "complete", timeout_s=90)
    events = dev_agent.task_events(alloc, task_of("cloud-image"))
    assert not any("forced off" in message for _, message in events)
    lines = dev_agent.paths.log.read_text(errors="replace").splitlines()
    assert not [line for line in lines if ONCE in line and "driver_mgr" in line]  # Nomad itself logs its templates
    assert ONCE not in dev_agent.logs(alloc, stderr=True)
