"""What the sub-commands do: up, down, status, nodes down and up, restarting the controller."""

import dataclasses
import json
import os
import sys
import time

from devcluster_lib import conf, packages, processes, releases, services
from devcluster_lib.errors import DevclusterError, PortTakenError
from devcluster_lib.layout import Layout, Options, make_folders, remove_contents, write_json

PORT_ATTEMPTS = 3
IDLE_LIMIT_S = 120
# A daemon that is asked to end saves its state; nothing here is worth more waiting.
END_PATIENCE_S = 5
UP_STATES = {"idle", "mixed", "allocated", "completing"}


@dataclasses.dataclass(frozen=True)
class Status:
    """What `devcluster status` reports."""

    dir: str
    slurm_conf: str
    up: bool
    """Every daemon runs and the controller answers (a node may be down on purpose)."""
    nodes: dict[str, str]
    """State of each node as sinfo names it; empty if the controller does not answer."""
    processes: list[processes.Process]
    """Daemons and the steps of running jobs."""
    options: Options | None
    """What `up` was asked for; None if there never was a cluster."""


def up(layout: Layout, options: Options) -> None:
    """Start a cluster in this folder and return when all its nodes are idle.

    Does nothing if that very cluster runs already. What a crashed one left is ended and replaced.
    """
    packages.require_root()
    packages.require_programs(options.accounting)
    options.validate()
    release = releases.find(options.slurm)
    options = dataclasses.replace(options, slurm=release.number)
    before = status(layout)
    if before.up and before.options == options:
        _say(f"Slurm {release.version} runs already in {layout.root}")
        return
    if before.up:
        raise DevclusterError(
            f"a cluster with other options runs in {layout.root}: {before.options}",
            f"tools/devcluster down --dir {layout.root}, or another --dir",
        )
    began = time.monotonic()
    for attempt in range(1, PORT_ATTEMPTS + 1):
        try:
            _start_all(layout, options, release)
            break
        except PortTakenError:
            _end_all(layout)
            if attempt == PORT_ATTEMPTS:
                raise
            _say("another process took one of our ports; starting again with others")
        except BaseException:
            # Leave the logs, but no half-started cluster.
            _end_all(layout)
            raise
    nodes = f"{options.nodes} nodes with {options.gpus_per_node} A100 each"
    took_s = time.monotonic() - began
    _say(f"Slurm {release.version}: {nodes} idle after {took_s:.1f} s, in {layout.root}")


def _start_all(layout: Layout, options: Options, release: releases.Release) -> None:
    _end_all(layout)
    ports = services.pick_ports(options.nodes)
    content = {"options": dataclasses.asdict(options), "ports": dataclasses.asdict(ports)}
    # First of all, because it is what makes the folder known as ours.
    write_json(layout.state_file, content)
    make_folders(layout)
    releases.link_programs(release, layout.clients, layout.daemons)
    layout.slurm_conf.write_text(conf.slurm_conf(layout, options, ports, release.plugins))
    layout.task_prolog.write_text(conf.task_prolog(layout))
    layout.task_prolog.chmod(0o755)
    layout.gres_conf.write_text(conf.gres_conf(layout, options))
    _make_devices(layout, options)

    install = services.begin_database_install(layout) if options.accounting else None
    services.start_munged(layout)
    if install is not None:
        layout.slurmdbd_conf.touch(mode=0o600)
        layout.slurmdbd_conf.write_text(conf.slurmdbd_conf(layout, ports, release.plugins))
        services.start_mariadbd(layout, install)
        services.start_slurmdbd(layout, options.cluster_name)
    services.start_slurmctld(layout)
    for node in options.node_names:
        services.start_slurmd(layout, node)
    _wait_for_nodes(layout, options.node_names, {"idle"})


def _make_devices(layout: Layout, options: Options) -> None:
    for number in range(options.gpus_per_node):
        path = layout.dev / f"a100_{number}"
        try:
            # The same device as /dev/null: Slurm wants a device, and nobody opens it.
            os.mknod(path, 0o20666, os.makedev(1, 3))
        except PermissionError as error:
            raise DevclusterError(
                f"cannot make the device node {path}: {error.strerror}",
                "give the container the capability MKNOD (docker run --cap-add MKNOD ...)",
            ) from error


def _wait_for_nodes(layout: Layout, nodes: list[str], wanted: set[str]) -> None:
    """Wait until each of ``nodes`` is in one of the ``wanted`` states; raise if its slurmd ends."""
    deadline = time.monotonic() + IDLE_LIMIT_S
    while True:
        states = node_states(layout)
        if all(states.get(node) in wanted for node in nodes):
            return
        running = {process.name for process in processes.find(layout)}
        for node in nodes:
            if services.slurmd_name(node) not in running:
                raise services.failure(layout, services.slurmd_name(node), "ended by itself")
        if time.monotonic() > deadline:
            shown = ", ".join(f"{node} is {states.get(node, 'unknown')}" for node in nodes)
            wish = " or ".join(sorted(wanted))
            raise DevclusterError(
                f"not {wish} after {IDLE_LIMIT_S} s: {shown}", f"see {layout.log}/slurmctld.log"
            )
        time.sleep(0.1)


def node_states(layout: Layout) -> dict[str, str]:
    """The state of each node as sinfo names it ("idle", "down*"); empty if nobody answers."""
    result = services.run_client(layout, "sinfo", "-hN", "-p", "a100", "-o", "%N %T", limit_s=10)
    pairs = (line.split() for line in result.stdout.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def _plain_states(layout: Layout) -> set[str]:
    """The nodes' states without the marks that sinfo appends; {"unknown"} if nobody answers."""
    return {state.rstrip("*~#!%$@^-") for state in node_states(layout).values()} or {"unknown"}


def down(layout: Layout) -> None:
    """End all that this cluster started, jobs included, and remove its state but for the logs."""
    packages.require_root()
    if not layout.state_file.exists() and not processes.find(layout):
        _say(f"no cluster in {layout.root}")
        return
    ended = _end_all(layout)
    remove_contents(layout, keep=(layout.log, layout.state_file))
    _say(f"ended {ended} processes of {layout.root}; its logs stay in {layout.log}")


def _end_all(layout: Layout) -> int:
    """End jobs and daemons; returns how many processes that were."""
    found = processes.find(layout)
    steps = [process for process in found if process.is_step]
    daemons = [process for process in found if not process.is_step]
    # First those that would start jobs again, or report them ended.
    slurm = [process for process in daemons if process.name.startswith(("slurmctld", "slurmd-"))]
    processes.end(slurm, END_PATIENCE_S)
    tasks = processes.with_descendants([*steps, *processes.find_tasks(layout.slurm_conf)])
    processes.kill(tasks)
    processes.end([process for process in daemons if process not in slurm], END_PATIENCE_S)
    # A slurmd that was just forking a step may have left one more.
    late = processes.with_descendants(processes.find(layout))
    processes.kill(late)
    left = processes.find(layout)
    if left:
        shown = ", ".join(f"{process.pid} ({process.name})" for process in left)
        raise DevclusterError(
            f"these processes of the cluster do not end, even killed: {shown}",
            "they hang in the kernel; restart the machine or the container",
        )
    return len(daemons) + len(tasks) + len(late)


def status(layout: Layout) -> Status:
    """What runs in this folder, as of now."""
    options = None
    if layout.state_file.exists():
        options = Options(**json.loads(layout.state_file.read_text())["options"])
    found = processes.find(layout)
    nodes = node_states(layout) if any(p.name == "slurmctld" for p in found) else {}
    running = {process.name for process in found if not process.is_step}
    needed = {"munged", "slurmctld"}
    if options is not None and options.accounting:
        needed |= {"mariadbd", "slurmdbd"}
    return Status(
        dir=str(layout.root),
        slurm_conf=str(layout.slurm_conf),
        up=bool(nodes) and needed <= running,
        nodes=nodes,
        processes=found,
        options=options,
    )


def require_up(layout: Layout) -> Status:
    """The status of a running cluster; raises if there is none."""
    now = status(layout)
    if not now.up:
        raise DevclusterError(
            f"no cluster runs in {layout.root}", f"tools/devcluster up --dir {layout.root}"
        )
    return now


def node_down(layout: Layout, node: str, *, announce: bool = True) -> None:
    """Let a node fail: its slurmd and all its jobs' processes are killed at once.

    With ``announce`` the controller is told and acts at once. Without, it has to find out, as after
    a power failure; it takes SlurmdTimeout to.
    """
    _require_node(layout, node)
    name = services.slurmd_name(node)
    mine = [process for process in processes.find(layout) if process.name == name]
    processes.kill(processes.with_descendants(mine))
    if announce:
        _update_node(layout, node, "State=DOWN", "Reason=devcluster node-down")
    _say(f"{node}: killed slurmd and its jobs' processes")


def node_up(layout: Layout, node: str) -> None:
    """Start the slurmd of a node again and wait until the node can be used."""
    _require_node(layout, node)
    name = services.slurmd_name(node)
    if not any(p.name == name and not p.is_step for p in processes.find(layout)):
        services.start_slurmd(layout, node)
    _wait_for_nodes(layout, [node], UP_STATES)
    _say(f"{node} is {node_states(layout).get(node)}")


def restart_controller(layout: Layout) -> None:
    """End slurmctld and start it again with the state it saved; jobs go on meanwhile."""
    packages.require_root()
    options = status(layout).options
    if options is None or not any(p.name == "munged" for p in processes.find(layout)):
        require_up(layout)
    old = [process for process in processes.find(layout) if process.name == "slurmctld"]
    processes.end(old, patience_s=60)
    services.start_slurmctld(layout)
    # It asks every node anew, and starts no job on one it has not heard from.
    if not processes.wait_until(lambda: "unknown" not in _plain_states(layout), IDLE_LIMIT_S):
        raise DevclusterError(
            f"nodes do not answer the new slurmctld: {node_states(layout)}",
            f"see {layout.log}/slurmctld.log",
        )
    _say("slurmctld answers again")


def _require_node(layout: Layout, node: str) -> None:
    packages.require_root()
    names = require_up(layout).options.node_names
    if node not in names:
        raise DevclusterError(f"no node is called {node!r}", f"one of: {', '.join(names)}")


def _update_node(layout: Layout, node: str, *settings: str) -> None:
    result = services.run_client(layout, "scontrol", "update", f"NodeName={node}", *settings)
    if result.returncode != 0:
        raise DevclusterError(
            f"scontrol update {node} {' '.join(settings)}: {result.stderr.strip()}",
            f"see {layout.log}/slurmctld.log",
        )


def _say(message: str) -> None:
    """Tell the user; stdout is for results."""
    print(f"devcluster: {message}", file=sys.stderr)
