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

from mgpt4_hpc.data.sources.convert import convert_captions
from mgpt4_hpc.data.sources.download import IMG2DATASET
from mgpt4_hpc.run_dir import RunDir, read_json, write_json
from tests.cli.fakes import Ended, Mgpt4
from tests.cli.synthetic import attempt, make_run, submitted, write_original, write_pairs
from tests.slurm.harness import Cluster, devcluster
from tests.support.img2dataset import img2dataset_environment
from tests.support.runs import patience
from tests.support.shown import contracts
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

HOSTILE = "-rf $(touch pwned) `touch pwned`;'\"é\t\x1b[31m|&\\ *"
FORGOTTEN = "999999"
"""A job that no Slurm knows."""


@dataclass(frozen=True)
class Row:
    """One command line. RUN and DONE stand for runs, words in capitals for files and folders.

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
    Row("keep --json -- DONE"),
    Row("rm --dry-run -- RUN", other=LOCKED, asks=True),
    Row("weights export --format pth --out OUT/x.pth -- DONE", 1),
    Row("rm --yes -- DONE", other=LOCKED),
    Row("ls"),
    Row("ls --json"),
    Row("tensorboard --port 1 --host 192.0.2.1 -- RUN", 1),
    Row("config explain -- RUN", other={"older": 2}),
    Row("config show -- RUN", other={"older": 2}),
    Row("report --out OUT -- RUN", other=LOCKED),
    Row("doctor", asks=True),
    Row("demo --dir CONFIG", 2),
    Row("drill --partition nowhere --device cpu", 3, asks=True),
    Row("config import ORIGINAL"),
    Row("config keys"),
    Row("config presets"),
    Row("config schema"),
    Row("config sites"),
    Row("data check SHARDS"),
    Row("data check EMPTY", 1),
    Row("data convert PAIRS --out OUT/list"),
    Row("data download EMPTY --out OUT/shards", 1),
    Row("data fetch EMPTY --out OUT/fetched", 1),
    Row("data recaption SHARDS --captions missing.csv --by key --out OUT/recaptioned", 1),
    Row("data encode CONFIG --out OUT/features --dry-run"),
    Row("data encode --out OUT/none --dry-run -- RUN", 1, other={"older": 2}),
    Row("data index SHARDS --out OUT/x.index"),
    Row("data index EMPTY --out OUT/y.index", 1),
    Row("data pack ALIGN --out OUT/packed"),
    Row("data stats SHARDS --contact-sheet OUT/sheet.png"),
    Row("weights fetch --list"),
    Row("weights check WEIGHTS"),
    Row("weights check EMPTY", 1),
    Row("weights import --vit VIT --qformer QFORMER --llm LLM --out OUT/bundle"),
    Row("eval -- RUN", 1),
    Row("compare -- RUN DONE", 1),
    Row("chat --checkpoint RUN missing.jpg", 1),
    Row("serve -- RUN", 1),
    Row("train --cfg-path missing.yaml", 2),
    Row("version --json"),
    Row("completion bash"),
]


def command_of(words: str) -> str:
    first, second, *_ = [*words.split(), ""]
    return first if first in contracts() else f"{first} {second}"


def test_the_table_has_every_command() -> None:
    assert {command_of(row.words) for row in TABLE} == contracts().keys()


@dataclass
class Situation:
    """A place to be in: runs and an environment."""

    name: str
    root: Path
    environ: dict[str, str]
    run: str = "one"
    done: str = "done"
    material: str = "material"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def words(self, row: Row) -> list[str]:
        known = {
            "RUN": self.run,
            "DONE": self.done,
            "CONFIG": str(self.root / "tiny.yaml"),
            "EMPTY": str(self.root / "empty"),
            **{name: str(self.root / self.material / path) for name, path in MATERIAL.items()},
        }
        return [known.get(word, self._out(word)) for word in row.words.split()]

    def _out(self, word: str) -> str:
        name = word.removeprefix("OUT")
        return word if name == word else f"{self.root / self.material / 'out'}{name}"


MATERIAL = {
    "SHARDS": "shards",
    "ALIGN": "align",
    "WEIGHTS": "weights",
    "VIT": "weights/eva_vit_g.pth",
    "QFORMER": "weights/blip2_pretrained_flant5xxl.pth",
    "LLM": "weights/llm",
    "PAIRS": "pairs.json",
    "LISTS": "lists",
    "ORIGINAL": "train_configs/minigpt4_stage1_pretrain.yaml",
}
"""What is there, below a folder whose name may be hostile."""


def situation(name: str, world: TinyWorld, conf: Path) -> Situation:
    """Two runs, one that Slurm should know of and one that is finished, in a new folder."""
    root = Path(tempfile.mkdtemp(prefix=f"mgpt4-{name}-".replace(" ", "-")))
    environ = {"SLURM_CONF": str(conf), "MGPT4_RUNS_DIR": str(root / "runs")}
    made = Situation(name, root, environ)
    (root / "empty").mkdir()
    material = root / made.material
    shutil.copytree(world.shards("laion"), material / "shards")
    shutil.copytree(world.align, material / "align")
    shutil.copytree(world.weights, material / "weights")
    (material / "out").mkdir()
    write_pairs(material / "pairs.json")
    convert_captions(material / "pairs.json", material / "lists")
    write_original(material)
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


NAMES = [
    *("accounting", "no accounting", "crashing squeue", "controller down"),
    *("older", "newer", "hostile names"),
]


@pytest.fixture(scope="module")
def where(
    request: pytest.FixtureRequest, cluster: Cluster, tiny_world: TinyWorld, bare_conf: Path
) -> Iterator[Situation]:
    name = request.param
    conf = bare_conf if name == "no accounting" else cluster.folder / "slurm.conf"
    made = situation(name, tiny_world, conf)
    if name == "crashing squeue":
        crash_squeue(made)
    elif name == "controller down":
        silent_conf(made)
    elif name == "older":
        for run in (made.runs / "one", made.runs / "done"):
            make_older(RunDir(run))
    elif name == "newer":
        for run in (RunDir(made.runs / "one"), RunDir(made.runs / "done")):
            write_json(run.identity_file, {**read_json(run.identity_file), "format_version": 99})
    elif name == "hostile names":
        make_hostile(made)
    yield made
    assert not list(made.root.rglob("*pwned"))
    shutil.rmtree(made.root)


def silent_conf(made: Situation) -> None:
    """Point Slurm's commands to where no controller listens."""
    conf = Path(made.environ["SLURM_CONF"])
    silent = made.root / "slurm.conf"
    silent.write_text(re.sub(r"(?m)^SlurmctldPort=.*", "SlurmctldPort=1", conf.read_text()))
    made.environ["SLURM_CONF"] = str(silent)


def crash_squeue(made: Situation) -> None:
    tool = made.root / "bin" / "squeue"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nkill -SEGV $$\n")
    tool.chmod(0o755)
    made.environ["PATH"] = f"{tool.parent}:{os.environ['PATH']}"


def make_hostile(made: Situation) -> None:
    """Names of runs and folders that a shell, a terminal or an option parser would obey."""
    made.run, made.done = f"{HOSTILE}one", f"{HOSTILE}done"
    (made.runs / "one").rename(made.runs / made.run)
    (made.runs / "done").rename(made.runs / made.done)
    # Folders with control characters or backslashes are refused; the rest must be quoted.
    printable = "".join(filter(str.isprintable, HOSTILE)).replace("\\", "")
    hostile = made.root / f"runs{printable}"
    made.runs.rename(hostile)
    made.environ["MGPT4_RUNS_DIR"] = str(hostile)
    (made.root / made.material).rename(made.root / f"material{printable}")
    made.material = f"material{printable}"


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


CELLS = [
    pytest.param(name, row, id=f"{name}-{row.words}")
    for name in NAMES
    for row in TABLE
    if not (row.asks and name == "controller down")  # test_the_controller_is_down asks them at once
]


# pytest makes a module's fixtures once for each parameter, so each situation is made once.
@pytest.mark.parametrize(("where", "row"), CELLS, indirect=["where"])
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


ON_NODES = [
    Row("tensorboard --slurm -- RUN"),
    Row("eval --slurm -- RUN"),
    Row("compare --slurm -- RUN DONE"),
    Row("chat --slurm --checkpoint RUN missing.jpg"),
    Row("serve --slurm -- RUN"),
    Row("data index SHARDS --out OUT/slurm.index --slurm"),
    Row("data encode CONFIG --out OUT/slurm --slurm"),
    Row("data download LISTS --out OUT/slurm-shards --slurm"),
]
"""What asks Slurm only if it is told to use its nodes."""


def test_the_controller_is_down(cluster: Cluster, bare_conf: Path, tiny_world: TinyWorld) -> None:
    """Exit 5 and a sentence from all that need an answer.

    Each of Slurm's commands takes nine seconds to give up, so all are started at once.
    """
    made = situation("controller down", tiny_world, bare_conf)
    silent_conf(made)
    made.environ[IMG2DATASET.variable] = str(img2dataset_environment())
    asking = [row for row in TABLE if row.asks]
    lines = [*(made.words(row) for row in [*asking, *ON_NODES]), ["resume", "one"],
             ["rm", "--yes", "done"]]  # fmt: skip
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


def start(words: Sequence[str], where: Situation) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", *words],
        env={**os.environ, **where.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=120 * patience())
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


def test_jobs_of_other_commands_where_all_of_this_comes_together(
    bare_conf: Path, tiny_world: TinyWorld
) -> None:
    """No accounting, no squeue, and hostile names: files alone tell what became of a job."""
    made = situation("together", tiny_world, bare_conf)
    crash_squeue(made)
    make_hostile(made)
    words = {
        "index": "data index SHARDS --out OUT/x.index --slurm --parts 2 --time 5 --json",
        "eval": "eval --slurm --gpus 1 --device cpu -- RUN",
        "tensorboard": "tensorboard --slurm --time 5 --json -- RUN",
    }
    started = {name: start(made.words(Row(line)), made) for name, line in words.items()}
    ended = {name: finish(process) for name, process in started.items()}
    check(ended["index"], 0)
    assert ended["index"].json["num_samples"] == 96
    check(ended["eval"], 1)
    assert "(RUN/checkpoints/step-N)" in ended["eval"].err
    check(ended["tensorboard"], 0)
    assert ended["tensorboard"].json["runs"] == [made.run]
    assert "it ended with code -11" in ended["tensorboard"].err
    bare = Cluster(bare_conf.parent)
    board = ended["tensorboard"].json["job_id"]
    bare.run(["scancel", board])
    bare.wait_until(lambda: board not in bare.squeue(), 60, "nothing writes here any more")
    assert not list(made.root.rglob("*pwned"))
    shutil.rmtree(made.root)
