"""``mgpt4 eval --tasks``: public benchmarks, asked by lmms-eval of a server that answers here."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import ProxyHandler, Request, build_opener

import click
from click.core import ParameterSource

from mgpt4_hpc.cli.model.eval_stored import NO_PART, StoredEvaluation, files_digest, place
from mgpt4_hpc.cli.shared.options import absolute
from mgpt4_hpc.cli.shared.slurm_array_options import Array, Part
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.side_jobs.array import slice_of
from mgpt4_hpc.parent_death import die_with
from mgpt4_hpc.text_files import last_lines

if TYPE_CHECKING:
    from mgpt4_hpc.evaluation.benchmarks import ModelEndpoint
    from mgpt4_hpc.evaluation.examples import Example
    from mgpt4_hpc.evaluation.objects import Objects
    from mgpt4_hpc.evaluation.results import Evaluation
    from mgpt4_hpc.model.generation.chat_model import ModelSource

_OF_SUITES = ("suite", "images", "references", "synonyms", "html", "max_new_tokens", "temperature",
              "top_p", "beams", "repetition_penalty", "seed")  # fmt: skip
"""Options that say what a task says itself."""


@dataclass(frozen=True)
class Tasks:
    """Benchmarks.

    Attributes:
        names: tasks, groups and tags of lmms-eval's.
        folder: with further tasks.
    """

    names: tuple[str, ...]
    folder: Path | None

    @property
    def facts(self) -> dict[str, Any]:
        """What the answers depend on."""
        files = None if self.folder is None else files_digest(str(self.folder))
        return {"tasks": list(self.names), "files": files}


def choose_tasks(context: click.Context, tasks: str | None, folder: Path | None) -> Tasks | None:
    """What --tasks and --task-folder said; None without --tasks.

    Raises:
        UsageError: a name is none, or an option comes with --tasks that only the suites obey.
    """
    if tasks is None:
        if folder is not None:
            raise click.UsageError("--task-folder goes with --tasks")
        return None
    given = [
        f"--{name.replace('_', '-')}"
        for name in _OF_SUITES
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(
            f"--tasks goes without {', '.join(given)}: a task has its own questions and sampling"
        )
    names = tuple(dict.fromkeys(tasks.split(",")))
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise click.UsageError(f"{name!r} is no task: write --tasks NAME,NAME")
    return Tasks(names, None if folder is None else absolute(folder))


@dataclass(frozen=True)
class StoredTasks(StoredEvaluation):
    """Benchmarks, whose results are kept by checkpoint and task.

    Attributes:
        tasks: which.
    """

    tasks: Tasks

    def _results(self, source: ModelSource) -> list[Path]:
        return [self.folder / place(source).name / task for task in self.tasks.names]

    def _missing(self, source: ModelSource) -> list[Path]:
        return [folder for folder in self._results(source) if not folder.is_dir()]

    def num_missing(self, examples: Sequence[Example]) -> int:
        """Checkpoints that lack a result."""
        return sum(bool(self._missing(source)) for source in self.sources)

    def run_array(self, array: Array, examples: Sequence[Example]) -> str | None:
        """The same as a Slurm array, in which lmms-eval need not be installed any more."""
        if self.num_missing(examples):
            _install()  # a node may have no way to PyPI
        return super().run_array(array, examples)

    def ask(self, examples: Sequence[Example], part: Part = NO_PART) -> None:
        """Have lmms-eval do what is missing of one part of the checkpoints."""
        from mgpt4_hpc.evaluation.benchmarks import run_benchmark

        for source in slice_of(self.sources, *part):
            if not (missing := self._missing(source)):
                continue
            python = _install()
            missing[0].parent.mkdir(exist_ok=True)
            with self._serve(source, missing[0].parent) as endpoint:
                for folder in missing:
                    click.echo(f"{source.name}: {folder.name}", err=True)
                    run_benchmark(
                        python,
                        folder.name,
                        endpoint,
                        folder,
                        task_folder=self.tasks.folder,
                        limit=self.options.limit,
                        num_concurrent=self.options.batch_size,
                    )
                    with (self.folder / f"{part[0]}-tasks.log").open("a") as file:
                        file.write(f"{folder}\n")  # part_end requeues a part that writes

    def evaluations(
        self, examples: Sequence[Example], objects: Objects
    ) -> Iterator[tuple[ModelSource, Evaluation]]:
        """Each source with its scores."""
        from mgpt4_hpc.evaluation.benchmarks import read_results

        for source in self.sources:
            yield source, read_results(source.name, self._results(source))

    @contextmanager
    def _serve(self, source: ModelSource, folder: Path) -> Iterator[ModelEndpoint]:
        """``mgpt4 serve --api`` as a process of its own, which ends with this one."""
        from mgpt4_hpc.evaluation.benchmarks import ModelEndpoint

        options = self.options
        key = secrets.token_urlsafe(24)
        chosen = {"--weights": options.weights, "--template": options.template,
                  "--device": options.device, "--precision": options.precision}  # fmt: skip
        given = [f"{option}={value}" for option, value in chosen.items() if value is not None]
        log = folder / "server.log"
        with log.open("wb") as errors, subprocess.Popen(
            [sys.executable, "-m", "mgpt4_hpc.cli.main", "serve", str(place(source)),
             *("--api", "--no-page", "--port", "0"), *given],
            env={**os.environ, "MGPT4_SERVE_TOKEN": key},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=partial(die_with, os.getpid()),
        ) as server:  # fmt: skip
            assert server.stdout is not None
            try:
                url = server.stdout.readline().strip()
                if not url:
                    raise MgptError(
                        f"the server did not start: {last_lines(log)}", fix=f"read {log}"
                    )
                yield ModelEndpoint(url, key, _model(url, key))
            finally:
                server.terminate()


def _install() -> Path:
    """The Python of lmms-eval's environment."""
    from mgpt4_hpc.evaluation.benchmarks import LMMS_EVAL

    return LMMS_EVAL.ensure_environment(say=partial(click.echo, err=True))


def _model(url: str, key: str) -> str:
    """The name of the model that a server has."""
    request = Request(f"{url}/models", headers={"Authorization": f"Bearer {key}"})
    with build_opener(ProxyHandler({})).open(request, timeout=60) as reply:
        return str(json.load(reply)["data"][0]["id"])
