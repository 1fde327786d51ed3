"""The examples of ``docs/cli.md`` that need a cluster, as they are shown, on a real Slurm."""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.data.sources.download import IMG2DATASET
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.slurm.jobs import wait_for_step
from tests.support.examples import Shell, executes, lines_of
from tests.support.hub_server import hub_server
from tests.support.image_server import image_server
from tests.support.img2dataset import img2dataset_environment
from tests.support.tiny_world import TinyWorld, toy_sized
from tests.support.trained import make_trained_run
from tests.support.url_shards import write_shards_with_urls

pytestmark = pytest.mark.slurm

LONG = 20_000
"""Steps of a run that is not to finish by itself."""


@pytest.fixture
def shell(cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path) -> Shell:
    """A folder with what the examples name, in which presets are small."""
    (tmp_path / "coco").mkdir()
    shutil.copytree(tiny_world.align / "image", tmp_path / "coco" / "val2014")
    for name in "ab":
        shutil.copy(tiny_world.align / "image" / "0.jpg", tmp_path / f"{name}.jpg")
    return Shell(tmp_path, {"SLURM_CONF": cluster.env["SLURM_CONF"], **toy_sized(tiny_world)})


def rows(shell: Shell, *names: str) -> dict[str, dict[str, Any]]:
    """What ``mgpt4 status`` says, by run."""
    told = shell.say(f"mgpt4 status --json {' '.join(names)}")
    return {row["name"]: row for row in json.loads(told)}


BOTH, SECOND, SWEEP = lines_of("submit")
STATUS, WATCH, OF_SWEEP = lines_of("status")
FOLLOW, _ = lines_of("logs")
(CANCEL,), (RESUME, RESUME_SWEEP) = lines_of("cancel"), lines_of("resume")


@executes(BOTH, STATUS, WATCH, CANCEL, RESUME)
def test_a_chain_is_watched_cancelled_and_resumed(cluster: Cluster, shell: Shell) -> None:
    shell.environ["MGPT4_TRAIN__MAX_STEPS"] = str(LONG)
    shell.run(BOTH)
    first = shell.folder / "runs" / "stage1-vicuna7b"
    shell.environ["TERM"] = "xterm"
    watch = shell.start(WATCH, terminal=True)
    wait_for_step(cluster, first, 2)
    cluster.wait_until(lambda: "running" in watch.out, 30, "the live table says so")
    watch.interrupt()
    watch.ends(0, timeout_s=30)
    told = shell.run(STATUS).out
    assert re.search(r"stage1-vicuna7b\W+running", told), told
    assert re.search(r"stage2-vicuna7b\W+\d?\W*pending", told), told

    shell.run(CANCEL)
    cluster.wait_until(lambda: not cluster.squeue(), 60, "both left the queue")
    seen = rows(shell)["stage1-vicuna7b"]
    assert seen["state"] == "cancelled" and seen["checkpoint_step"] == seen["step"]
    shell.run(RESUME)
    cluster.wait_until(lambda: len(read_ledgers(first / "ledger")) == 2, 60, "it came back")
    wait_for_step(cluster, first, seen["step"] + 1)
    assert read_ledgers(first / "ledger")[1].world_size == 2
    (limit,) = {cluster.job(job)["TimeLimit"] for job, state in cluster.squeue().items()
                if state == "RUNNING"}  # fmt: skip
    assert limit == "12:00:00"


@executes(SECOND, FOLLOW, SWEEP, OF_SWEEP, RESUME_SWEEP)
def test_a_stage_after_another_and_a_sweep(
    cluster: Cluster, shell: Shell, tiny_world: TinyWorld
) -> None:
    make_trained_run(tiny_world, shell.folder / "runs" / "stage1-vicuna7b", 1)
    shell.run(SECOND)
    follow = shell.start(FOLLOW)
    follow.ends(0)
    assert "=== stage2-vicuna7b: attempt 1" in follow.out
    assert rows(shell, "stage2-vicuna7b")["stage2-vicuna7b"]["state"] == "finished"

    shell.environ |= {"MGPT4_TRAIN__MAX_STEPS": str(LONG), "MGPT4_LAUNCH__GPUS": "1"}
    shell.run(SWEEP)
    names = {f"my-sweep-lr{lr}-seed{seed}" for lr in ("1e-4", "9e-5") for seed in (1, 2)}
    assert rows(shell, "my-sweep").keys() == names
    # Not stage 2's job, which may be completing still.
    listed = cluster.run("squeue -h -r -t PENDING,RUNNING -o %T").stdout.split()
    assert len(listed) == 4 and listed.count("PENDING") >= 2  # two at once
    told = shell.run(OF_SWEEP).out
    assert all(name in told for name in names), told

    shell.say("mgpt4 cancel my-sweep")
    cluster.wait_until(lambda: not cluster.squeue(), 60, "all of it left the queue")
    shell.run(RESUME_SWEEP)
    assert len(cluster.squeue()) == 4
    assert {row["state"] for row in rows(shell, "my-sweep").values()} <= {"pending", "running"}


DOCTOR = lines_of("doctor")


@executes(*DOCTOR)
def test_the_doctor(shell: Shell) -> None:
    every, one = (shell.run(line).out for line in DOCTOR)
    assert re.search(r"a100-preempt.*\bcpu\b", every, re.DOTALL), every
    assert str(shell.folder / "scratch" / "reader" / "runs") in one and "20 s of grace" in one


PREEMPTED, REQUEUED, _ = lines_of("drill")


@executes(PREEMPTED, REQUEUED)
def test_drills(cluster: Cluster, tmp_path: Path) -> None:
    shell = Shell(tmp_path, {"SLURM_CONF": cluster.env["SLURM_CONF"]})
    told = shell.run(REQUEUED, timeout_s=300)
    assert "drill ok: requeued then finished, no step lost" in told.out

    # It wants a GPU, and those here are pretended: its run would find each node unfit.
    drill = shell.start(PREEMPTED)
    begun: list[str] = []

    def begins() -> bool:
        # The second of its two runs may be there already, and wait.
        begun[:] = [job for job, state in cluster.squeue().items() if state == "RUNNING"]
        return bool(begun)

    cluster.wait_until(begins, 60, "its run has begun")
    (job,) = begun
    assert cluster.job(job)["Partition"] == "a100-preempt"
    drill.interrupt()
    drill.ends(130)
    assert list((shell.folder / "runs").iterdir()) == []
    cluster.wait_until(lambda: not cluster.squeue(), 60, "no job is left")


*_, TENSORBOARD = lines_of("tensorboard")
EVAL, *_ = lines_of("eval")
_, CHAT, _ = lines_of("chat")
_, SERVE = lines_of("serve")


@executes(TENSORBOARD, EVAL, CHAT, SERVE)
def test_on_a_node(cluster: Cluster, shell: Shell, tiny_world: TinyWorld) -> None:
    for name in ("stage1-vicuna7b", "stage2-vicuna7b"):
        make_trained_run(tiny_world, shell.folder / "runs" / name)
    told = shell.run(TENSORBOARD)
    (url,) = re.findall(r"http://[^\s?]+", told.out)
    assert json.loads(get(f"{url}data/environment"))["window_title"] == "mgpt4"

    serve = shell.start(SERVE, terminal=True)
    evaluation = shell.start(EVAL)
    chat = shell.start(CHAT)  # nobody types anything
    chat.ends(0)
    assert "2 images" in chat.err
    evaluation.ends(0)
    assert "stage2-vicuna7b step-00000012, 24 images" in evaluation.out
    assert (shell.folder / "failures.html").is_file()
    ready = r"base_url: (http://\S+)\s+(http://\S+)\s"  # the API's address, and the page's
    cluster.wait_until(lambda: re.search(ready, serve.out), 120, "the addresses")
    ((api, url),) = re.findall(ready, serve.out)
    assert "ssh -N -L" in serve.out and "gradio" in get(url)
    assert json.loads(get(f"{api}/models"))["data"][0]["id"] == "stage2-vicuna7b"
    serve.interrupt()
    serve.ends(0)
    cluster.wait_until(lambda: len(cluster.squeue()) == 1, 60, "only TensorBoard is left")


def get(url: str) -> str:
    """A page of a node, which is this machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url.replace("localhost", "127.0.0.1"), timeout=30) as answer:
        return answer.read().decode()


_, DOWNLOAD = lines_of("data download")
_, FETCH = lines_of("data fetch")
_, INDEX = lines_of("data index")
_, ENCODE = lines_of("data encode")


@executes(FETCH)
def test_a_fetch_in_parts(cluster: Cluster, shell: Shell) -> None:
    shell.environ["HF_HUB_OFFLINE"] = "0"
    with hub_server({f"{number}.tar": bytes(1024) for number in range(3)}) as hub:
        urls = [f"{hub.url}/plain/{number}.tar" for number in range(3)]
        (shell.folder / "urls.txt").write_text("\n".join(urls))
        told = shell.run(FETCH)
    assert "3 of 3 files of a list of URLs" in told.out


_, RECAPTION = lines_of("data recaption")


@executes(RECAPTION)
def test_other_captions_in_parts(cluster: Cluster, shell: Shell) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_shards_with_urls(shell.folder / "data" / "cc12m")
    columns = {"key": [f"{number:03d}" for number in range(3)], "caption": ["new"] * 3}
    parquet.write_table(pyarrow.table(columns), shell.folder / "blip.parquet")
    told = shell.run(RECAPTION)
    assert "blip: 3 of 4 samples (75.0%) in 2 shards" in told.out


@executes(DOWNLOAD, INDEX, ENCODE)
def test_data_in_parts(cluster: Cluster, shell: Shell) -> None:
    import pyarrow
    from pyarrow import parquet

    shell.environ[IMG2DATASET.variable] = str(img2dataset_environment())
    (shell.folder / "laion_urls").mkdir()
    with image_server() as server:
        urls = [server.url("good", number) for number in range(20)]
        table = pyarrow.table({"url": urls, "caption": urls})
        parquet.write_table(table, shell.folder / "laion_urls" / "00000.parquet")
        shell.run(DOWNLOAD)
    told = shell.run(INDEX)
    assert "laion.index: 20 samples in 1 shard, 0 quarantined" in told.out
    told = shell.run(ENCODE)
    assert re.search(r"features: 6\d samples, 0 missing", told.out), told.out
