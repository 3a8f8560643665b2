"""`chv doctor` on the node of a real agent, with the file that it was started with."""

import json
import subprocess

from tests.nomad.agent import Agent


def test_a_node_whose_agent_runs_has_no_problem_and_the_agent_speaks_for_itself(dev_agent: Agent) -> None:
    done = subprocess.run(
        [str(dev_agent.plugin_dir / "chv"), "doctor", "--json", "--config", str(dev_agent.paths.config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    found = {line["check"]: line for line in json.loads(done.stdout)}
    assert found["nomad"]["text"].endswith(f", the agent answers at {dev_agent.address}")
    for check in ("nomad", "nomad telemetry", "nomad plugin", "vm_uids", "data_dir", "run_dir", "nomad reservation"):
        assert found[check]["verdict"] == "ok", found[check]
