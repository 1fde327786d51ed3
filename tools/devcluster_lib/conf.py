"""The text of the cluster's configuration files.

Every choice that differs from Slurm's default says why. What makes the pretended GPUs and several
slurmd on one host work was found by trying it on Debian's Slurm 22.05 and later.
"""

import dataclasses
import socket
from pathlib import Path

from devcluster_lib.layout import Layout, Options

ACCOUNT = "devaccount"
DATABASE = "slurm_acct_db"
# A node with four A100, as clusters have them. config_overrides makes Slurm believe it.
CPUS_PER_NODE = 64
MEMORY_PER_NODE_MB = 512_000


@dataclasses.dataclass(frozen=True)
class Ports:
    """TCP ports on 127.0.0.1; ``slurmd`` has one for each node."""

    slurmctld: int
    slurmdbd: int
    slurmd: tuple[int, ...]


def slurm_conf(layout: Layout, options: Options, ports: Ports, plugins: Path | None) -> str:
    """slurm.conf for the daemons and for every client; ``plugins`` is their folder, if known."""
    host = socket.gethostname().split(".")[0]
    # From Slurm 23 on also PreemptParameters=send_user_signal; this name is understood by all.
    user_signal = "SlurmctldParameters=preempt_send_user_signal" if options.send_user_signal else ""
    # Slurm suspends by its gang scheduler only.
    gang = ",GANG" if options.preempt_mode == "SUSPEND" else ""
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
        f" CPUs={CPUS_PER_NODE} Sockets=2 CoresPerSocket={CPUS_PER_NODE // 2} ThreadsPerCore=1"
        f" RealMemory={MEMORY_PER_NODE_MB}"
        f" Gres=gpu:a100:{options.gpus_per_node} Feature=a100,a100_80g State=UNKNOWN"
        for name, port in zip(options.node_names, ports.slurmd, strict=True)
    )
    return f"""\
ClusterName={options.cluster_name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports.slurmctld}
SlurmUser=root
SlurmdUser=root
{_other_release(layout, plugins)}

# A munged of our own. cred_expire is also how long a requeued job must wait (default: 120 s).
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={layout.munge_socket},cred_expire=5

StateSaveLocation={layout.controller_state}
SlurmdSpoolDir={layout.spool}/%n
SlurmctldPidFile={layout.run}/slurmctld.pid
SlurmdPidFile={layout.run}/slurmd-%n.pid
SlurmctldLogFile={layout.log_of("slurmctld")}
SlurmdLogFile={layout.log_of("slurmd-%n")}
SlurmctldDebug=info
SlurmdDebug=info

# Neither cgroups nor real GPUs nor real cores.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={MEMORY_PER_NODE_MB // CPUS_PER_NODE}

# A node that was set down comes back as soon as its slurmd does.
ReturnToService=2
SlurmdTimeout=30
InactiveLimit=0
# Tests look at jobs that ended; on a busy machine that is later than the default of 300 s.
MinJobAge=3600

# As on a cluster, but without the waits between scheduler passes.
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
PriorityType=priority/basic
# Refused at submission, as sites have it, and not left pending for ever.
EnforcePartLimits=ALL
JobRequeue=1
OverTimeLimit=0
KillWait={options.kill_wait_s}
PreemptType=preempt/partition_prio
PreemptMode={options.preempt_mode}{gang}
{user_signal}

{_accounting(layout, options, ports)}

{nodes}
PartitionName=a100 Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF \
DefaultTime=60 MaxTime=2-00:00:00 State=UP
PartitionName=a100-preempt Nodes=ALL PriorityTier=1 PreemptMode={options.preempt_mode} \
GraceTime={options.grace_s} DefaultTime=60 MaxTime=2-00:00:00 State=UP
# Neither preempts nor is preempted, as where sites send what needs no GPU.
PartitionName=cpu Nodes=ALL PriorityTier=1 PreemptMode=OFF \
DefaultTime=60 MaxTime=2-00:00:00 State=UP
"""


def _accounting(layout: Layout, options: Options, ports: Ports) -> str:
    if not options.accounting:
        return (
            "AccountingStorageType=accounting_storage/none\nJobAcctGatherType=jobacct_gather/none"
        )
    return f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports.slurmdbd}
AccountingStoragePass={layout.munge_socket}
AccountingStorageTRES=gres/gpu,gres/gpu:a100
# As sites have it: an unknown --account or --qos is refused at submission.
AccountingStorageEnforce=associations,qos
JobAcctGatherType=jobacct_gather/linux"""


def gres_conf(layout: Layout, options: Options) -> str:
    """gres.conf: the device nodes stand in for GPUs, so tasks get CUDA_VISIBLE_DEVICES."""
    files = f"{layout.dev}/a100_[0-{options.gpus_per_node - 1}]"
    return "AutoDetect=off\n" + "".join(
        f"NodeName={name} Name=gpu Type=a100 File={files}\n" for name in options.node_names
    )


def _other_release(layout: Layout, plugins: Path | None) -> str:
    return f"{_plugin_dir(plugins)}\nTaskProlog={layout.task_prolog}" if plugins else ""


def _plugin_dir(plugins: Path | None) -> str:
    return f"PluginDir={plugins}" if plugins else ""


def task_prolog(layout: Layout) -> str:
    """A script that puts this release's commands first where ``--export`` hid the user's PATH.

    Slurm runs it before each batch script and task, and adds what it prints to their environment.
    """
    return f"""\
#!/bin/sh
case ":$PATH:" in
*:{layout.clients}:*) ;;
*) echo "export PATH={layout.clients}:$PATH" ;;
esac
"""


def slurmdbd_conf(layout: Layout, ports: Ports, plugins: Path | None) -> str:
    """slurmdbd.conf; slurmdbd finds MariaDB's socket through MYSQL_UNIX_PORT."""
    return f"""\
AuthType=auth/munge
AuthInfo=socket={layout.munge_socket}
DbdHost={socket.gethostname().split(".")[0]}
DbdAddr=127.0.0.1
DbdPort={ports.slurmdbd}
SlurmUser=root
PidFile={layout.run}/slurmdbd.pid
LogFile={layout.log_of("slurmdbd")}
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc={DATABASE}
{_plugin_dir(plugins)}
"""
