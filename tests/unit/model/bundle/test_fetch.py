"""`mgpt4 weights fetch` against a server that stands for both kinds of source and misbehaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from mgpt4_hpc.cli.model.weights import weights_command
from mgpt4_hpc.errors import ConfigError, WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle import fetch
from mgpt4_hpc.model.bundle.fetch import fetch_bundle
from mgpt4_hpc.model.bundle.published import PublishedSource
from mgpt4_hpc.model.estimates.bundle_check import check_bundle
from mgpt4_hpc.resources import toy_world_dir
from tests.cli.fakes import replace_sleep
from tests.support.shown import assert_schema
from tests.support.weights_server import WeightsServer, weights_server

VIT, QFORMER = "eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth"
TOY = toy_world_dir() / "weights"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightsServer]:
    folder = tmp_path / "served"
    shutil.copytree(TOY, folder)
    arch = Architecture.from_file(TOY / "architecture.json")
    projector = {"llama_proj.weight": torch.zeros(128, arch.projector_in),
                 "llama_proj.bias": torch.zeros(128)}  # fmt: skip
    torch.save({"model": projector}, folder / "projector.pth")
    monkeypatch.setattr(fetch, "_FIRST_PAUSE_S", 0.01)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "MGPT4_WEIGHT_SOURCES"):
        monkeypatch.delenv(name, raising=False)
    with weights_server(folder) as running:
        for module in ("file_download", "utils._http"):  # their pauses: seconds
            replace_sleep(monkeypatch, f"huggingface_hub.{module}", lambda _: None)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
                            running.url + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
        yield running


def parts(server: WeightsServer, **changes: Any) -> dict[str, PublishedSource]:
    known = {
        "vit": PublishedSource(url=f"{server.url}/files/{VIT}", file=VIT),
        "qformer": PublishedSource(url=f"{server.url}/files/{QFORMER}", file=QFORMER),
        "projector": PublishedSource(url=f"{server.url}/files/projector.pth", file="projector.pth"),
        "llm": PublishedSource(hub="some/llm"),
    }
    return known | changes


def fetched(server: WeightsServer, out: Path, **changes: Any) -> list[str]:
    said: list[str] = []
    sizes = Architecture.from_file(TOY / "architecture.json")
    fetch_bundle(parts(server, **changes), out, architecture=sizes, say=said.append)
    return said


def complete(out: Path) -> None:
    found = check_bundle(out)
    assert found.ok, found.faults
    assert found.facts["projector"] and (out / "llm" / "model.safetensors").is_file()
    assert not [path.name for path in out.parent.glob(f".{out.name}.*")]
    assert not list((out / "llm").glob(".*"))


@pytest.mark.slow
def test_a_bundle_from_both_kinds_of_source(server: WeightsServer, tmp_path: Path) -> None:
    fetched(server, tmp_path / "bundle")
    complete(tmp_path / "bundle")
    before = sum(server.asked.values())
    fetched(server, tmp_path / "bundle")
    assert sum(server.asked.values()) == before, "what is complete asks nobody"


@pytest.mark.slow
@pytest.mark.parametrize("path", [f"/files/{VIT}", "hub"])
@pytest.mark.parametrize("faults", [["cut", "cut"], [429, 429], [503], [429, "cut", 500]])
def test_what_passes_is_tried_again(
    path: str, faults: list[int | str], server: WeightsServer, tmp_path: Path
) -> None:
    if path == "hub":
        from tests.support.weights_server import COMMIT

        path = f"/some/llm/resolve/{COMMIT}/model.safetensors"
    server.faults[path] = list(faults)
    fetched(server, tmp_path / "bundle")
    complete(tmp_path / "bundle")
    assert not server.faults[path]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "hashes", "told"),
    [
        (403, True, "the server answers 403"),
        (404, True, "the server answers 404"),
        ("page", True, "bytes, the server has"),
        ("page", False, "is a web page"),
        ("short", True, "bytes, the server has"),
        ("short", False, "truncated"),
    ],
)
def test_what_does_not_pass_is_named(
    fault: int | str, hashes: bool, told: str, server: WeightsServer, tmp_path: Path
) -> None:
    server.publishes_hashes = hashes
    server.faults[f"/files/{VIT}"] = [fault]
    with pytest.raises(WeightsError, match=told) as caught:
        fetched(server, tmp_path / "bundle")
    assert "fix:" in str(caught.value) and VIT in str(caught.value)
    assert not (tmp_path / "bundle").exists()
    fetched(server, tmp_path / "bundle")  # it is fine now, and nothing wrong was kept
    complete(tmp_path / "bundle")


@pytest.mark.slow
def test_hashes_are_compared(server: WeightsServer, tmp_path: Path) -> None:
    wrong = PublishedSource(url=f"{server.url}/files/{VIT}", file=VIT, sha256="ab" * 32)
    with pytest.raises(WeightsError, match=r"sha256 is .* abab.* is published"):
        fetched(server, tmp_path / "bundle", vit=wrong)


@pytest.mark.slow
def test_a_gated_model_names_its_licence_and_keeps_no_token(
    server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "hf_secret"
    gated = PublishedSource(hub="some/llm", gated="https://example.org/licence", licence="Llama 2")
    with pytest.raises(WeightsError, match="accepted its licence") as caught:
        fetched(server, tmp_path / "bundle", llm=gated)
    assert "https://example.org/licence" in str(caught.value) and "HF_TOKEN" in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    said = fetched(server, tmp_path / "bundle", llm=gated)
    complete(tmp_path / "bundle")
    assert "hf_secret" not in "".join(said)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "served" not in path.parts]
    assert not [path for path in files if b"hf_secret" in path.read_bytes()]


@pytest.mark.slow
def test_a_local_folder_or_file_is_used_where_it_is(server: WeightsServer, tmp_path: Path) -> None:
    local = {"vit": PublishedSource(path=TOY / VIT), "llm": PublishedSource(path=TOY / "llm")}
    fetched(server, tmp_path / "bundle", **local)
    assert check_bundle(tmp_path / "bundle").ok and not server.asked[f"/files/{VIT}"]
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert manifest["llm"]["path"] == str((TOY / "llm").resolve())
    with pytest.raises(WeightsError, match="not there: /nowhere/x"):
        fetched(server, tmp_path / "other", vit=PublishedSource(path=Path("/nowhere/x")))


def test_json_has_the_fields_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {"vit": TOY / VIT, "qformer": TOY / QFORMER, "llm": TOY / "llm"}
    file = tmp_path / "sources.json"
    file.write_text(json.dumps({
        "variants": {"toy": {part: part for part in paths}},
        "sources": {part: {"path": str(path)} for part, path in paths.items()},
    }))  # fmt: skip
    monkeypatch.setenv("MGPT4_WEIGHT_SOURCES", str(file))
    words = ["fetch", "toy", "--out", str(tmp_path / "bundle"), "--json"]
    done = CliRunner().invoke(weights_command, words, catch_exceptions=False)
    assert_schema("weights fetch", json.loads(done.stdout))


@pytest.mark.slow
def test_a_call_killed_before_the_last_move_is_finished(
    server: WeightsServer, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    fetched(server, out)
    work = tmp_path / ".bundle.fetch"
    work.mkdir()
    (out / "llm").rename(work / "llm")
    fetched(server, out)
    complete(out)


# --- the file of sources ------------------------------------------------------------------------


def test_the_list_names_sources_sizes_and_licences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nowhere")
    shown = CliRunner().invoke(weights_command, ["fetch", "--list"], catch_exceptions=False).stdout
    for words in (
        "llama2-7b",
        "12.6 GiB",
        "Llama 2 Community",
        "drive.google.com",
        "eva_vit_g.pth",
    ):
        assert words in shown
    listed = CliRunner().invoke(weights_command, ["fetch", "--list", "--json"]).stdout
    assert json.loads(listed)["vicuna13b"]["llm"]["hub"] == "Vision-CAIR/vicuna"
    with pytest.raises(ConfigError, match="did you mean vicuna7b"):
        CliRunner().invoke(weights_command, ["fetch", "vicuna7", "--out", "x"],
                           catch_exceptions=False)  # fmt: skip
