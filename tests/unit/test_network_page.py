"""docs/networks.md and nomad-jobs/agent.hcl: what they show is what the driver takes, and every such job is shown."""

import re
from pathlib import Path

import pytest

from driver.config_network import BridgeNetwork, MacvtapNetwork
from driver.config_plugin import PluginConfig, decode_plugin_config
from driver.config_task import TaskConfig, decode_task_config
from driver.devhost import agentfile, hclspec
from driver.devhost.hcltree import config_json, parse
from driver.keys import plugin_spec, task_spec

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs/networks.md"
EXAMPLES = re.findall(r"^```hcl\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def examples(of: str) -> list[str]:
    return [text for text in EXAMPLES if text.startswith(of)]


def as_plugin_config(path: Path, text: str) -> PluginConfig:
    path.write_text(text)
    return decode_plugin_config(agentfile.plugin_config_msgpack(path, plugin_spec()))


def as_task_config(text: str) -> TaskConfig:
    body = config_json(parse('kernel = "local/vmlinuz"\n' + text, PAGE))
    return decode_task_config(hclspec.encode(task_spec(), body))


@pytest.mark.parametrize("text", examples("network "))
def test_a_network_on_the_page_is_one_for_the_plugin_block(tmp_path: Path, text: str) -> None:
    config = as_plugin_config(tmp_path / "agent.hcl", f'plugin "chv" {{\n config {{\n{text} }}\n}}\n')
    assert len(config.networks) == 1


@pytest.mark.parametrize("text", examples("network_interface "))
def test_an_interface_on_the_page_is_one_for_the_task_block(text: str) -> None:
    assert len(as_task_config(text).network_interfaces) == text.count("network_interface {")


def test_every_example_on_the_page_is_of_a_kind_that_is_checked() -> None:
    others = [text for text in EXAMPLES if not text.startswith(("network ", "network_interface ", "service "))]
    assert not others
    assert len(EXAMPLES) >= 6


def test_the_page_leads_to_jobs_that_are_there() -> None:
    linked = set(re.findall(r"\.\./nomad-jobs/([a-z-]+)\.nomad\.hcl", PAGE.read_text()))
    assert linked == {"macvtap", "bridge", "two-interfaces", "group-network", "user-sidecar", "service-address"}
    for name in linked:
        assert (CHECKOUT / f"nomad-jobs/{name}.nomad.hcl").exists()


def test_the_networks_that_the_agent_file_suggests_are_ones_when_their_hash_is_taken_away(tmp_path: Path) -> None:
    text = (CHECKOUT / "nomad-jobs/agent.hcl").read_text()
    shown, count = re.subn(r'^( *)# (network "|  \w+ += |\})', r"\1\2", text, flags=re.MULTILINE)
    assert count == 8
    networks = as_plugin_config(tmp_path / "agent.hcl", shown).networks
    assert networks["lan"] == MacvtapNetwork(name="lan", parent="eno1")
    assert networks["br"] == BridgeNetwork(name="br", bridge="br0")
