"""The examples of ``docs/cli.md`` that train, serve or download on this machine, as they are shown.

What has no end of its own is waited for, and ended with Ctrl-C.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mgpt4_hpc.data.sources.download import IMG2DATASET
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.support.examples import Shell, Typed, executes, lines_of
from tests.support.hub_server import hub_server
from tests.support.image_server import image_server
from tests.support.img2dataset import img2dataset_environment
from tests.support.runs import wait_until
from tests.support.shown import assert_schema
from tests.support.tiny_world import REFERENCE, TinyWorld, toy_sized
from tests.support.url_shards import write_shards_with_urls

UP_S = 120


@pytest.fixture(scope="module")
def shell(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder with weights and data, in which presets are small; runs are left by a test's."""
    shell = Shell(tmp_path_factory.mktemp("examples"), toy_sized(tiny_world))
    bundle = shell.folder / "data" / "vicuna7b-bundle"
    shell.environ["MGPT4_MODEL__WEIGHTS"] = str(bundle)
    shutil.copytree(REFERENCE, bundle)  # with a projector, for stage 2 to start from
    shutil.copy(tiny_world.weights / "architecture.json", bundle)
    shutil.copy(tiny_world.align / "image" / "0.jpg", shell.folder / "photo.jpg")
    return shell


@pytest.fixture(scope="module")
def runs(shell: Shell) -> Path:
    """The runs that ``mgpt4 train`` makes; both stages at once, as on one's own machine."""
    both = [shell.start(line) for line in lines_of("train")]
    for typed in both:
        typed.ends(0)
    return shell.folder / "runs"


@executes(*lines_of("train"))
def test_training_without_a_scheduler(runs: Path) -> None:
    for stage, ranks in ((1, 4), (2, 1)):
        (attempt,) = read_ledgers(runs / f"stage{stage}-vicuna7b" / "ledger")
        assert (attempt.cause, attempt.world_size, attempt.last_step) == ("finished", ranks, 4)


@contextmanager
def interrupted(typed: Typed, code: int) -> Iterator[Typed]:
    """An endless command, ended with Ctrl-C in the end."""
    try:
        yield typed
        assert typed.process.poll() is None, typed.err
        typed.interrupt()
        typed.ends(code, timeout_s=30)
    finally:
        typed.kill()


def address(typed: Typed) -> str:
    """Where it says that its page is."""
    found: list[str] = []

    def told() -> bool:
        assert typed.process.poll() is None, typed.err
        found[:] = re.findall(r"http://[^\s?]+", typed.out)
        return bool(found)

    wait_until(told, UP_S, f"{typed.line} says its address")
    return found[0].replace("localhost", "127.0.0.1")


def get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as answer:
        return answer.read().decode()


ALL, ONE, _ = lines_of("tensorboard")
SERVE, _ = lines_of("serve")
CHAT, *_ = lines_of("chat")


@executes(ALL, ONE, SERVE, CHAT)
def test_pages_and_a_conversation_until_ctrl_c(shell: Shell, runs: Path) -> None:
    with ExitStack() as stack:
        chat = shell.start(CHAT, subprocess.PIPE)
        stack.callback(chat.kill)
        serve = stack.enter_context(interrupted(shell.start(SERVE), 0))
        every = stack.enter_context(interrupted(shell.start(ALL), 0))
        one = stack.enter_context(interrupted(shell.start(ONE), 0))
        assert chat.process.stdin is not None
        chat.process.stdin.write(b"What is this?\n")
        chat.process.stdin.flush()

        assert address(one).endswith(":6010/")
        for page, listed in ((every, {"stage1-vicuna7b", "stage2-vicuna7b"}),
                             (one, {"stage1-vicuna7b"})):  # fmt: skip
            shown = json.loads(get(f"{address(page)}data/runs"))
            assert {name.partition("/")[0] for name in shown} == listed
        assert "gradio" in get(address(serve))
        wait_until(lambda: chat.out.endswith("\n"), UP_S, "an answer")
        chat.interrupt()  # which ends an answer, and not the conversation
        wait_until(lambda: "/quit or Ctrl-D leaves" in chat.err, 30, "it says how to leave")
        chat.process.stdin.close()
        chat.ends(0)


DOWNLOAD, _ = lines_of("data download")


@executes(DOWNLOAD)
def test_a_download(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    shell = Shell(tmp_path, {IMG2DATASET.variable: str(img2dataset_environment())})
    (tmp_path / "cc_sbu_urls").mkdir()
    with image_server() as server:
        urls = [server.url("good", number) for number in range(20)]
        table = pyarrow.table({"url": urls, "caption": urls})
        parquet.write_table(table, tmp_path / "cc_sbu_urls" / "00000.parquet")
        told = shell.run(DOWNLOAD)
    assert (tmp_path / "data" / "cc_sbu" / "00000.tar").is_file()
    assert re.search(r"got\W+20\W+100\.0%", told.out)


FETCH, _ = lines_of("data fetch")


@executes(FETCH)
def test_a_fetch(tmp_path: Path) -> None:
    files = {f"cc3m-{kind}-0000.tar": bytes(1024) for kind in ("train", "validation")}
    with hub_server(files) as hub:
        hub.repo = "pixparse/cc3m-wds"
        told = Shell(tmp_path, {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}).run(FETCH)
    assert [path.name for path in (tmp_path / "data" / "cc3m").glob("*.tar")] == [
        "cc3m-train-0000.tar"
    ]
    assert "1 of 1 file of hf:pixparse/cc3m-wds" in told.out


RECAPTION, _ = lines_of("data recaption")


@executes(RECAPTION)
def test_other_captions(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {})
    write_shards_with_urls(tmp_path / "cc_sbu")
    listed = [{"url": f"http://x/{number}", "caption": f"new {number}"} for number in range(3)]
    (tmp_path / "ccs_filtered.json").write_text(json.dumps(listed))
    told = shell.run(RECAPTION)
    assert "cc_sbu_blip: 3 of 4 samples (75.0%) in 2 shards" in told.out
    assert "1 x the list has no caption for it" in told.out
    assert_schema("data recaption", json.loads(shell.say(f"{RECAPTION} --json")))


*_, DRILL = lines_of("drill")


@executes(DRILL)
def test_a_drill_without_slurm(tmp_path: Path) -> None:
    told = Shell(tmp_path, {}).run(DRILL, timeout_s=300)
    assert "drill ok: preempted then finished, no step lost" in told.out
    assert list((tmp_path / "runs").iterdir()) == []
