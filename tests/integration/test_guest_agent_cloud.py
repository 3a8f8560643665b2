"""The guest agent in a Debian guest of stock packages: cloud-init brings it, systemd keeps it, the keeper relays it."""

import pytest

from tests import setup as machine_setup
from tests.guest import cloud
from tests.integration.guest_agent import Host as AgentHost
from tests.integration.machines import Host, Running
from vmlib.spec import FileRef, NicSpec, RootDisk, SeedSpec, UserLink

pytestmark = [pytest.mark.needs("cloud-image"), pytest.mark.timeout(900)]

STATIC = NicSpec(
    network="lan",
    link=UserLink(),
    mac="52:54:00:12:34:57",
    addresses=("192.0.2.20/24", "2001:db8::20/64"),
    gateways=("192.0.2.1", "2001:db8::1"),
    dns=("192.0.2.53",),
    search=("example.net",),
)
BOOT_S = 300.0  # systemd and four runs of cloud-init's Python on an emulated CPU, which another test may share
USER_DATA = b"""#cloud-config
# as the job has it \xc3\xbc
runcmd:
  - echo "runcmd finds $(systemctl is-active chv-agent)" >>/var/lib/runcmd
bootcmd:
  - ls /run/chv >/run/bootcmd 2>&1
"""


def start(host: Host) -> Running:
    image = cloud.image_in(machine_setup.cache_dir())
    seed = SeedSpec(
        instance_id="i-1", hostname="web", user_data=USER_DATA, environment={"GREETING": "hello"}, agent=True
    )
    root = RootDisk(image=FileRef(root=image.parent, relative=image.name), format="qcow2")
    # Without an interface that gets an address the image's own services wait two minutes for one.
    nat = NicSpec(network="nat", link=UserLink(), mac="52:54:00:12:34:56")
    return host.run(host.spec(boot=None, root=root, memory_mib=512, nics=(nat, STATIC), seed=seed, agent=True))


def says(agent: AgentHost, script: str, timeout_s: float = 60.0) -> str:
    """What a script prints in the guest, which has to end well."""
    stream = agent.shell(script)
    exited = stream.wait(timeout_s)
    assert (exited, stream.err) == ({"code": 0, "signal": 0}, b""), (script, stream.out)
    return stream.out.decode().strip()


def test_cloud_init_brings_it_at_each_boot_and_leaves_the_jobs_own_alone(qemu: Host) -> None:
    one = start(qemu)
    with one.machine.agent_socket() as sock:
        agent = AgentHost(sock)
        agent.whole = False  # a guest that reboots leaves half a frame
        before = agent.begin(BOOT_S)
        print(f"the agent came {before['boot_s']} s after the kernel's start: {before}")
        assert before["addresses"][0] == "10.0.2.15"
        one.pump()

        # cloud-init goes on as if there were no agent.
        assert "status: done" in says(agent, "cloud-init status --wait --long", BOOT_S)
        assert says(agent, "cat /var/lib/runcmd /run/bootcmd").splitlines()[0] == "runcmd finds active"
        assert says(agent, "cat /var/lib/cloud/instance/user-data.txt").encode() == USER_DATA.strip()
        assert "Traceback" not in says(agent, "cat /var/log/cloud-init.log /var/log/cloud-init-output.log")
        assert says(agent, "journalctl -q -b -o cat -u chv-agent --grep 'Traceback|chv:' || true") == ""
        assert says(agent, "find /run/chv /usr/local/bin -type f -printf '%p %m %U\\n' | sort").splitlines() == [
            "/run/chv/agent.py 600 0",
            "/run/chv/chv-exit 755 0",
            "/usr/local/bin/chv-exit 755 0",
        ]

        # The interfaces have their names and what the job gave them.
        assert set(STATIC.addresses) <= set(says(agent, "ip -br address show dev net1").split())
        for family, gateway in zip((4, 6), STATIC.gateways, strict=True):
            assert says(agent, f"ip -{family} route show default dev net1").startswith(f"default via {gateway} ")
        resolved = says(agent, "cat /run/systemd/network/*net1.network").splitlines()
        assert {"DNS=192.0.2.53", "Domains=example.net"} <= set(resolved)

        # It is a service that comes back, and what it has begun is ended.
        for name, value in (("User", ""), ("Restart", "always"), ("OOMScoreAdjust", "-500")):
            assert says(agent, f"systemctl show -P {name} chv-agent") == value
        assert says(agent, "cat /proc/self/oom_score_adj") == "0"
        stream = agent.exec("bash", "-l", tty=True, user="debian", rows=30, cols=90)
        stream.send(b"stty size; id -un; pwd; exit 3\n")
        assert stream.wait()["code"] == 3
        assert b"30 90\r\ndebian\r\n/home/debian\r\n" in stream.out
        heard = len(agent.hellos)
        agent.exec("systemctl", "kill", "--kill-who=main", "-s", "KILL", "chv-agent")
        agent.until(lambda: len(agent.hellos) > heard)
        assert agent.hellos[-1]["session"] == ""
        assert agent.begin()["boot_id"] == before["boot_id"]

        # A reboot brings it anew, and runs nothing of the first boot again.
        heard = len(agent.hellos)
        agent.exec("systemctl", "reboot")
        agent.until(lambda: len(agent.hellos) > heard, BOOT_S)
        assert agent.hellos[-1]["session"] == ""
        after = agent.begin()
        assert after["boot_id"] != before["boot_id"]
        assert says(agent, "systemctl is-active chv-agent; cat /var/lib/runcmd") == "active\nruncmd finds active"

        agent.exec("chv-exit", "7")
        assert one.end(BOOT_S).exit_code == 7
