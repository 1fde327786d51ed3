"""Every command where things are not as they should be: one table, in which each ends with a code
and a sentence, never with a traceback.

The situations: Slurm with and without accounting, a squeue that crashes, a controller that is down,
run folders of an older and of a newer version of this package, and names that a shell, a terminal
or an option parser would obey.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mgpt4_hpc.cli.main import COMMANDS
from mgpt4_hpc.run_dir import RunDir, read_json, write_json
from tests.cli.conftest import mgpt4 as mgpt4  # the fixture
from tests.cli.fakes import Ended, Mgpt4
from tests.cli.synthetic import attempt, make_run, submitted
from tests.slurm.harness import Cluster, devcluster
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

HOSTILE = "-rf $(touch pwned) `touch pwned`;'\"é\t\x1b[31m|&\\ *"
FORGOTTEN = "999999"
"""A job that no Slurm knows."""


@dataclass(frozen=True)
class Row:
    """One command line. RUN and DONE stand for runs, CONFIG for a file, EMPTY for a folder.

    Attributes:
        words: of the command.
        code: as it should end where all is well.
        other: situation to the code that it ends with there.
        asks: whether it needs Slurm's answer, so that it ends with 5 if there is none.
    """

    words: str
    code: int = 0
    other: dict[str, int] = field(default_factory=dict)
    asks: bool = False


LOCKED = {"newer": 7}
TABLE = [
    Row("submit --config CONFIG --name new --dry-run", asks=True),
    Row("submit --config CONFIG --name new --sbatch begin=now+600", asks=True),
    Row("status", asks=True),
    Row("status --json -- RUN", asks=True),
    Row("history -- RUN", other=LOCKED),
    Row("usage -- RUN", other=LOCKED),
    Row("logs -- RUN", 1),
    Row("cancel -- RUN", asks=True),
    Row("cancel --save --json -- DONE"),
    Row("resume -- DONE", other={"newer": 7, "older": 2}),
    Row("rm --dry-run -- RUN", other=LOCKED, asks=True),
    Row("rm --yes -- DONE", other=LOCKED),
    Row("ls"),
    Row("ls --json"),
    Row("tensorboard --port 1 --host 192.0.2.1 -- RUN", 1),
    Row("config explain -- RUN", other={"older": 2}),
    Row("config show -- RUN", other={"older": 2}),
    Row("report --out OUT -- RUN", other=LOCKED),
    Row("doctor", asks=True),
    Row("data check EMPTY", 1),
    Row("data stats EMPTY", 1),
    Row("data index EMPTY --out OUT/x.index", 1),
    Row("weights check EMPTY", 1),
    Row("eval -- RUN", 1),
    Row("compare -- RUN DONE", 1),
    Row("chat --checkpoint RUN missing.jpg", 1),
    Row("serve -- RUN", 1),
    Row("train --cfg-path missing.yaml", 2),
    Row("version --json"),
    Row("completion bash"),
]
ELSEWHERE = {
    "demo": "tests/integration/test_demo.py runs it; it takes no run and asks no Slurm",
    "drill": "tests/slurm/test_drill.py runs it; it makes its own run",
}


def test_the_table_has_every_command() -> None:
    named = {row.words.split()[0] for row in TABLE}
    assert named == COMMANDS.keys() - ELSEWHERE.keys()


@dataclass
class Situation:
    """A place to be in: runs and an environment."""

    name: str
    root: Path
    environ: dict[str, str]
    run: str = "one"
    done: str = "done"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def words(self, row: Row) -> list[str]:
        known = {
            "RUN": self.run,
            "DONE": self.done,
            "CONFIG": str(self.root / "tiny.yaml"),
            "EMPTY": str(self.root / "empty"),
            "OUT": str(self.root / "out"),
            "OUT/x.index": str(self.root / "out" / "x.index"),
        }
        return [known.get(word, word) for word in row.words.split()]


def situation(name: str, world: TinyWorld, conf: Path) -> Situation:
    """Two runs, one that Slurm should know of and one that is finished, in a new folder."""
    root = Path(tempfile.mkdtemp(prefix=f"mgpt4-{name}-".replace(" ", "-")))
    environ = {"SLURM_CONF": str(conf), "MGPT4_RUNS_DIR": str(root / "runs")}
    made = Situation(name, root, environ)
    (root / "empty").mkdir()
    (root / "out").mkdir()
    world.write_config(root / "tiny.yaml")
    first, done = make_run(made.runs, "one"), make_run(made.runs, "done")
    attempt(first, 1, first=1, last=5, cause="preempted")
    submitted(first, FORGOTTEN)
    attempt(done, 1, first=1, last=100, cause="finished")
    submitted(done, FORGOTTEN)
    return made


def no_accounting(tmp: Path) -> Path:
    devcluster("up", "--dir", str(tmp), "--no-accounting", "--nodes", "1")
    return tmp / "slurm.conf"


@pytest.fixture(scope="module")
def bare_conf() -> Iterator[Path]:
    """slurm.conf of a cluster that has no accounting."""
    folder = Path(tempfile.mkdtemp(prefix="mgpt4-slurm-", dir="/tmp"))
    try:
        yield no_accounting(folder)
    finally:
        devcluster("down", "--dir", str(folder))
        shutil.rmtree(folder)
        shutil.rmtree(f"{folder}-outputs", ignore_errors=True)


NAMES = ["accounting", "no accounting", "crashing squeue", "older", "newer", "hostile names"]


@pytest.fixture(scope="module", params=NAMES)
def where(
    request: pytest.FixtureRequest, cluster: Cluster, tiny_world: TinyWorld, bare_conf: Path
) -> Iterator[Situation]:
    name = request.param
    conf = bare_conf if name == "no accounting" else cluster.folder / "slurm.conf"
    made = situation(name, tiny_world, conf)
    if name == "crashing squeue":
        tool = made.root / "bin" / "squeue"
        tool.parent.mkdir()
        tool.write_text("#!/bin/sh\nkill -SEGV $$\n")
        tool.chmod(0o755)
        made.environ["PATH"] = f"{tool.parent}:{os.environ['PATH']}"
    elif name == "older":
        for run in (made.runs / "one", made.runs / "done"):
            make_older(RunDir(run))
    elif name == "newer":
        for run in (RunDir(made.runs / "one"), RunDir(made.runs / "done")):
            write_json(run.identity_file, {**read_json(run.identity_file), "format_version": 99})
    elif name == "hostile names":
        made.run, made.done = f"{HOSTILE}one", f"{HOSTILE}done"
        (made.runs / "one").rename(made.runs / made.run)
        (made.runs / "done").rename(made.runs / made.done)
        # `submit` refuses folders with control characters; the rest it must quote.
        hostile = made.root / f"runs{''.join(filter(str.isprintable, HOSTILE))}"
        made.runs.rename(hostile)
        made.environ["MGPT4_RUNS_DIR"] = str(hostile)
    yield made
    assert not list(made.root.rglob("*pwned"))
    shutil.rmtree(made.root)


def make_older(run: RunDir) -> None:
    """As a version before the first release left it: other keys, fewer files."""
    identity = read_json(run.identity_file)
    del identity["format_version"], identity["created"]
    write_json(run.identity_file, identity)
    run.config_file.write_text(run.config_file.read_text().replace("  lr:", "  init_lr:"))
    shutil.rmtree(run.attempts)
    (run.slurm / "python").unlink()
    [ledger] = run.ledger.iterdir()
    ledger.write_text(ledger.read_text().replace('"restart_count": 0, ', ""))


# pytest asks a module's fixtures once for each parameter, so each situation is made once.
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.words)
def test_it_ends_in_order(
    row: Row, where: Situation, mgpt4: Mgpt4, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(where.root)
    for name, value in where.environ.items():
        monkeypatch.setenv(name, value)
    ended = mgpt4(*where.words(row))
    blind = row.asks and where.name == "crashing squeue" and row.words.split()[0] in READERS
    expected = 5 if blind else row.other.get(where.name, row.code)
    check(ended, expected)


READERS = {"status", "cancel", "rm"}
"""They ask squeue; the others ask Slurm other questions."""


def check(ended: Ended, code: int) -> None:
    assert ended.code == code, (ended.out, ended.err)
    assert "Traceback" not in ended.out + ended.err
    assert "\x1b" not in ended.err
    if code:
        assert re.search(r"^(error: |Error: |fault: )\S", ended.out + ended.err, re.MULTILINE)


def test_the_controller_is_down(cluster: Cluster, bare_conf: Path, tiny_world: TinyWorld) -> None:
    """Exit 5 and a sentence from all that need an answer, and business as usual for the rest.

    Each of Slurm's commands takes nine seconds to give up, so all are started at once.
    """
    conf = Path(tempfile.mkdtemp()) / "slurm.conf"
    conf.write_text(re.sub(r"(?m)^SlurmctldPort=.*", "SlurmctldPort=1", bare_conf.read_text()))
    made = situation("controller down", tiny_world, conf)
    asking = [row for row in TABLE if row.asks]
    lines = [*(made.words(row) for row in asking), ["resume", "one"], ["rm", "--yes", "done"]]
    started = [start(words, made) for words in lines]
    ended = [finish(process) for process in started]
    for one in ended[:-1]:
        check(one, 5)
        assert "Unable to contact slurm controller" in one.err
    check(ended[-1], 0)  # of a finished run Slurm is not asked
    assert sorted(path.name for path in made.runs.iterdir()) == ["one"]
    shown = json.loads(next(one.out for one in ended if one.out.startswith("[\n")))
    assert shown[0]["text"] == "unknown: preempted; Slurm does not answer"
    shutil.rmtree(made.root)
    shutil.rmtree(conf.parent)


def start(words: Sequence[str], where: Situation) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", *words],
        env={**os.environ, **where.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=120)
    return Ended(process.returncode, out, err)


@pytest.mark.parametrize("accounting", [True, False])
def test_a_job_in_the_queue_is_told_cancelled_and_not_removed(
    accounting: bool,
    cluster: Cluster,
    bare_conf: Path,
    mgpt4: Mgpt4,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = cluster if accounting else Cluster(bare_conf.parent)
    monkeypatch.setenv("SLURM_CONF", asked.env["SLURM_CONF"])
    run = make_run(tmp_path, f"job{accounting}")
    submitted(run, asked.sbatch("sleep 1", "--begin=now+600"))
    here = ("--runs-dir", tmp_path)
    (row,) = mgpt4("status", "--json", *here).json
    assert (row["state"], row["source"]) == ("pending", "squeue")
    check(mgpt4("rm", "--yes", run.name, *here), 7)
    check(mgpt4("cancel", run.name, *here), 0)
    (row,) = mgpt4("status", "--json", *here).json
    assert (row["state"], row["source"]) == ("cancelled", "squeue")
    check(mgpt4("rm", "--yes", run.name, *here), 0)
    assert not run.path.exists()
