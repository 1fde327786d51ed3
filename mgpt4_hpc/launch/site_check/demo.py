"""The whole story on one machine: two stages, a preemption, held-out captions.

Everything is what a cluster would run; only the scheduler is missing. The runs are submitted with
the local executor, the preemption is the signal that Slurm sends, and the towers and scenes are
the shipped toy world.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mgpt4_hpc.errors import MgptError, RunLocked
from mgpt4_hpc.formatting import counted
from mgpt4_hpc.launch.site_check.trial_run import (
    Reporter,
    plan_one,
    preempt_local,
    recorded_steps,
    start,
    stop_local,
)
from mgpt4_hpc.launch.submit.plan import SubmitRequest
from mgpt4_hpc.launch.submit.submit_run import SubmittedRun
from mgpt4_hpc.output_files import lock
from mgpt4_hpc.resources import toy_world_dir
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.ledger import read_ledgers

MIN_RIGHT = 0.90
"""Share of held-out scenes with the right main object that stage 2 must reach."""

PREEMPT_AT = 0.4
"""Part of stage 1 after which it is preempted."""

_MARKER = ".made-by-mgpt4-demo"
_POLL_S = 0.2
_START_TIMEOUT_S = 120.0
_MAX_ANSWER_TOKENS = 80


@dataclass(frozen=True)
class StageResult:
    """One trained stage.

    Attributes:
        run: its directory.
        first_loss, last_loss: of the first and last logged step.
        attempts: of its ledger.
        seconds: from submission to end.
    """

    run: RunDir
    first_loss: float
    last_loss: float
    attempts: list[Attempt]
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured.

    Attributes:
        stages: both stages.
        shares: per stage the shares right, incomplete and repetitive, 0 to 1.
        rows: image, answer after stage 1, answer after stage 2, truth.
        seconds: of the whole demo.
    """

    stages: tuple[StageResult, StageResult]
    shares: tuple[dict[str, float], dict[str, float]]
    rows: list[tuple[str, str, str, str]]
    seconds: float

    @property
    def faults(self) -> list[str]:
        """Promises that did not hold."""
        first, second = self.stages
        faults = []
        if [attempt.cause for attempt in first.attempts] != ["preempted", "finished"]:
            faults.append(f"stage 1's attempts were {[a.cause for a in first.attempts]}")
        if replayed := sum(attempt.steps_replayed for attempt in first.attempts):
            faults.append(f"the preemption cost {replayed} steps")
        if self.shares[1]["right"] < MIN_RIGHT:
            faults.append(
                f"only {self.shares[1]['right']:.0%} of the main objects are right after stage 2, "
                f"{MIN_RIGHT:.0%} are promised"
            )
        for stage in (first, second):
            if not stage.last_loss < stage.first_loss:
                faults.append(f"the loss of {stage.run.name} did not fall")
        return faults


def run_demo(folder: Path, reporter: Reporter) -> DemoResult:
    """Train both stages and caption the held-out scenes.

    Args:
        folder: for the run directories; an earlier demo's are replaced.
        reporter: shows progress.

    Raises:
        MgptError: if a run fails.
    """
    started = time.monotonic()
    with _alone_in(folder):
        first = _stage(folder, "toy-stage1", reporter, preempt=True)
        second = _stage(folder, "toy-stage2", reporter, after=first.run)
    shares, rows = _caption((first, second), reporter)
    return DemoResult((first, second), shares, rows, time.monotonic() - started)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Prepare the folder, unless another demo is at work there: it would lose its runs."""
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).exists():
        raise MgptError(f"{folder} exists and was not made by the demo", fix="give another --dir")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _MARKER).open("a", encoding="utf-8") as marker:
        if not lock(marker):
            raise RunLocked(
                f"a demo is running in {folder}", fix="wait for it, or give another --dir"
            )
        for run in folder.glob("toy-stage*"):
            shutil.rmtree(run)
        yield


def _stage(
    folder: Path,
    preset: str,
    reporter: Reporter,
    *,
    after: RunDir | None = None,
    preempt: bool = False,
) -> StageResult:
    request = SubmitRequest(
        configs=(preset,),
        executor="local",
        runs_dir=folder,
        after=str(after.path) if after else None,
    )
    planned = plan_one(request, {})
    started = time.monotonic()
    job = start(planned, "local")
    config = planned.resolved.config
    reporter.begin(f"{preset} on {counted(config.launch.gpus, 'rank')}", config.train.max_steps)
    try:
        if preempt:
            _follow(job, reporter, until=int(PREEMPT_AT * config.train.max_steps))
            reporter.say("preempting stage 1: SIGTERM, as Slurm sends it")
            preempt_local(job)
        _follow(job, reporter)
    finally:
        stop_local(job)
    losses = [record["loss"] for record in recorded_steps(planned.run)]
    attempts = read_ledgers(planned.run.ledger)
    for attempt in attempts[1:]:
        before = attempts[attempt.number - 2]
        reporter.say(
            f"attempt {before.number} was {before.cause} at step {before.last_step}; "
            f"attempt {attempt.number} went on from step {attempt.restored_step}, "
            f"{attempt.steps_replayed} steps lost"
        )
    reporter.say(f"{preset}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return StageResult(planned.run, losses[0], losses[-1], attempts, time.monotonic() - started)


def _follow(job: SubmittedRun, reporter: Reporter, until: int | None = None) -> None:
    """Show progress until the job is over, or until step ``until``."""
    assert job.process is not None
    started = time.monotonic()
    while True:
        steps = recorded_steps(job.run)
        if steps:
            reporter.advance_to(int(steps[-1]["step"]), f"loss {steps[-1]['loss']:.3f}")
            if until is not None and steps[-1]["step"] >= until:
                return
        elif time.monotonic() - started > _START_TIMEOUT_S:
            raise MgptError(
                f"{job.run.name} made no step within {_START_TIMEOUT_S:.0f} s",
                fix=f"read its log: {job.run.slurm}",
            )
        code = job.process.poll()
        if code is not None:
            if code == 0 and until is None:
                return
            reason = job.run.failed.read_text() if job.run.failed.exists() else f"code {code}"
            raise MgptError(
                f"{job.run.name} ended early: {reason.strip()}",
                fix=f"read its log: {job.run.slurm}",
            )
        time.sleep(_POLL_S)


def _caption(
    stages: tuple[StageResult, StageResult], reporter: Reporter
) -> tuple[tuple[dict[str, float], dict[str, float]], list[tuple[str, str, str, str]]]:
    # The only part that computes in this process, and so the only one that needs torch here.
    import torch

    from mgpt4_hpc.evaluation.examples import load_examples
    from mgpt4_hpc.evaluation.scenes import load_scenes, score_scenes
    from mgpt4_hpc.evaluation.suites import CAPTION_INSTRUCTION, ask_all, encode_usable
    from mgpt4_hpc.model.generation.chat_model import ChatModel, find_source
    from mgpt4_hpc.model.generation.sampling import Sampling

    # Matrices this small are slower on two threads: 2 s against 61 s where others use the cores.
    torch.set_num_threads(1)
    held_out = toy_world_dir() / "heldout"
    scenes = load_scenes(held_out / "scenes.json")
    sources = [find_source(stage.run.path) for stage in stages]
    chat_model = ChatModel(sources[0], device="cpu", precision="fp32")
    pictures = encode_usable(chat_model, load_examples(held_out), batch_size=len(scenes))
    reporter.begin(f"captions for {len(scenes)} held-out scenes, twice", 2 * len(scenes))
    answers = []
    for source in sources:
        chat_model.use(source)
        sampling = Sampling(max_new_tokens=_MAX_ANSWER_TOKENS)
        answers.append(
            ask_all(chat_model, pictures, CAPTION_INSTRUCTION, sampling, batch_size=len(scenes))
        )
        reporter.advance_to(len(answers) * len(scenes))
    first, second = (
        score_scenes([a.text for a in stage], scenes, [a.stopped for a in stage])
        for stage in answers
    )
    rows = [
        (scene["image"], answers[0][number].text, answers[1][number].text, scene["reference"])
        for number, scene in enumerate(scenes)
    ]
    return (first, second), rows
