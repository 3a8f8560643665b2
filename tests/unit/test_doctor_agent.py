"""What doctor reads out of an agent's files and versions, and whose uids are whose."""

import os
import socket
import threading
from pathlib import Path

import pytest

from driver.cli import doctor_agent
from driver.cli.doctor_agent import AgentSettings, agent_settings, look_at_agent, version_of
from driver.cli.doctor_cores import reservation_checks
from driver.cli.doctor_nomad import link_check
from driver.cli.doctor_uids import Taken, free_range, range_check, subordinate
from tests.unit.test_core_health import SMT


def settings(directory: Path, **files: str) -> AgentSettings:
    for name, text in files.items():
        (directory / f"{name}.hcl").write_text(text)
    return agent_settings(directory, {})


def test_all_files_of_a_directory_count_and_of_a_value_the_last(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        a='data_dir = "/opt/nomad"\nclient {\n reserved {\n cores = "2-3"\n }\n}\ntelemetry {\n}\n',
        b='plugin "chv" {\n}\nclient {\n reserved {\n cpu = 5200\n }\n}\n',
        c='plugin "chv-cores" {\n config {\n data_dir = "/srv/chv"\n }\n}\nplugin_dir = "/opt/plugins"\n',
    )
    assert [path.name for path in found.files] == ["a.hcl", "b.hcl", "c.hcl"]
    assert (found.plugin_dir, found.cores_device_dir) == (Path("/opt/plugins"), Path("/srv/chv"))
    assert (found.reserved_cores, found.reserved_mhz, found.telemetry, found.has_client) == ("2-3", 5200, False, True)


def test_without_plugin_dir_it_is_beneath_data_dir(tmp_path: Path) -> None:
    assert settings(tmp_path, a='data_dir = "/opt/nomad"\nplugin "chv" {\n}\n').plugin_dir == Path("/opt/nomad/plugins")


@pytest.fixture
def no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_agent, "find_program", lambda _: None)


@pytest.mark.usefixtures("no_program")
@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://127.0.0.1:none", "not an address: nonnumeric port: 'none'"),
        ("127.0.0.1:4646", "unknown url type: 127.0.0.1"),
    ],
)
def test_an_address_that_is_none_is_a_reason_and_not_the_end(address: str, why: str) -> None:
    assert look_at_agent(AgentSettings(address=address), {}).why_silent == why


@pytest.mark.usefixtures("no_program")
def test_another_service_at_the_agents_address_is_a_reason_and_not_the_end() -> None:
    def speak() -> None:
        with server.accept()[0] as caller:
            caller.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            caller.recv(4096)

    with socket.create_server(("127.0.0.1", 0)) as server:
        other = threading.Thread(target=speak)
        other.start()
        found = look_at_agent(AgentSettings(address=f"http://127.0.0.1:{server.getsockname()[1]}"), {})
        other.join()
    assert found.why_silent == "what answers there is no Nomad agent"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", "http://127.0.0.1:4646"),
        ('bind_addr = "0.0.0.0"', "http://127.0.0.1:4646"),
        ('bind_addr = "10.0.0.5"\nports {\n http = 5656\n}', "http://10.0.0.5:5656"),
        ('bind_addr = "{{ GetPrivateIP }}"', "http://127.0.0.1:4646"),
        ('bind_addr = "::1"', "http://[::1]:4646"),
        ('addresses {\n http = "192.0.2.1 127.0.0.1"\n}\ntls {\n http = true\n}', "https://192.0.2.1:4646"),
    ],
)
def test_where_the_agent_answers_follows_from_its_files(tmp_path: Path, text: str, address: str) -> None:
    assert settings(tmp_path, a=f'{text}\nplugin "chv" {{\n}}\n').address == address
    assert agent_settings(tmp_path, {"NOMAD_ADDR": "http://elsewhere:1"}).address == "http://elsewhere:1"


def test_a_named_file_stands_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.hcl").write_text('plugin "chv" {\n}\n')
    (tmp_path / "b.hcl").write_text('data_dir = "/opt/nomad"\n')
    monkeypatch.delenv("CHV_CONFIG", raising=False)
    assert agent_settings(tmp_path / "a.hcl", {}).plugin_dir is None
    monkeypatch.setenv("CHV_CONFIG", os.fspath(tmp_path / "a.hcl"))
    assert agent_settings(None, {}).files == (tmp_path / "a.hcl",)


def test_versions_are_numbers() -> None:
    assert version_of("Nomad v1.10.2+ent") == (1, 10, 2) > version_of("1.9.7-dev")
    assert version_of("what?") == ()


# -- withheld cores --------------------------------------------------------------------------------------------------

MHZ = dict.fromkeys(range(8), 2600)


def reservation(found: AgentSettings, mhz: dict[int, int]) -> list[tuple[str, str]]:
    return [(line.verdict, line.cure) for line in reservation_checks(found, SMT, mhz)]


def test_the_mhz_that_are_missing_are_in_the_cure() -> None:
    both = 'set client { reserved { cores = "2,6"  cpu = 5200 } }'
    assert reservation(AgentSettings(), MHZ) == []
    assert reservation(AgentSettings(reserved_cores="2,6"), MHZ) == [("warning", both)]
    assert reservation(AgentSettings(reserved_cores="2,6", reserved_mhz=1000), MHZ) == [("warning", both)]
    assert reservation(AgentSettings(reserved_cores="2,6", reserved_mhz=5000), MHZ) == [("ok", "")]
    reservable = AgentSettings(reservable_cores="0-1,3-5,7")
    assert reservation(reservable, MHZ) == [("warning", "set client { reserved { cpu = 5200 } }")]


def test_a_total_of_the_operators_may_have_left_them_out_already() -> None:
    assert reservation(AgentSettings(reserved_cores="2,6", total_mhz=6 * 2600), MHZ) == [("ok", "")]
    more = AgentSettings(reserved_cores="2,6", total_mhz=8 * 2600)
    assert reservation(more, MHZ) == [("warning", 'set client { reserved { cores = "2,6"  cpu = 5200 } }')]


def test_where_nobody_knows_the_speed_no_number_is_invented() -> None:
    unknown = AgentSettings(reserved_cores="2,6")
    cure = 'set client { reserved { cores = "2,6"  cpu = the MHz of these cores } }'
    assert reservation(unknown, {}) == [("warning", cure)]
    assert reservation(AgentSettings(reserved_cores="2,6", reserved_mhz=100), {}) == [("ok", "")]


# -- uids ------------------------------------------------------------------------------------------------------------


def test_a_range_is_proposed_that_is_nobodys() -> None:
    taken = [
        Taken(range(200000, 265536), "alice", real=False),
        Taken(range(265540, 265541), "user bob", real=True),
        Taken(range(4294000000, 4294967295), "carol", real=False),
    ]
    assert free_range(range(200000, 200100), []) == range(200000, 200100)
    assert free_range(range(200000, 200100), taken) == range(265541, 265641)
    assert range_check(range(300000, 300010), taken).verdict == "ok"
    assert range_check(range(200000, 200010), taken).verdict == "warning"
    assert range_check(range(200000, 300000), taken).verdict == "problem"


def test_ranges_for_containers_are_read_and_what_is_none_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "subuid").write_text("alice:100000:65536\n# x\n\nbob::\ncarol:5:0\n")
    assert list(subordinate(tmp_path)) == [Taken(range(100000, 165536), f"alice in {tmp_path}/subuid", real=False)]


@pytest.mark.parametrize("linked", [False, True])
def test_a_directory_in_the_plugins_place_has_a_cure_that_cures(tmp_path: Path, *, linked: bool) -> None:
    plugins, other = tmp_path / "plugins", tmp_path / "other"
    plugins.mkdir()
    other.mkdir()
    if linked:
        (plugins / "chv").symlink_to(other)
    else:
        (plugins / "chv").mkdir()
    found = link_check("nomad plugin", plugins, "chv")
    assert found.text == f"{plugins}/chv is a directory"
    assert found.cure == f"mv {plugins}/chv {plugins}/chv.old && ln -sf $(command -v chv) {plugins}/chv"
