"""UEFI on a real agent: the guest's firmware variables outlive a restart of the alloc."""

import pytest

from tests.nomad.agent import Agent
from tests.nomad.test_jobs import job_file

BOOT_S = 150.0


@pytest.mark.needs("uefi")
def test_a_machine_boots_by_uefi_and_keeps_its_variables_over_alloc_restart(dev_agent: Agent) -> None:
    job = dev_agent.run_job(job_file("uefi"))
    alloc = dev_agent.wait_alloc(job, "running")
    dev_agent.wait_for("the variable", lambda: "wrote variable" in dev_agent.logs(alloc), timeout_s=BOOT_S)
    lines = dev_agent.logs(alloc).splitlines()
    assert "firmware uefi" in lines
    assert "read variable" in lines  # there is none yet
    dev_agent.command("alloc", "restart", alloc)
    dev_agent.wait_for("it to be kept", lambda: "read variable kept" in dev_agent.logs(alloc), timeout_s=BOOT_S)
    dev_agent.command("job", "stop", "-detach", job)
    dev_agent.wait_alloc(job, "complete")
    events = dev_agent.task_events(alloc, "uefi")
    assert not any("forced off" in message for _, message in events)
