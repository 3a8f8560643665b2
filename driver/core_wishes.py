"""Which cores a task asks for: Nomad's `cores`, `chv/core` devices or MHz, and how many vCPUs they carry. Pure."""

from typing import Literal

from driver._pb import driver_pb2 as pb
from driver.config_task import TaskConfig
from driver.decode import Complaints
from vmlib.cores.cpulist import format_cpus, parse_cpus
from vmlib.cores.topology import Topology
from vmlib.errors import SpecError
from vmlib.spec import CoresSpec

_EXCLUSIVE_ONLY = 'works with placement = "exclusive" only'


def cores_spec(
    complaints: Complaints,
    task: pb.TaskConfig,
    options: TaskConfig,
    *,
    topology: Topology | None = None,
    smt: Literal["core", "thread"] = "core",
) -> tuple[CoresSpec, int]:
    """What the machine wants for itself, and its number of vCPUs.

    Without a topology each CPU counts as a whole core, and whether the node has SMT is not checked.
    """
    given = _given(complaints, task)
    tokens = _tokens(complaints, task)
    if given and tokens:
        complaints.add(
            "device",
            f'chv/core together with cores = {len(given)}, expected one of the two: device "chv/core" without cores',
        )
    if options.placement == "shared":
        vcpus = _check_shared(complaints, options, given, tokens)
    else:
        _check_expose(complaints, options, topology, smt)
        if given:
            vcpus = _vcpus_of_given(complaints, options, given, topology)
        elif tokens:
            vcpus = _vcpus_of_tokens(complaints, options, sum(tokens.values()))
        else:
            vcpus = options.vcpus or _per_core(options)
    spec = CoresSpec(
        exclusive=options.placement == "exclusive",
        expose=options.threads == "expose",
        numa=options.numa,
        isolate_emulator=options.emulator == "isolate",
        given=given,
        tokens=tokens,
        cpu_shares=max(0, task.resources.linux_resources.cpu_shares),
    )
    return spec, vcpus


def mhz_lint(task: pb.TaskConfig, options: TaskConfig, mhz_floor: int) -> str:
    """What to say of a `cpu` that is less than what the machine's cores are; empty when it is enough.

    For a machine whose cores Nomad shares out: the MHz are all that keeps Nomad from placing more than fits.
    """
    cpu = task.resources.linux_resources.cpu_shares
    vcpus = options.vcpus or _per_core(options)
    count = vcpus + (1 if options.emulator == "isolate" else 0)
    if not mhz_floor or cpu >= count * mhz_floor:
        return ""
    cores = vcpus // _per_core(options) + count - vcpus
    return (
        f"cpu = {cpu}: expected at least {count} × {mhz_floor} = {count * mhz_floor} MHz for"
        f" {_count(cores, 'whole core')}, Nomad may place more here than there are cores"
    )


def _given(complaints: Complaints, task: pb.TaskConfig) -> frozenset[int]:
    """The logical CPUs that Nomad chose for `cores = N`."""
    text = task.resources.linux_resources.cpuset_cpus
    try:
        return parse_cpus(text)
    except ValueError as exc:
        complaints.add("cores", str(exc), value=text)
        return frozenset()


def _tokens(complaints: Complaints, task: pb.TaskConfig) -> dict[int, int]:
    if not task.device_env:
        return {}
    # Most tasks hold no device, and the plugin's cold start is short.
    from driver.tokens import tokens_of

    try:
        return tokens_of(task.device_env)
    except SpecError as exc:
        complaints.add("device", str(exc))
        return {}


def _per_core(options: TaskConfig) -> int:
    return 2 if options.threads == "expose" else 1


def _check_shared(complaints: Complaints, options: TaskConfig, given: frozenset[int], tokens: dict[int, int]) -> int:
    for asked, what in ((given, f"cores = {len(given)}"), (tokens, 'device "chv/core"')):
        if asked:
            complaints.add(
                "placement", f'contradicts {what} in resources, expected "exclusive" or cpu = MHz', value="shared"
            )
    for key, value, default in (
        ("threads", options.threads, "hide"),
        ("numa", options.numa, "prefer"),
        ("emulator", options.emulator, "shared"),
    ):
        if value != default:
            complaints.add(key, _EXCLUSIVE_ONLY, value=value)
    return options.vcpus or 1


def _check_expose(
    complaints: Complaints, options: TaskConfig, topology: Topology | None, smt: Literal["core", "thread"]
) -> None:
    if options.threads != "expose":
        return
    if smt == "thread":
        complaints.add(
            "threads", 'works where cores.smt = "core" in the plugin block, here it is "thread"', value="expose"
        )
    elif topology is not None and not any(len(core.cpus) > 1 for core in topology.cores):
        complaints.add("threads", 'expected "hide": this node has no SMT, a core is one thread', value="expose")
    if options.vcpus is not None and options.vcpus % 2:
        complaints.add("vcpus", 'expected an even number with threads = "expose"', value=options.vcpus)


def _vcpus_of_given(
    complaints: Complaints, options: TaskConfig, given: frozenset[int], topology: Topology | None
) -> int:
    """Complete sibling sets are whole cores; what is left over, and a CPU that is not online, is a thread."""
    asked = f"cores = {len(given)}"
    whole, single = len(given), 0
    if topology is not None:
        cores, _ = topology.split(given)
        whole, single = len(cores), len(given) - sum(len(core.cpus) for core in cores)
        _check_given_numa(complaints, options, given, topology)
        if options.threads == "expose" and not complaints.any_about("threads"):
            alone = given - {cpu for core in cores if len(core.cpus) > 1 for cpu in core.cpus}
            if alone:
                complaints.add(
                    "threads",
                    f"expected whole cores, but of {asked} CPU {format_cpus(alone)} came without its sibling:"
                    ' use device "chv/core"',
                    value="expose",
                )
    elif options.numa == "spread":
        _complain_of_spread(complaints, asked)
    units = whole + single - _emulator_unit(complaints, options, whole + single, asked)
    most = units * _per_core(options)
    if options.vcpus is None:
        return most
    if options.vcpus > most and not complaints.any_about("threads", "emulator"):
        complaints.add(
            "vcpus", f"expected at most {most}, which is what {asked} gives{_less(options)}", value=options.vcpus
        )
    return options.vcpus


def _check_given_numa(complaints: Complaints, options: TaskConfig, given: frozenset[int], topology: Topology) -> None:
    asked = f"cores = {len(given)}"
    nodes = sorted({node for cpu in given if (node := topology.node_of(cpu)) is not None})
    if options.numa == "spread":
        _complain_of_spread(complaints, asked)
    elif options.numa == "strict" and len(nodes) > 1:
        complaints.add(
            "numa",
            f"expected one NUMA node, but for {asked} Nomad chose CPU {format_cpus(given)} on nodes"
            f' {", ".join(map(str, nodes))}: use device "chv/core"',
            value="strict",
        )


def _complain_of_spread(complaints: Complaints, asked: str) -> None:
    complaints.add("numa", f"expected prefer or strict, with {asked} Nomad chooses the CPUs", value="spread")


def _vcpus_of_tokens(complaints: Complaints, options: TaskConfig, count: int) -> int:
    asked = f'device "chv/core" {{ count = {count} }}'
    exact = (count - _emulator_unit(complaints, options, count, asked)) * _per_core(options)
    if options.vcpus not in (None, exact) and not complaints.any_about("vcpus", "emulator"):
        complaints.add("vcpus", f"expected {exact}, which is what {asked} gives{_less(options)}", value=options.vcpus)
    return exact


def _emulator_unit(complaints: Complaints, options: TaskConfig, units: int, asked: str) -> int:
    """How many of the units go to the VMM's own threads; at least one has to be left for the guest."""
    if options.emulator != "isolate":
        return 0
    if units > 1:
        return 1
    complaints.add(
        "emulator", f"expected one core more for VMM threads, {asked} gives the guest's alone", value="isolate"
    )
    return 0


def _less(options: TaskConfig) -> str:
    return " beside the one for VMM threads" if options.emulator == "isolate" else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
