"""The nodes that a job asks for by feature or by name: whether the site has them.

Slurm says "Invalid feature specification" or "Invalid node name specified", and not which one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mgpt4_hpc.config.schema import LaunchConfig
from mgpt4_hpc.errors import MgptError, did_you_mean
from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.launch.slurm.cluster import Partition, SlurmSite

_BETWEEN_FEATURES = re.compile(r"[\s&|,()\[\]]+")
"""Slurm's grammar (sbatch's manual): ``[a100*2&(ib|opa)]``; each name may have a count."""


def constraint_of(launch: LaunchConfig) -> tuple[str, str]:
    """The option by which node features are asked for, and its value; empty without one."""
    return _option(launch, "constraint", launch.constraint)


def node_lists_of(launch: LaunchConfig) -> list[tuple[str, str]]:
    """The options that name nodes, with their values."""
    found = [_option(launch, "exclude", launch.exclude), _option(launch, "nodelist", None)]
    return [(option, listed) for option, listed in found if listed]


def _option(launch: LaunchConfig, name: str, value: str | None) -> tuple[str, str]:
    if name in launch.sbatch:
        return f"--sbatch {name}", launch.sbatch[name]
    return f"--{name}", value or ""


def node_choice_faults(
    site: SlurmSite, partitions: Sequence[Partition], launch: LaunchConfig
) -> list[str]:
    """Features and nodes that there are not, each with those that there are."""
    return [*_feature_faults(partitions, launch), *_name_faults(site, partitions, launch)]


def _feature_faults(partitions: Sequence[Partition], launch: LaunchConfig) -> list[str]:
    option, wanted = constraint_of(launch)
    nodes = [node for partition in partitions for node in partition.nodes]
    if not wanted or not nodes:
        return []
    known = {feature for node in nodes for feature in node.features}
    mend = (
        f"use one of {', '.join(sorted(known))}" if known else f"leave {option} out, none has any"
    )
    return [
        f"{option} {wanted}: no node of {_named(partitions)} has the feature {name!r}: {mend}"
        f"{did_you_mean(name, known)}"
        for name in _feature_names(wanted)
        if name not in known
    ]


def _feature_names(constraint: str) -> list[str]:
    words = _BETWEEN_FEATURES.split(constraint)
    return list(dict.fromkeys(name for word in words if (name := word.partition("*")[0])))


def _name_faults(
    site: SlurmSite, partitions: Sequence[Partition], launch: LaunchConfig
) -> list[str]:
    faults = []
    inside = {node.name for partition in partitions for node in partition.nodes}
    for option, listed in node_lists_of(launch):
        # To keep away from a node that the job would not get anyway is no fault.
        known = inside if option.endswith("nodelist") else {node.name for node in site.nodes}
        if not known or "/" in listed:  # hidden nodes; a file with names
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
