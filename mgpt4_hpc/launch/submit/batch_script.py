"""The batch script of a run, rendered by submitit from the run's configuration."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import submitit

from mgpt4_hpc.config.schema import LaunchConfig, RunConfig
from mgpt4_hpc.errors import EXIT_RESUMABLE, ConfigError, FatalTrainingError
from mgpt4_hpc.identity import RUN_ID_VARIABLE
from mgpt4_hpc.launch.job.environment import MASTER_ADDR_VARIABLE
from mgpt4_hpc.launch.job.launcher_script import gone_lines
from mgpt4_hpc.launch.job.staged_environment import PACK_VARIABLE
from mgpt4_hpc.launch.slurm.commands import NO_SCONTROL, scontrol_folder
from mgpt4_hpc.launch.slurm.sbatch_options import plain_name
from mgpt4_hpc.launch.slurm.scheduler import scheduler
from mgpt4_hpc.launch.submit.container import command_prefix, srun_options
from mgpt4_hpc.launch.submit.integrity import seal_lines
from mgpt4_hpc.ownership import shell_check
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.stop_signals import STOP_SIGNALS


class BatchExecutor(submitit.SlurmExecutor):
    """Submitit's Slurm executor, able to render where srun is not installed."""

    @classmethod
    def affinity(cls) -> int:
        """Always usable: whether Slurm is here is asked before submitting, not before rendering."""
        return 1

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return scheduler().submission(submission_file_path)

    def render(self, command: str | None = None) -> str:
        """The batch script's text, as it would be submitted; ``command`` replaces submitit's."""
        command = self._submitit_command_str if command is None else command
        return str(self._make_submission_file_text(command, "dry-run"))


def make_executor(run: RunDir, config: RunConfig, dependency: str | None = None) -> BatchExecutor:
    """Executor for jobs that run ``run`` with what ``config.launch`` asks for."""
    executor = BatchExecutor(folder=run.slurm, python=python_command(run, config))
    executor.update_parameters(**slurm_parameters(run, config, dependency))
    return executor


def python_command(run: RunDir, config: RunConfig) -> str:
    """Shell words that start a rank's Python, in its container if it has one.

    The launcher is read by a shell and not executed itself: scratch is often mounted noexec.
    """
    shim = shlex.quote(str(run.slurm / "python"))
    return " ".join(filter(None, [command_prefix(run, config), "/bin/sh", shim]))


def slurm_parameters(run: RunDir, config: RunConfig, dependency: str | None) -> dict[str, Any]:
    """Parameters of submitit's Slurm executor."""
    launch = config.launch
    per_node = launch.gpus // launch.nodes
    further = {plain_name(option): value for option, value in launch.sbatch.items()}
    dependency = join_dependencies(dependency, further.pop("dependency", None))
    parameters: dict[str, Any] = {
        "job_name": config.name,
        "partition": launch.partition,
        "account": launch.account,
        "qos": launch.qos,
        "constraint": launch.constraint,
        "exclude": launch.exclude,
        # Integer minutes: submitit's own handler cannot read "24:00:00".
        "time": launch.time_min,
        "nodes": launch.nodes,
        "ntasks_per_node": per_node,
        "cpus_per_task": launch.cpus_per_gpu,
        "mem": f"{launch.mem_gib_per_gpu * per_node}G" if launch.mem_gib_per_gpu else None,
        "signal_delay_s": launch.signal_before_s,
        "dependency": dependency,
        "stderr_to_stdout": True,
        "wckey": None,
        "setup": setup_lines(run, launch),
        "teardown": teardown_lines(run),
        # Without the first a dead rank leaves the others waiting. An sbatch --export=NONE holds for
        # srun as well, which would keep what the script exports from the tasks. And srun does not
        # take the cores from the batch options (since 22.05): each task would get one.
        "srun_args": [
            "--kill-on-bad-exit=1",
            "--export=ALL",
            f"--cpus-per-task={launch.cpus_per_gpu}",
            *srun_options(run, config.container),
        ],
        "additional_parameters": {
            "requeue": True,
            # Away from any checkout, which would win over the snapshot.
            "chdir": str(run.path),
            # Otherwise a job behind a failed one waits for ever.
            "kill-on-invalid-dep": "yes",
            **_mail(launch),
            **further,
        },
    }
    if launch.exclusive:
        parameters["exclusive"] = True
    request = _gpu_request(launch, per_node)
    if "gres" in request and "gres" in further:
        # Of another kind: preflight refuses GPUs there. The last line of a gres stands alone.
        parameters["additional_parameters"]["gres"] = f"{request.pop('gres')},{further['gres']}"
    return parameters | request


def _gpu_request(launch: LaunchConfig, per_node: int) -> dict[str, Any]:
    wanted = launch.gpu_request
    if wanted == "none":
        return {}
    if wanted == "gres" or (wanted == "auto" and launch.gpu_type):
        kind = f"gpu:{launch.gpu_type}" if launch.gpu_type else "gpu"
        return {"gres": f"{kind}:{per_node}"}
    kind = f"{launch.gpu_type}:" if launch.gpu_type else ""
    return {"gpus_per_node": f"{kind}{per_node}"}


def join_dependencies(ours: str | None, users: str | None) -> str | None:
    """What a job waits for: the user's part must not take the place of a chain's or a sweep's turn.

    Args:
        ours: as ``afterok:17``.
        users: of launch.sbatch.

    Raises:
        ConfigError: if the user's has an "or", which Slurm would apply to ours as well.
    """
    if ours and users and "?" in users:
        raise ConfigError(
            f"launch.sbatch.dependency {users!r} cannot be joined with {ours!r}",
            why="with a ? in it, Slurm starts the job as soon as any single one is met",
            fix="wait for jobs with commas between them only, which all must be met",
        )
    return ",".join(filter(None, [ours, users])) or None


def _mail(launch: LaunchConfig) -> dict[str, str]:
    wanted = {"mail-type": launch.mail_type, "mail-user": launch.mail_user}
    return {option: value for option, value in wanted.items() if value}


def setup_lines(run: RunDir, launch: LaunchConfig, python: str = sys.executable) -> list[str]:
    """Shell lines before srun."""
    # With sbatch --export=NONE the job's PATH is not that of its submission.
    slurms = f":{shlex.quote(folder)}" if (folder := scontrol_folder()) else ""
    code, markers = shlex.quote(str(run.code)), map(str, (run.failed, run.resubmit_needed))
    return [
        *shell_check(shlex.quote(str(run.path))),
        *_identity_lines(run),
        f"submitted_path=$PATH{slurms}",
        *module_lines(launch),
        *(f"export {name}={shlex.quote(value)}" for name, value in launch.env.items()),
        *launch.setup,
        "# whatever the lines above set: when srun ends badly, the last lines must still run",
        "set +e",
        "# nor may a signal to this script end it before them: bash waits for srun, then goes on",
        f"trap : {' '.join(STOP_SIGNALS)}",
        "# the lines above may have taken Slurm's commands out of PATH",
        'command -v scontrol >/dev/null || PATH="$PATH:$submitted_path"',
        "command -v scontrol >/dev/null || echo "
        f'"{NO_SCONTROL}$SLURMD_NODENAME: the job cannot requeue itself"',
        *seal_lines(run, shlex.quote(str(run.path))),
        "# the code that this run was submitted with, not what the checkout says by now",
        f'export PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1',
        "# a start that Slurm makes of a run which is over ends here",
        f"leave=$({shlex.quote(python)} -m mgpt4_hpc.launch.job.start_check "
        f'{shlex.quote(str(run.path))}) && exit "$leave"',
        *_environment_lines(run, launch, python),
        "# what an earlier start left behind: the last lines believe what they find",
        f"rm -f -- {shlex.join(markers)}",
        "# rank 0 listens on the first node, under the address that Slurm has for it",
        f'export {MASTER_ADDR_VARIABLE}="$(scontrol show node -o "$SLURMD_NODENAME" '
        "| sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')\"",
    ]


def _environment_lines(run: RunDir, launch: LaunchConfig, python: str) -> list[str]:
    """Shell lines that name the packed environment for the tasks, if it is still the same."""
    if launch.stage_env is None:
        return []
    return [
        "# what the tasks unpack on their node's disk; empty if the environment has changed",
        f"export {PACK_VARIABLE}=$({shlex.quote(python)} "
        f"-m mgpt4_hpc.launch.job.staged_environment {shlex.quote(str(run.path))})",
    ]


def _identity_lines(run: RunDir) -> list[str]:
    """Shell lines that end the job if its folder holds another run."""
    known, file = run.run_id, shlex.quote(str(run.identity_file))
    return [
        "# a folder that is read and names another run is not this job's to work in",
        f"export {RUN_ID_VARIABLE}={known}",
        f'command -p grep -qsF \'"id": "{known}\' {file}',
        "if [ $? -eq 1 ]; then",
        f'    printf "error: %s holds another run\\n" {file}',
        f"    exit {FatalTrainingError.exit_code}",
        "fi",
    ]


def module_lines(launch: LaunchConfig) -> list[str]:
    """Shell lines that load modules, also where the login shell does not hand `module` on."""
    if not launch.modules:
        return []
    known = "/etc/profile.d/lmod.sh /etc/profile.d/z00_lmod.sh /etc/profile.d/modules.sh"
    return [
        f'type module >/dev/null 2>&1 || for f in {known}; do [ -r "$f" ] && . "$f"; done',
        *(f"module load {shlex.quote(name)}" for name in launch.modules),
    ]


def teardown_lines(run: RunDir, python: str = sys.executable) -> list[str]:
    """Shell lines after srun: the last supervisor, for what no rank lived to decide."""
    path = shlex.quote(str(run.path))
    return [
        "code=$?",
        f"trap '' {' '.join(STOP_SIGNALS)}  # ignored from here on, also by the supervisor",
        *gone_lines(python, EXIT_RESUMABLE),
        f"exec {shlex.quote(python)} -m mgpt4_hpc.launch.supervise {path} --exit-code $code",
    ]
