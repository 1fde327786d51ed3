"""What the load would refuse is refused by import, check and submit, with file, tensor and fix."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.launch.submit.preflight_files import weights_findings
from mgpt4_hpc.model.bundle.writer import write_bundle
from mgpt4_hpc.model.conversion.parts import original_sources
from mgpt4_hpc.model.estimates.bundle_check import check_bundle
from mgpt4_hpc.model.llm_files.check import check_llm
from mgpt4_hpc.model.weight_files.untrusted_files import read_pth
from mgpt4_hpc.resources import toy_world_dir

NORM, QUERY = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"
PAGE, POINTER = b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\n"
Change = Callable[[Path, dict[str, torch.Tensor]], None]


def settings(llm: Path, **changes: Any) -> None:
    path = llm / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def as_bin(llm: Path, tensors: dict[str, torch.Tensor]) -> None:
    (llm / "model.safetensors").unlink(missing_ok=True)
    torch.save(tensors, llm / "pytorch_model.bin")


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def wrong_shape(llm: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors[QUERY] = torch.zeros(64, 128, dtype=torch.float16)


def one_row_more(llm: Path, tensors: dict[str, torch.Tensor]) -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:1]])


def renamed(front: str) -> Change:
    def change(_llm: Path, tensors: dict[str, torch.Tensor]) -> None:
        for key in list(tensors):
            tensors[front + key] = tensors.pop(key)

    return change


def gptq(llm: Path, tensors: dict[str, torch.Tensor]) -> None:
    for key in [key for key in tensors if "_proj" in key]:
        value = tensors.pop(key)
        shape = (value.shape[1] // 8, value.shape[0])
        tensors[key.replace(".weight", ".qweight")] = torch.zeros(shape, dtype=torch.int32)


def bitsandbytes(llm: Path, tensors: dict[str, torch.Tensor]) -> None:
    for key in [key for key in tensors if "_proj" in key]:
        tensors[key] = torch.zeros(tensors[key].numel() // 2, 1, dtype=torch.uint8)
        tensors[f"{key}.absmax"] = torch.zeros(8)


def integers(llm: Path, tensors: dict[str, torch.Tensor]) -> None:
    tensors[QUERY] = tensors[QUERY].to(torch.int8)


def drop(key: str) -> Change:
    def change(_llm: Path, tensors: dict[str, torch.Tensor]) -> None:
        del tensors[key]

    return change


def tied(llm: Path, tensors: dict[str, torch.Tensor]) -> None:
    settings(llm, tie_word_embeddings=True)
    del tensors["lm_head.weight"]


FAULTS: dict[str, tuple[Change, list[str]]] = {
    "shape": (wrong_shape, [QUERY, "64 x 128", "128 x 128", "FILE"]),
    "vocabulary": (one_row_more, ["model.embed_tokens.weight", "641 x 128", "640 x 128", "FILE"]),
    "missing": (drop(NORM), [NORM]),
    "no head": (drop("lm_head.weight"), ["lm_head.weight", "tie_word_embeddings"]),
    "module.": (renamed("module."), ["'module.'", "FILE"]),
    "a compiled model": (renamed("_orig_mod."), ["'_orig_mod.'", "FILE"]),
    "gptq": (gptq, ["qweight", "quantized", "FILE"]),
    "bitsandbytes": (bitsandbytes, ["absmax", "quantized", "FILE"]),
    "integers": (integers, [QUERY, "I8", "FILE"]),
    "heads": (
        lambda llm, _: settings(llm, num_attention_heads=5),
        ["config.json", "num_attention_heads 5"],
    ),
    "key heads": (
        lambda llm, _: settings(llm, num_key_value_heads=2),
        ["k_proj.weight", "128 x 128", "64 x 128", "FILE"],
    ),
    "layers": (
        lambda llm, _: settings(llm, num_hidden_layers=5),
        ["model.layers.4.mlp.down_proj.weight"],
    ),
    "quantization_config": (
        lambda llm, _: settings(llm, quantization_config={"quant_method": "awq", "bits": 4}),
        ["config.json", "awq", "quantized"],
    ),
    "no tensors": (lambda _, tensors: tensors.clear(), ["FILE", "no tensors"]),
    "empty quantization_config": (
        lambda llm, _: settings(llm, quantization_config={}),
        ["config.json", "quantized"],
    ),
    "activation": (lambda llm, _: settings(llm, hidden_act="none"), ["cannot build", "'none'"]),
    "padding": (lambda llm, _: settings(llm, pad_token_id=640), ["cannot build", "padding"]),
    "family": (lambda llm, _: settings(llm, model_type="clip"), ["cannot build", "CLIPConfig"]),
    "logits": (lambda llm, _: settings(llm, logit_scale=0.5), ["logit_scale = 0.5"]),
    "adapter": (
        lambda llm, _: (llm / "adapter_config.json").write_text("{}") and None,
        ["adapter_config.json", "merge"],
    ),
}


def refused(weights: Path, words: list[str]) -> None:
    """Import, check and submit all name it; nothing is left of the import."""
    bundle = weights.parent / "bundle"
    with pytest.raises(WeightsError) as caught:
        write_bundle(bundle, original_sources(weights))
    config = load_config("toy-stage1", overrides={"model.weights": str(weights)}).config
    for message in (
        str(caught.value),
        "\n".join(check_bundle(weights).faults),
        "\n".join(weights_findings(config)[0]),
    ):
        assert not [word for word in words if word not in message], message
        assert re.search(r"fix: \S|\([a-z]+ \w+.*\)$", message, re.DOTALL), message
    assert [path.name for path in weights.parent.iterdir()] == ["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("name", FAULTS)
def test_language_model(name: str, kind: str, weights: Path) -> None:
    change, words = FAULTS[name]
    llm = weights / "llm"
    tensors = load_file(llm / "model.safetensors")
    change(llm, tensors)
    if kind.endswith(".bin"):
        as_bin(llm, tensors)
    else:
        save_file(tensors, llm / kind, {"format": "pt"})
    refused(weights, [word.replace("FILE", str(llm / kind)) for word in words])


def shards(llm: Path) -> tuple[dict[str, torch.Tensor], Path, dict[str, str]]:
    """The model in two files and an index: its tensors, the index, and what that says."""
    tensors = load_file(llm / "model.safetensors")
    (llm / "model.safetensors").unlink()
    index = {key: f"model-{1 + number % 2}.safetensors" for number, key in enumerate(tensors)}
    for file in set(index.values()):
        save_file({key: tensors[key] for key in tensors if index[key] == file}, llm / file)
    named = llm / "model.safetensors.index.json"
    named.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return tensors, named, index


def test_an_index_that_the_load_would_not_follow(weights: Path) -> None:
    tensors, named, index = shards(weights / "llm")
    first = next(iter(tensors))
    for content, word in (
        ({"metadata": None, "weight_map": index}, '"metadata"'),
        ({"metadata": {}, "weight_map": {}}, "names no file"),
        (None, "NoneType"),
        ({"metadata": {}, "weight_map": index | {first: "sub/model-1.safetensors"}}, first),
        ({"metadata": {}, "weight_map": index | {first: "model-1.part"}}, first),
    ):
        named.write_text(json.dumps(content))
        refused(weights, [str(named), word])
    named.write_bytes(POINTER)
    refused(weights, [str(named), "git-lfs pointer"])
    # A tensor that two files hold, as some tools save shared ones, is loaded.
    named.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    save_file(tensors, weights / "llm" / "model-2.safetensors")
    assert check_bundle(weights).ok and check_bundle(weights, torch_free=True).ok


def test_links_and_folders_in_place_of_files(weights: Path) -> None:
    llm = weights / "llm"
    shards(llm)
    for path in (
        weights / "eva_vit_g.pth",
        weights / "blip2_pretrained_flant5xxl.pth",
        weights / "pretrained_minigpt4.pth",
        llm / "model-2.safetensors",
        llm / "tokenizer.model",
        llm / "config.json",
    ):
        kept = path.with_name("kept")
        if path.exists():
            path.rename(kept)
        path.mkdir()
        refused(weights, [str(path)])
        path.rmdir()
        path.symlink_to("../blobs/0f3a")  # of the hub's cache, whose blobs were removed
        refused(weights, [str(llm) if path.suffix in (".model", ".json") else f"{path} (a link"])
        path.unlink()
        if kept.exists():
            kept.rename(path)
    assert check_bundle(weights).ok


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
)
def test_tokenizer_settings_that_are_none(name: str, weights: Path) -> None:
    for content in ("<!DOCTYPE html>", "[]", ""):
        (weights / "llm" / name).write_text(content)
        refused(weights, [str(weights / "llm" / name)])


def test_an_adapter_has_no_config_of_its_own(weights: Path) -> None:
    shutil.rmtree(weights / "llm")
    (weights / "llm").mkdir()
    (weights / "llm" / "adapter_config.json").write_text("{}")
    refused(weights, ["adapter_config.json", "merge"])


def test_no_code_of_the_folder_is_offered_to_run(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "n")
    code = {"AutoConfig": "configuration.X", "AutoModelForCausalLM": "modeling.X"}
    settings(weights / "llm", model_type="own", auto_map=code)
    refused(weights, ["custom code"])
    shutil.copy(toy_world_dir() / "weights" / "llm" / "config.json", weights / "llm")
    path = weights / "llm" / "tokenizer_config.json"
    path.write_text('{"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["code.X", null]}}')
    refused(weights, ["custom code"])
    assert not asked


@pytest.mark.slow
def test_files_that_are_not_whole(weights: Path) -> None:
    llm = weights / "llm"
    path = llm / "pytorch_model.bin"
    tensors = load_file(llm / "model.safetensors")
    as_bin(llm, tensors)
    whole = path.read_bytes()
    for content, word in (
        (whole[:-7], "truncated"),
        (whole[: len(whole) // 2], "truncated"),
        (b"", "is empty"),
        (PAGE, "web page"),
        (POINTER, "git-lfs pointer"),
    ):
        path.write_bytes(content)
        refused(weights, [str(path), word])
    torch.save({"model": tensors, "epoch": 3}, path)
    refused(weights, [str(path), "training checkpoint", "epoch"])
    path.unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for file, keys in shards.items():
        save_file({key: tensors[key] for key in keys}, llm / file)
    refused(weights, ["model-1.safetensors", "model.safetensors.index.json"])
    index = {key: file for file, keys in shards.items() for key in keys}
    named = llm / "model.safetensors.index.json"
    named.write_text(
        json.dumps({"metadata": {}, "weight_map": index | {names[0]: "model-2.safetensors"}})
    )
    refused(weights, [f"{llm / 'model-2.safetensors'} lacks", names[0]])
    named.write_text(json.dumps({"weight_map": index}))
    refused(weights, [str(named), '"metadata"'])
    named.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert check_bundle(weights).ok
    cut(llm / "model-2.safetensors", 7)
    refused(weights, [str(llm / "model-2.safetensors"), "truncated"])
    (llm / "model-2.safetensors").unlink()
    refused(weights, [f"{llm} lacks 1 of 2 weight files", "model-2.safetensors"])


def test_towers(weights: Path) -> None:
    path = weights / "eva_vit_g.pth"
    tensors = {key: tensor.clone() for key, tensor in read_pth(path).items()}
    key = "blocks.0.mlp.fc1.weight"
    torch.save(tensors | {key: tensors[key][:, :-1].clone()}, path)
    refused(weights, [str(path), key])
    torch.save(tensors | {key: tensors[key].to(torch.int8)}, path)
    refused(weights, [str(path), key, "I8"])
    torch.save(tensors, path)
    cut(path, 7)
    refused(weights, [str(path), "truncated"])
    path.write_bytes(PAGE)
    refused(weights, [str(path), "web page"])
    path.write_bytes(POINTER)
    refused(weights, [str(path), "git-lfs pointer"])


def numbers(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    return {key: t.clone() for key, t in read_pth(path).get("model", read_pth(path)).items()}


def put(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".safetensors":
        save_file(tensors, path, {"format": "pt"})
    else:
        torch.save(tensors, path)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth", "llm"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_numbers_that_are_none(file: str, value: float, weights: Path) -> None:
    path = weights / file
    if file == "llm":
        path = path / "model.safetensors"
    tensors = numbers(path)
    key = max(tensors, key=lambda name: tensors[name].numel())
    tensors[key].view(-1)[-1] = value
    put(path, tensors)
    sources = original_sources(weights)
    with pytest.raises(WeightsError, match="NaN or infinity") as caught:
        write_bundle(weights.parent / "bundle", sources)
    assert str(path) in str(caught.value) and key in str(caught.value)
    assert [found.name for found in weights.parent.iterdir()] == ["weights"]
    (fault,) = check_bundle(weights, full=True).faults
    assert str(path) in fault and key in fault
    bundle = write_bundle(weights.parent / "bundle", sources, finite=False).path
    found = check_bundle(bundle)
    assert any("NaN" in note for note in found.notes)
    assert ("NaN" in "".join(found.faults)) == (file != "llm"), "the towers are read in any case"
    assert "NaN" in "".join(check_bundle(bundle, full=True).faults)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("eva_vit_g.pth", "blocks.0.norm1.weight"),
        ("blip2_pretrained_flant5xxl.pth", "Qformer.bert.embeddings.LayerNorm.bias"),
        ("llm/model.safetensors", NORM),
    ],
)
def test_a_norm_that_is_no_number_is_refused_before_the_queue(
    file: str, key: str, weights: Path
) -> None:
    path = weights / file
    tensors = numbers(path)
    tensors[key][-1] = float("nan")
    put(path, tensors)
    refused(weights, [str(path), key, "NaN or infinity"])
    if path.suffix == ".pth":  # what --quick passes over
        bundle = write_bundle(weights.parent / "b", original_sources(weights), finite=False).path
        config = load_config("toy-stage1", overrides={"model.weights": str(bundle)}).config
        assert "NaN or infinity" in "".join(weights_findings(config)[0])


# --- what loads is taken ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda llm, tensors: None,
        renamed(""),
        tied,
        lambda llm, tensors: tensors.update(
            {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(16) for i in range(4)}
        ),
        lambda llm, tensors: tensors.update(
            {key: value.double() for key, value in tensors.items() if "norm" in key}
        ),
        lambda llm, tensors: tensors.update(
            {key.removeprefix("model."): tensors.pop(key) for key in list(tensors)}
        ),
    ],
    ids=["as it is", "bin", "tied", "inv_freq", "mixed types", "no prefix"],
)
def test_what_loads_is_taken(change: Change, weights: Path) -> None:
    from mgpt4_hpc.model.nn.language import load_language_model

    llm = weights / "llm"
    tensors = load_file(llm / "model.safetensors")
    change(llm, tensors)
    as_bin(llm, tensors)
    load_language_model(llm, dtype=torch.float32, attention="sdpa", device=torch.device("cpu"))
    for torch_free in (True, False):
        assert not check_llm(llm, torch_free=torch_free).faults


def test_heads_of_another_width_show_in_older_files(weights: Path) -> None:
    llm = weights / "llm"
    tensors = load_file(llm / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    save_file(tensors, llm / "model.safetensors", {"format": "pt"})
    assert not check_llm(llm, torch_free=True).faults
    settings(llm, num_attention_heads=2)
    refused(weights, ["num_attention_heads 2", "set num_attention_heads to 4"])


# --- the directory of a torch file ------------------------------------------------------------
