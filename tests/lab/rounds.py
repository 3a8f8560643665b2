"""What `make test` has the lab node do: one boot each, of which each is a test of test_round.py."""

from dataclasses import dataclass, replace

# One boot each: a node that hangs costs a part of the tier, and a file server is no neighbour for what counts CPUs.
# An agent that had a partition leaves it to the next one to give back: what runs without an agent comes first.
AGENT = ("test_stats.py", "test_cores_agent.py")
FILES = ("test_nfs.py",)
FILES_AGENT = ("test_nfs_agent.py", "test_shares.py")
HYPERVISOR = ("test_cloud_hypervisor.py",)
PACKAGE = ("test_package.py",)
# What every hypervisor promises, shown on the real one, but for what HYPERVISOR shows of it.
CONTRACT = "tests/integration/test_hypervisor_contract.py"
SHOWN_THERE = (
    "test_each_vcpu_is_a_thread",
    "test_pause_stops",
    "test_power_button_ends",
    "test_panic_is_only_told",
    "test_guest_reboot_goes_on",
    "test_exit_code_comes",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one boot is for. Without a Cloud Hypervisor in the node, auto is QEMU there."""

    tests: str
    later_kernel: bool = False
    programs: tuple[str, ...] = ("nomad",)
    packages: bool = False
    needs: tuple[str, ...] = ()  # words of tests/needs.py, without which there is no such round


def _of(*files: str) -> str:
    return " ".join(f"tests/lab/{name}" for name in files)


def _but(*files: str) -> str:
    return " ".join(f"--ignore=tests/lab/{name}" for name in files) + " tests/lab"


_ON_CLOUD_HYPERVISOR = Asked(
    tests="", later_kernel=True, programs=("nomad", "cloud-hypervisor"), needs=("cloud-hypervisor",)
)

# In this order, most beside tests/nomad. Its agents have ended when the last ones begin, which promise seconds.
ROUNDS = {
    # What no other round has, so that a new file is not forgotten.
    "node": Asked(tests=_but(*AGENT, *FILES, *FILES_AGENT, *HYPERVISOR, *PACKAGE)),
    # Its root is a clean one until then: no test before this has touched it.
    "package": Asked(tests=_of(*PACKAGE), packages=True),
    # The later kernel has the Landlock that it uses. Two boots, as with files: what runs longest loses most by a fault.
    "hypervisor": replace(_ON_CLOUD_HYPERVISOR, tests=_of(*HYPERVISOR)),
    "contract": replace(_ON_CLOUD_HYPERVISOR, tests=f"{CONTRACT} -k 'cloud-real and not ({' or '.join(SHOWN_THERE)})'"),
    "files": Asked(tests=_of(*FILES)),
    "files-agent": Asked(tests=_of(*FILES_AGENT)),
    "agent": Asked(tests=_of(*AGENT)),
}
