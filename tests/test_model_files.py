# SPDX-License-Identifier: MIT
"""A model's folder: what is written is what is read, the names others use, and every way a folder can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest

from miaobi import _core
from miaobi.errors import FormatError
from miaobi.model import CONFIG_FILE, GPT, WEIGHTS_FILE, GPTConfig

IDS = [[1, 2, 3], [9, 0, 4]]
SHAPE: dict[str, Any] = {"vocab_size": 10, "n_positions": 6, "n_embd": 8, "n_layer": 2, "n_head": 2}


def gpt(**changes: Any) -> GPT:
    model = GPT(GPTConfig(**{**SHAPE, **changes}))
    oracle.random_parameters(model, seed=1)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    gpt().save_pretrained(tmp_path)
    return tmp_path


def read_config(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text())
    return data


def change_config(folder: Path, **changes: Any) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps({**read_config(folder), **changes}))


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    with _core.SafetensorsFile(folder / WEIGHTS_FILE) as file:
        return {name: file.read(name) for name in file.names()}


def write_tensors(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    _core.write_safetensors(folder / WEIGHTS_FILE, tensors, {})


def refused(folder: Path, file: str, reason: str) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        GPT.from_pretrained(folder)
    assert caught.value.path == str(folder / file)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "n_inner": 11},
        {"activation_function": "relu", "layer_norm_epsilon": 1e-3},
        {"activation_function": "gelu_pytorch_tanh"},
    ],
)
def test_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = gpt(**changes)
    folder = tmp_path / "新" / "模型"
    model.save_pretrained(folder)
    again = GPT.from_pretrained(folder)
    assert again.config == model.config
    oracle.assert_same_bits(again.arena, model.arena)
    oracle.assert_same_bits(again.forward(IDS), model.forward(IDS))
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    again.save_pretrained(str(folder))  # over the files that it was read from
    oracle.assert_same_bits(GPT.from_pretrained(str(folder)).arena, model.arena)


def test_config_is_that_of_hugging_face(tmp_path: Path) -> None:
    gpt().save_pretrained(tmp_path, extra_config={"miaobi_tokenizer_hash": "春", "torch_dtype": "float16"})
    config = read_config(tmp_path)
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert config["model_type"] == "gpt2"
    assert (config["miaobi_tokenizer_hash"], config["torch_dtype"]) == ("春", "float16")
    assert {name: config[name] for name in SHAPE} == SHAPE
    assert (config["attn_pdrop"], config["embd_pdrop"], config["resid_pdrop"]) == (0, 0, 0)
    assert GPT.from_pretrained(tmp_path).config == gpt().config


def test_names_of_others(folder: Path) -> None:
    """GPT2Model has no "transformer." in front; old files carry masks; a tied head may be stored twice."""
    tensors = {name.removeprefix("transformer."): value for name, value in read_tensors(folder).items()}
    tensors["lm_head.weight"] = tensors["wte.weight"]
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = np.ones((1, 1, 6, 6), np.float32)
        tensors[f"h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    write_tensors(folder, tensors)
    oracle.assert_same_bits(GPT.from_pretrained(folder).arena, gpt().arena)


def test_no_folder(tmp_path: Path) -> None:
    for wrong in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=r"expected a model folder with config.json and model.safetensors"):
            GPT.from_pretrained(wrong)
    gpt().save_pretrained(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"expected the weights in .*model.safetensors"):
        GPT.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="config"):
        gpt().save_pretrained(tmp_path / CONFIG_FILE)  # a file is in the way


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[1]", "expected a JSON object, got list"),
        (b"\xff\xfe{\x00}\x00", "is not JSON"),
        (b"{}", "vocab_size, n_positions, n_embd, n_layer, n_head missing"),
    ],
)
def test_config_that_is_none(folder: Path, content: bytes, reason: str) -> None:
    (folder / CONFIG_FILE).write_bytes(content)
    refused(folder, CONFIG_FILE, reason)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "llama"}, "expected model_type 'gpt2', got 'llama'"),
        ({"scale_attn_weights": False}, "expected scale_attn_weights True, got False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "expected scale_attn_by_inverse_layer_idx False, got True"),
        ({"add_cross_attention": True}, "expected add_cross_attention False, got True"),
        ({"activation_function": "gelu"}, "activation_function .*got 'gelu'"),
        ({"n_head": 3}, "n_embd to be a multiple of n_head, got 8 and 3"),
        ({"n_layer": 0}, "n_layer"),
        ({"n_embd": "8"}, "n_embd"),
        ({"vocab_size": None}, "vocab_size"),
        ({"vocab_size": 2**60}, "vocab_size"),
        ({"n_positions": 1.5}, "n_positions"),
        ({"n_inner": -1}, "n_inner"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon"),
    ],
)
def test_config_of_something_else(folder: Path, changes: dict[str, Any], reason: str) -> None:
    change_config(folder, **changes)
    refused(folder, CONFIG_FILE, reason)


def test_fields_that_do_not_matter(folder: Path) -> None:
    change_config(folder, resid_pdrop=0.1, n_ctx=6, summary_type="x", scale_attn_weights=True, reorder=None)
    oracle.assert_same_bits(GPT.from_pretrained(folder).arena, gpt().arena)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_layer": 1}, r"missing \[\], unknown \['transformer.h.1"),
        ({"n_layer": 3}, r"missing \['transformer.h.2.*unknown \[\]"),
        ({"tie_word_embeddings": False}, r"missing \['lm_head.weight'\]"),
        ({"vocab_size": 11}, r"transformer.wte.weight of shape \(11, 8\) as config.json says, got \(10, 8\)"),
        ({"n_positions": 5}, r"transformer.wpe.weight of shape \(5, 8\)"),
        ({"n_inner": 31}, r"mlp.c_fc.* of shape"),
    ],
)
def test_weights_of_another_config(folder: Path, changes: dict[str, Any], reason: str) -> None:
    change_config(folder, **changes)
    refused(folder, WEIGHTS_FILE, reason)


def test_wrong_tensors(folder: Path) -> None:
    tensors = read_tensors(folder)
    name = "transformer.h.1.attn.c_attn.weight"
    for changed, reason in (
        ({key: value for key, value in tensors.items() if key != name}, rf"missing \['{name}'\]"),
        ({**tensors, "extra": tensors[name]}, r"unknown \['transformer.extra'\]"),
        ({**tensors, name: tensors[name].T.copy()}, rf"{name} of shape \(8, 24\) .*got \(24, 8\)"),
        ({**tensors, name: tensors[name].ravel()}, r"got \(192,\)"),
    ):
        write_tensors(folder, changed)
        refused(folder, WEIGHTS_FILE, reason)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_weights(folder: Path, dtype: str) -> None:
    tensors = read_tensors(folder)

    def packed(x: np.ndarray) -> bytes:
        return x.astype(np.float16).tobytes() if dtype == "F16" else (x.view(np.uint32) >> 16).astype("<u2").tobytes()

    def unpacked(x: np.ndarray) -> np.ndarray:
        half = x.astype(np.float16).astype(np.float32)
        return half if dtype == "F16" else (x.view(np.uint32) & 0xFFFF0000).view(np.float32)

    header, data = {}, b""
    for name, value in tensors.items():
        part = packed(value)
        header[name] = {"dtype": dtype, "shape": value.shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    (folder / WEIGHTS_FILE).write_bytes(len(text).to_bytes(8, "little") + text + data)
    for name, view in GPT.from_pretrained(folder).parameters().items():
        oracle.assert_same_bits(view, unpacked(tensors[name]))


def test_cut_weights(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-4])
    refused(folder, WEIGHTS_FILE, "byte")
