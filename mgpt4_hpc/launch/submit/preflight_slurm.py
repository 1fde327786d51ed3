"""Whether Slurm will take a job and ever start it: partition, account, QOS, limits, nodes, GPUs.

Slurm reports one fault at a time, some only after a night in the queue. Here they are found
together, with the valid values. What cannot be known (no accounting, hidden nodes) is left to
Slurm, and that is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mgpt4_hpc.config.schema import LaunchConfig, RunConfig
from mgpt4_hpc.errors import MgptError, SlurmRejected, SlurmUnreachable, did_you_mean
from mgpt4_hpc.formatting import counted, first_line, time_limit
from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.launch.slurm.accounting import (
    Association,
    ask_sacctmgr,
    read_associations,
    slurm_user,
)
from mgpt4_hpc.launch.slurm.cluster import Node, Partition, SlurmSite, read_slurm_site
from mgpt4_hpc.launch.slurm.commands import parse_duration_s
from mgpt4_hpc.launch.slurm.scheduler import scheduler
from mgpt4_hpc.launch.submit.preflight_memory import memory_findings


@dataclass(frozen=True)
class Cluster:
    """What Slurm says of itself and of this user.

    Attributes:
        site: configuration, partitions, nodes; None if users may not see them.
        associations: None if they are not known.
        qos_limits_s: longest time of each QOS, None without one; empty if not known.
        notes: what could not be looked at.
    """

    site: SlurmSite | None
    associations: tuple[Association, ...] | None = None
    qos_limits_s: Mapping[str, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def enforces(self, what: str) -> bool:
        """Whether jobs without ``associations``, ``qos`` or ``limits`` in order are refused."""
        listed = self.site.config.get("AccountingStorageEnforce", "") if self.site else ""
        words = {word.strip().lower() for word in listed.split(",")}
        # Each of the others brings associations with it (slurm.conf's manual).
        implied = bool(words & {"limits", "qos", "safe", "all"}) and what == "associations"
        return what in words or "all" in words or implied


def ask_cluster() -> Cluster:
    """Ask the controller, and the accounting where there is one.

    Raises:
        SlurmUnreachable: the controller does not answer.
    """
    try:
        site = read_slurm_site()
    except SlurmRejected as error:
        return Cluster(None, notes=(f"partition and GPUs not checked: {first_line(error.what)}",))
    if not site.has_accounting:
        return Cluster(site)
    try:
        associations = read_associations()
        limits = ask_sacctmgr("qos", "format=name,maxwall")
    except MgptError as error:
        return Cluster(site, notes=(f"account and QOS not checked: {first_line(error.what)}",))
    walls = {row[0]: _seconds(row[1]) for row in limits if len(row) == 2 and row[0]}
    return Cluster(site, associations, walls)


def _seconds(text: str) -> float | None:
    try:
        return parse_duration_s(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class SlurmReply:
    """What Slurm answers before anything is checked.

    Attributes:
        executor: "slurm", "local", or "none" if Slurm was not to be asked or did not answer.
        cluster: its answer.
        unreachable: why there is none.
    """

    executor: str
    cluster: Cluster | None = None
    unreachable: SlurmUnreachable | None = None

    @classmethod
    def of(cls, executor: str, *, dry_run: bool, wrong: frozenset[str] = frozenset()) -> SlurmReply:
        """Ask. A dry run renders its script also where there is no Slurm, or none that answers.

        Args:
            executor: "slurm" or "local".
            dry_run: no job follows.
            wrong: settings that are wrong; those of the job leave nothing to ask.

        Raises:
            SlurmUnreachable: unless it is a dry run.
        """
        if any(key.startswith("launch") for key in wrong):
            return cls("none")
        if executor != "slurm":
            return cls(executor)
        if dry_run and not scheduler().is_here():
            return cls("none")
        try:
            return cls(executor, ask_cluster())
        except SlurmUnreachable as error:
            if not dry_run:
                raise
            return cls("none", unreachable=error)


def admission_findings(
    config: RunConfig, cluster: Cluster, array_tasks: int = 0
) -> tuple[list[str], list[str]]:
    """Why Slurm would refuse the job or never start it, and what is worth knowing.

    Args:
        config: of the run.
        cluster: what Slurm said.
        array_tasks: tasks of the sweep that the run belongs to; 0 without one.
    """
    faults: list[str] = []
    notes = list(cluster.notes)
    site, launch = cluster.site, config.launch
    faults += _warning_faults(launch)
    if site is not None:
        wanted, missing = _partitions(site, launch)
        faults += missing
        if missing and not wanted:
            faults += _faults_everywhere(site, launch)
        for partition in wanted:
            faults += _partition_faults(partition, launch)
            faults += _node_faults(partition, launch)
        faults += _feature_faults(wanted, launch) + _name_faults(site, wanted, launch)
        if not faults:
            types = _gpu_types(wanted, launch)
            more_faults, more_notes = memory_findings(config, types, [launch.constraint or ""])
            faults += more_faults
            notes += more_notes
        faults += _array_faults(site, array_tasks)
    if cluster.associations is not None:
        account_faults, account_notes = _account_findings(cluster, launch)
        faults += account_faults
        notes += account_notes
    return faults, notes


def task_faults(partition: str | None, *, gpus: int, time_min: int) -> list[str]:
    """Why Slurm would refuse a task on one node, or never start it.

    Raises:
        SlurmUnreachable: the controller does not answer.
    """
    try:
        site = read_slurm_site()
    except SlurmRejected:
        return []  # users may not look
    # Not validated: what is no partition's name is reported as one that is unknown.
    launch = LaunchConfig.model_construct(
        partition=partition,
        gpus=max(1, gpus),
        gpu_request="auto" if gpus else "none",
        time_min=time_min,
        cpus_per_gpu=1,
    )
    wanted, faults = _partitions(site, launch)
    for one in wanted:
        faults += [*_partition_faults(one, launch), *_node_faults(one, launch, may_spread=False)]
    return faults


def _warning_faults(launch: LaunchConfig) -> list[str]:
    limit_s = launch.time_min * 60
    if launch.signal_before_s < limit_s:
        return []
    return [
        f"launch.signal_before_s {launch.signal_before_s} is not below the time limit, --time "
        f"{time_limit(limit_s)} = {limit_s} s: the job would be told to stop as it starts: --set "
        f"signal_before_s={min(120, limit_s // 4)}, or a longer --time"
    ]


def _partitions(site: SlurmSite, launch: LaunchConfig) -> tuple[list[Partition], list[str]]:
    """Those that the job names, or the default; and what is wrong with the names."""
    if not site.partitions:
        return [], []  # users may not see any
    known = _listed(name for name, partition in site.partitions.items() if partition.is_up)
    if launch.partition is None:
        default = [partition for partition in site.partitions.values() if partition.is_default]
        if default:
            return default, []
        return [], [f"no partition given and the site has no default: use one of {known}"]
    wanted = launch.partition.split(",")
    faults = [
        f"partition {name!r} does not exist: use one of {known}"
        for name in wanted
        if name not in site.partitions
    ]
    return [site.partitions[name] for name in wanted if name in site.partitions], faults


def _partition_faults(partition: Partition, launch: LaunchConfig) -> list[str]:
    name, faults = partition.name, []
    if not partition.is_up:
        faults.append(f"partition {name} is {partition.record.get('State')}: no job starts there")
    limit_s = partition.max_time_s
    if limit_s is not None and launch.time_min * 60 > limit_s:
        faults.append(
            f"partition {name} allows --time {time_limit(limit_s)} at most, the job asks for "
            f"{time_limit(launch.time_min * 60)}"
        )
    for kind, word, value in (
        ("Accounts", "account", launch.account),
        ("Qos", "QOS", launch.qos),
    ):
        allowed, denied = partition.allows(kind), partition.denies(kind)
        if value is not None and allowed is not None and value not in allowed:
            faults.append(
                f"partition {name} does not take {word} {value}: use one of {_listed(allowed)}"
            )
        elif value in denied:
            faults.append(f"partition {name} does not take {word} {value}")
    return faults


def _node_faults(
    partition: Partition, launch: LaunchConfig, *, may_spread: bool = True
) -> list[str]:
    """Why no nodes of the partition can hold the job, be they free or not."""
    name, nodes = partition.name, partition.nodes
    total = int(partition.record.get("TotalNodes", "0") or 0) or len(nodes)
    if total and launch.nodes > total:
        return [
            f"partition {name} has {counted(total, 'node')}, --nodes asks for {launch.nodes}: "
            f"--nodes {total} is the most"
        ]
    if not nodes or launch.gpu_request == "none":
        return []
    types = {kind for node in nodes for kind in node.gpus if kind}
    if not partition.has_gpus:
        return [f"partition {name} has no GPUs"]
    if launch.gpu_type and launch.gpu_type not in types:
        mend = f"use one of {_listed(types)}" if types else "leave it out: the site names no types"
        return [f"launch.gpu_type {launch.gpu_type!r} is not in partition {name}: {mend}"]
    per_node = launch.gpus // launch.nodes
    most = max(_gpus(node, launch) for node in nodes)
    if per_node > most:
        held = [_gpus(node, launch) for node in nodes]
        mend = _spread(launch.gpus, held) if may_spread else f"--gpus {most} is the most"
        return [
            f"a node of partition {name} has {counted(most, 'GPU')} at most, the job asks for "
            f"{per_node} on each: {mend}"
        ]
    cpus = per_node * launch.cpus_per_gpu
    fitting = [n for n in nodes if _gpus(n, launch) >= per_node and (n.cpus >= cpus or not n.cpus)]
    if len(fitting) < launch.nodes:
        return [
            f"{len(fitting)} nodes of partition {name} have {per_node} GPUs and {cpus} cores, the "
            f"job asks for {launch.nodes} such: lower --gpus or launch.cpus_per_gpu "
            f"({launch.cpus_per_gpu})"
        ]
    return []


def _faults_everywhere(site: SlurmSite, launch: LaunchConfig) -> list[str]:
    """Why no partition's nodes can hold the job, where the one that it names is unknown."""
    up = [partition for partition in site.partitions.values() if partition.is_up]
    faults = [_node_faults(partition, launch) for partition in up]
    return [fault for of_one in faults for fault in of_one] if all(faults) else []


def nodes_for(site: SlurmSite | None, launch: LaunchConfig, gpus: int) -> int | None:
    """Over how many nodes the job can spread ``gpus``: as many as asked for if it may be.

    None if there is no such number in any of its partitions.
    """
    wanted = _partitions(site, launch)[0] or [*site.partitions.values()] if site else []
    if launch.gpu_request == "none":
        wanted = []  # the user asks for GPUs with other options
    held = [[_gpus(node, launch) for node in p.nodes] for p in wanted if p.nodes]
    if gpus % launch.nodes == 0 and (
        not held or any(sum(n >= gpus // launch.nodes for n in of) >= launch.nodes for of in held)
    ):
        return launch.nodes
    return next((n for of in held if (n := _num_nodes(gpus, sorted(of, reverse=True)))), None)


def _num_nodes(gpus: int, held: Sequence[int]) -> int | None:
    """The fewest nodes of those that hold ``held`` GPUs, most first, for ``gpus`` spread evenly."""
    spreads = (n for n, least in enumerate(held, 1) if gpus % n == 0 and gpus // n <= least)
    return next(spreads, None)


def _spread(gpus: int, per_node: Iterable[int]) -> str:
    """How ``gpus`` fit on nodes that have ``per_node`` each, with the same number on every node."""
    held = sorted(per_node, reverse=True)
    if nodes := _num_nodes(gpus, held):
        return f"--nodes {nodes} spreads them"
    largest, nodes = max((nodes * least, -nodes) for nodes, least in enumerate(held, start=1))
    most = f"--gpus {largest} --nodes {-nodes} is the most"
    return f"--gpus {gpus} fits on no number of its nodes, {most}"


def _gpus(node: Node, launch: LaunchConfig) -> int:
    return node.gpus.get(launch.gpu_type, 0) if launch.gpu_type else node.num_gpus


def _gpu_types(partitions: Iterable[Partition], launch: LaunchConfig) -> set[str]:
    if launch.gpu_type:
        return {launch.gpu_type}
    return {kind for p in partitions for node in p.nodes for kind in node.gpus if kind}


def _array_faults(site: SlurmSite, tasks: int) -> list[str]:
    most = site.config.get("MaxArraySize", "")
    # The setting is one more than the highest index (slurm.conf's manual).
    if tasks and most.isdigit() and tasks > int(most) - 1:
        return [
            f"the sweep has {tasks} runs, this site's job arrays have at most {int(most) - 1}: "
            "sweep fewer values"
        ]
    return []


def _account_findings(cluster: Cluster, launch: LaunchConfig) -> tuple[list[str], list[str]]:
    """Faults where Slurm insists on accounts and QOS, notes where it merely keeps them."""
    associations = cluster.associations or ()
    unknown: list[str] = []
    accounts = {association.account for association in associations}
    if cluster.enforces("associations") and not accounts:
        return [f"user {slurm_user()} belongs to no account here: ask the support"], []
    # Slurm keeps the names of accounts in small letters.
    account = launch.account.lower() if launch.account else None
    if account is not None and account not in accounts:
        unknown.append(
            f"account {launch.account!r} is none of yours: use one of {_listed(accounts)}"
        )
    faults, notes = (unknown, []) if cluster.enforces("associations") else ([], unknown)
    if launch.qos is None:
        return faults, notes
    charged = [
        association for association in associations if account in (None, association.account)
    ]
    allowed = {qos for association in charged for qos in association.qos} or set(
        cluster.qos_limits_s
    )
    if launch.qos not in allowed:
        where = f" of account {launch.account}" if launch.account else ""
        fault = f"QOS {launch.qos!r} is none of yours{where}: use one of {_listed(allowed)}"
        (faults if cluster.enforces("qos") else notes).append(fault)
    limit_s = cluster.qos_limits_s.get(launch.qos)
    if limit_s is not None and launch.time_min * 60 > limit_s and cluster.enforces("limits"):
        faults.append(
            f"QOS {launch.qos} allows --time {time_limit(limit_s)} at most, the job asks for "
            f"{time_limit(launch.time_min * 60)}"
        )
    return faults, notes


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "(none)"


# -- nodes by feature or by name: Slurm says "Invalid feature specification", and not which one --

_BETWEEN_FEATURES = re.compile(r"[\s&|,()\[\]]+")
"""Slurm's grammar (sbatch's manual): ``[a100*2&(ib|opa)]``; each name may have a count."""


def _option(launch: LaunchConfig, name: str, value: str | None) -> tuple[str, str]:
    """How an option of sbatch is written where it is set, and its value; empty without one."""
    if name in launch.sbatch:
        return f"--sbatch {name}", launch.sbatch[name]
    return f"--{name}", value or ""


def _feature_faults(partitions: Sequence[Partition], launch: LaunchConfig) -> list[str]:
    option, wanted = _option(launch, "constraint", launch.constraint)
    nodes = [node for partition in partitions for node in partition.nodes]
    if not wanted or not nodes:
        return []
    known = {feature for node in nodes for feature in node.features}
    mend = (
        f"use one of {', '.join(sorted(known))}" if known else f"leave {option} out, none has any"
    )
    names = (part.partition("*")[0] for part in _BETWEEN_FEATURES.split(wanted))
    return [
        f"{option} {wanted}: no node of {_named(partitions)} has the feature {name!r}: {mend}"
        f"{did_you_mean(name, known)}"
        for name in dict.fromkeys(names)
        if name and name not in known
    ]


def _name_faults(
    site: SlurmSite, partitions: Sequence[Partition], launch: LaunchConfig
) -> list[str]:
    faults = []
    inside = {node.name for partition in partitions for node in partition.nodes}
    options = [_option(launch, "exclude", launch.exclude), _option(launch, "nodelist", None)]
    for option, listed in options:
        # To keep away from a node that the job would not get anyway is no fault.
        known = inside if option.endswith("nodelist") else {node.name for node in site.nodes}
        if not listed or not known or "/" in listed:  # hidden nodes; a file with names
            continue
        try:
            names = commands.hostnames(listed)
        except MgptError:
            continue  # sbatch will say what it thinks of that
        faults += [
            f"{option} {listed}: there is no node {name!r} in {_named(partitions)}: use some of "
            f"{_folded(partitions)}"
            for name in names
            if name not in known
        ]
    return faults


def _named(partitions: Sequence[Partition]) -> str:
    word = "partition" if len(partitions) == 1 else "partitions"
    return f"{word} {', '.join(partition.name for partition in partitions)}"


def _folded(partitions: Sequence[Partition]) -> str:
    """The nodes as Slurm writes them, ``node[1-400]``: a list of all names would be a page."""
    return ",".join(
        dict.fromkeys(
            partition.record.get("Nodes") or ",".join(node.name for node in partition.nodes)
            for partition in partitions
        )
    )
