"""A Nomad agent of the benchmarks' own, and its jobs."""

import contextlib
from collections.abc import Iterator

from tests import needs
from tests.bench.measure import LeftOutError, Settings, say
from tests.nomad.agent import Agent, AgentPaths, running

_ENDED = ("complete", "failed", "lost")


@contextlib.contextmanager
def agent_with(settings: Settings, name: str, *drivers: str) -> Iterator[Agent]:
    """An agent that has these drivers of Nomad's beside ours. Raises LeftOutError where there is no Nomad."""
    nomad = needs.find_nomad()
    if nomad is None or needs.lacking("nomad"):
        raise LeftOutError(needs.lacking("nomad"))
    say("starting an agent")
    agent = Agent(
        binary=str(nomad),
        paths=AgentPaths(base=settings.directory(name)),
        plugin_dir=settings.chv.parent,
        guest_dir=settings.guest_dir,
        more_drivers=drivers,
    )
    with running(agent):
        try:
            yield agent
        finally:
            for job in agent.get("/v1/jobs"):
                stop_job(agent, job["ID"])
                agent.command("job", "stop", "-purge", "-detach", job["ID"])
            # The agent mounts something in each, and takes it away only as long as it runs.
            allocs = agent.paths.nomad_data / "alloc"
            agent.wait_for("the directories of the allocs to go", lambda: not [*allocs.glob("*/*/secrets")])


def stop_job(agent: Agent, job: str) -> None:
    """Stop it and wait until all of it has ended. Not with -purge: that hides allocs which have not."""
    agent.command("job", "stop", "-detach", job)
    agent.wait_for(f"job {job} to end", lambda: all(one["ClientStatus"] in _ENDED for one in agent.allocs(job)))


def job_text(name: str, driver: str, config: str) -> str:
    """A job of one task that is named like the job.

    Nomad's qemu driver gives its guest all the memory that the task has, which leaves none of it to QEMU itself: with
    little more than the guest touches it is killed.
    """
    return f"""
job "{name}" {{
  type = "batch"
  group "{name}" {{
    restart {{
      attempts = 0
    }}
    task "{name}" {{
      driver = "{driver}"
      config {{
        {config}
      }}
      resources {{
        cpu    = 100
        memory = 512
      }}
    }}
  }}
}}
"""
