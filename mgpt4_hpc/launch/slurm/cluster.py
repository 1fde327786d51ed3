"""What a Slurm site is set to do, as plain data: its configuration, partitions and nodes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.slurm.commands import parse_duration_s, parse_record, run_slurm

_SETTING = re.compile(r"^(\S+)\s*= ?(.*)$")
_SECONDS = re.compile(r"(\d+)(?: (sec|min))?")
_GPUS = re.compile(r"gpu(?::([^:,()]+))?:(\d+)(?=[(,]|$)")
"""A node's gres, as ``gpu:a100:4(S:0-1)``; a type may begin with a digit, as ``3090``."""
_UNUSABLE = ("DOWN", "DRAIN", "FAIL", "MAINT", "UNKNOWN", "NOT_RESPONDING", "FUTURE", "*")
_CRED_EXPIRE = re.compile(r"cred_expire=(\d+)")
CRED_EXPIRE_S = 120
"""Slurm's default life of a job credential; a requeued job waits as long before it may start."""


@dataclass(frozen=True)
class Node:
    """One compute node.

    Attributes:
        name: of the node.
        partitions: that it belongs to.
        state: as IDLE, MIXED+DRAIN.
        cpus: cores for jobs.
        gpus: number by type; the type is empty where the site names none.
        features: that jobs may ask for with --constraint, of some kinds only after a reboot.
    """

    name: str
    partitions: frozenset[str]
    state: str = "IDLE"
    cpus: int = 0
    gpus: Mapping[str, int] = field(default_factory=dict)
    features: frozenset[str] = frozenset()

    @property
    def is_usable(self) -> bool:
        """Whether a job may start there, now or once another ends."""
        return not any(word in self.state for word in _UNUSABLE)

    @property
    def num_gpus(self) -> int:
        """GPUs of all types."""
        return sum(self.gpus.values())


@dataclass(frozen=True)
class Partition:
    """One partition, as ``scontrol show partition`` has it.

    Attributes:
        record: all its fields.
        nodes: its nodes.
    """

    record: Mapping[str, str]
    nodes: tuple[Node, ...] = ()

    @property
    def name(self) -> str:
        """Its name."""
        return self.record["PartitionName"]

    @property
    def is_default(self) -> bool:
        """Whether jobs that name none go there."""
        return self.record.get("Default") == "YES"

    @property
    def is_up(self) -> bool:
        """Whether its jobs may start."""
        return self.record.get("State", "UP") == "UP"

    @property
    def tier(self) -> int:
        """A job of a partition with a higher one goes first, and may preempt."""
        return _number(self.record.get("PriorityTier", ""))

    @property
    def grace_s(self) -> int:
        """Seconds between the signal of a preemption and the kill; 0 means KillWait."""
        return _number(self.record.get("GraceTime", ""))

    @property
    def preempt_modes(self) -> frozenset[str]:
        """What may happen to its jobs: REQUEUE, CANCEL, SUSPEND, GANG or OFF."""
        return frozenset(self.record.get("PreemptMode", "OFF").upper().split(","))

    @property
    def max_time_s(self) -> float | None:
        """Longest time limit in seconds; None if there is none."""
        return parse_duration_s(self.record.get("MaxTime", ""))

    def allows(self, kind: str) -> frozenset[str] | None:
        """Names that may use it, for ``kind`` Accounts, Qos or Groups; None for all."""
        text = self.record.get(f"Allow{kind}", "ALL")
        return None if text in ("ALL", "N/A", "(null)") else frozenset(text.split(","))

    def denies(self, kind: str) -> frozenset[str]:
        """Names that may not use it."""
        text = self.record.get(f"Deny{kind}", "")
        return frozenset(filter(None, text.split(",")))

    @property
    def gpu_types(self) -> dict[str, int]:
        """GPUs of its usable nodes by type."""
        counts: Counter[str] = Counter()
        for node in self.nodes:
            if node.is_usable:
                counts.update(node.gpus)
        return dict(counts)

    @property
    def has_gpus(self) -> bool:
        """Whether any of its nodes has a GPU."""
        return any(node.num_gpus for node in self.nodes)


@dataclass(frozen=True)
class Qos:
    """One quality of service, as far as preemption goes by it.

    Attributes:
        name: its name.
        preempts: the QOS that its jobs may preempt.
        modes: what happens to its own preempted jobs; None means as the cluster's PreemptMode.
        grace_s: seconds between the signal of a preemption and the kill; 0 means KillWait.
    """

    name: str
    preempts: frozenset[str] = frozenset()
    modes: frozenset[str] | None = None
    grace_s: int = 0


@dataclass(frozen=True)
class PreemptionRisk:
    """What preemption means to a job.

    Attributes:
        preemptors: partitions or QOS with jobs that may take its nodes.
        modes: REQUEUE, CANCEL, SUSPEND, GANG.
        grace_s: seconds between signal and kill; 0 means KillWait.
    """

    preemptors: tuple[str, ...]
    modes: frozenset[str]
    grace_s: int


@dataclass(frozen=True)
class SlurmSite:
    """A Slurm site.

    Attributes:
        config: ``scontrol show config``; what is null there is absent.
        partitions: by name.
        qos: by name; read only where preemption goes by it.
        nodes: all of them, in whatever partition or in none.
    """

    config: Mapping[str, str]
    partitions: Mapping[str, Partition]
    qos: Mapping[str, Qos] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()

    @property
    def version(self) -> str:
        """Slurm's version."""
        return self.config.get("SLURM_VERSION", "?")

    @property
    def keeps_grace_mark(self) -> bool:
        """Whether a preemption's grace time marks a job up to its end (docs/preemption.md).

        The flag GRACE_PREEMPT is in Slurm's source from 24.05.0 on; with 26.05.5 a marked job was
        seen to end as any other.
        """
        numbers = tuple(int(part) for part in re.findall(r"\d+", self.version)[:3])
        return (24, 5) <= numbers < (26, 5, 4)

    def seconds(self, name: str) -> int | None:
        """A setting such as ``KillWait = 30 sec`` in seconds; None where it is not set."""
        match = _SECONDS.match(self.config.get(name, ""))
        return None if match is None else int(match[1]) * (60 if match[2] == "min" else 1)

    @property
    def kill_wait_s(self) -> int:
        """Seconds between TERM and KILL."""
        seconds = self.seconds("KillWait")
        return 30 if seconds is None else seconds

    @property
    def requeue_wait_s(self) -> int:
        """Seconds that a requeued job waits at least before it may start."""
        match = _CRED_EXPIRE.search(self.config.get("AuthInfo", ""))
        return int(match[1]) if match else CRED_EXPIRE_S

    @property
    def preempt_type(self) -> str:
        """none, partition_prio or qos."""
        return self.config.get("PreemptType", "preempt/none").removeprefix("preempt/")

    @property
    def sends_user_signal(self) -> bool:
        """Whether a preempted job gets its ``--signal`` in the place of TERM."""
        # The first is the name of Slurm 22.05 and older, the second of 23.02 and newer.
        return "preempt_send_user_signal" in self.config.get(
            "SlurmctldParameters", ""
        ) or "send_user_signal" in self.config.get("PreemptParameters", "")

    @property
    def has_accounting(self) -> bool:
        """Whether ended jobs are remembered in a database."""
        return self.config.get("AccountingStorageType", "").endswith("/slurmdbd")

    def over_time_limit_s(self, partition: Partition) -> int | None:
        """Seconds that jobs may run past their limit; None if for ever."""
        for text in (
            partition.record.get("OverTimeLimit", "NONE"),
            self.config.get("OverTimeLimit", ""),
        ):
            if text == "UNLIMITED":
                return None
            if match := _SECONDS.match(text):
                return int(match[1]) * 60  # minutes in both
        return 0

    def preemptors(self, partition: Partition) -> list[Partition]:
        """Partitions with jobs that may take nodes away from jobs of this one."""
        if self.preempt_type != "partition_prio" or "OFF" in partition.preempt_modes:
            return []
        own_nodes = {node.name for node in partition.nodes}
        return [
            other
            for other in self.partitions.values()
            if other.tier > partition.tier
            and other.is_up
            and own_nodes & {node.name for node in other.nodes}
        ]

    def preemption_risk(self, partition: Partition, qos: str) -> PreemptionRisk | None:
        """What may preempt a job of this partition and QOS, and how; None if nothing."""
        if self.preempt_type != "qos":
            names = tuple(f"partition {other.name}" for other in self.preemptors(partition))
            return (
                PreemptionRisk(names, partition.preempt_modes, partition.grace_s) if names else None
            )
        own = self.qos.get(qos, Qos(qos))
        names = tuple(f"QOS {name}" for name, entry in self.qos.items() if qos in entry.preempts)
        whole = frozenset(self.config.get("PreemptMode", "OFF").upper().split(","))
        modes = whole if own.modes is None else own.modes
        return None if not names or "OFF" in modes else PreemptionRisk(names, modes, own.grace_s)


def read_slurm_site() -> SlurmSite:
    """Ask the controller.

    Raises:
        SlurmUnreachable: it does not answer.
        SlurmRejected: it says no, as where users may not see the configuration.
    """
    site = parse_slurm_site(
        run_slurm(["scontrol", "show", "config"]),
        # With --all also those that are hidden from this user: their jobs may preempt his.
        run_slurm(["scontrol", "--all", "show", "partition", "-o"]),
        run_slurm(["scontrol", "--all", "show", "node", "-o"]),
    )
    if site.preempt_type != "qos":
        return site
    try:
        text = run_slurm(
            [
                *("sacctmgr", "--noheader", "--parsable2", "show", "qos"),
                "format=name,preempt,preemptmode,gracetime",
            ]
        )
    except MgptError:
        return site  # reported where accounting is read
    return replace(site, qos=parse_qos(text))


def parse_qos(text: str) -> dict[str, Qos]:
    """Rows ``name|preempt|preemptmode|gracetime`` of sacctmgr, by name."""
    records = {}
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) != 4 or not cells[0]:
            continue
        name, preempts, mode, grace = cells
        modes = None if mode.lower() in ("", "cluster") else frozenset(mode.upper().split(","))
        try:
            grace_s = int(parse_duration_s(grace) or 0)
        except ValueError:
            grace_s = 0
        records[name] = Qos(name, frozenset(filter(None, preempts.split(","))), modes, grace_s)
    return records


def parse_slurm_site(config: str, partitions: str, nodes: str) -> SlurmSite:
    """The site from what ``scontrol show config``, ``partition -o`` and ``node -o`` print."""
    parsed = list(map(parse_node, filter(str.strip, nodes.splitlines())))
    made = {}
    for record in map(parse_record, partitions.splitlines()):
        if name := record.get("PartitionName"):
            made[name] = Partition(record, tuple(n for n in parsed if name in n.partitions))
    return SlurmSite(parse_config(config), made, nodes=tuple(parsed))


def parse_config(text: str) -> dict[str, str]:
    """The settings that ``scontrol show config`` prints, without those that are null."""
    settings = {}
    for line in text.splitlines():
        match = _SETTING.match(line)
        if match and match[2].strip() not in ("", "(null)", "N/A"):
            settings[match[1]] = match[2].strip()
    return settings


def parse_node(line: str) -> Node:
    """One line of ``scontrol show node -o``."""
    record = parse_record(line)
    gpus: Counter[str] = Counter()
    for kind, count in _GPUS.findall(record.get("Gres", "")):
        gpus[kind] += int(count)
    return Node(
        name=record.get("NodeName", "?"),
        partitions=frozenset(filter(None, record.get("Partitions", "").split(","))),
        state=record.get("State", "UNKNOWN"),
        cpus=_number(record.get("CPUEfctv", "")) or _number(record.get("CPUTot", "")),
        gpus=dict(gpus),
        features=_features(record),
    )


def _features(record: Mapping[str, str]) -> frozenset[str]:
    listed = record.get("AvailableFeatures", "")
    return frozenset() if listed == "(null)" else frozenset(filter(None, listed.split(",")))


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
