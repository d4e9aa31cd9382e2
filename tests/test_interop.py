# SPDX-License-Identifier: MIT
"""Folders that Hugging Face's GPT-2 reads and writes: the same logits on both sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest

from miaobi import ops
from miaobi.errors import FormatError
from miaobi.model import CONFIG_FILE, GPT, GPTConfig

pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # what other packages say to each other
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SHAPE: dict[str, Any] = {"vocab_size": 120, "n_positions": 40, "n_embd": 48, "n_layer": 3, "n_head": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "n_inner": {"n_inner": 70},
    "relu": {"activation_function": "relu"},
    "epsilon": {"layer_norm_epsilon": 1e-3},
}
each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
IDS = np.random.default_rng(0).integers(0, 120, (3, 40))


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def transformers() -> Any:
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    return module


def logits(torch: Any, theirs: Any) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = theirs.eval()(torch.tensor(IDS)).logits.numpy()
    return found


def their_model(torch: Any, transformers: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        **{**SHAPE, "bos_token_id": 2, "eos_token_id": 3, "activation_function": "gelu_new", **changes}
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
            parameter.copy_(around + 0.15 * torch.randn_like(parameter))
    return model


@each_variant
def test_they_load_ours(tmp_path: Path, torch: Any, transformers: Any, changes: dict[str, Any]) -> None:
    model = GPT(GPTConfig(**{**SHAPE, **changes}))
    oracle.random_parameters(model, seed=1, scale=0.15)
    model.save_pretrained(tmp_path)
    theirs, told = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    assert theirs.dtype == torch.float32
    np.testing.assert_allclose(model.forward(IDS), logits(torch, theirs), atol=1e-4, rtol=0)


@each_variant
def test_we_load_theirs(tmp_path: Path, torch: Any, transformers: Any, changes: dict[str, Any]) -> None:
    theirs = their_model(torch, transformers, **changes)
    theirs.save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path)
    assert model.config == GPTConfig(**{**SHAPE, **changes}, dropout=0.1)  # their default, unless it is set
    np.testing.assert_allclose(model.forward(IDS), logits(torch, theirs), atol=1e-4, rtol=0)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(IDS)).logits[:, :-1].mT, torch.tensor(IDS)[:, 1:])
    assert model.loss(IDS[:, :-1], IDS[:, 1:]) == pytest.approx(float(loss), abs=1e-5)


def test_back_and_forth_keeps_every_bit(tmp_path: Path, torch: Any, transformers: Any) -> None:
    their_model(torch, transformers).save_pretrained(tmp_path / "theirs")
    ours = GPT.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    again.save_pretrained(tmp_path / "again")
    oracle.assert_same_bits(GPT.from_pretrained(tmp_path / "again").arena, ours.arena)


def test_we_load_their_trunk(tmp_path: Path, torch: Any, transformers: Any) -> None:
    """GPT2Model alone: the same tensors, named without "transformer."."""
    theirs = their_model(torch, transformers)
    theirs.transformer.save_pretrained(tmp_path)
    np.testing.assert_allclose(GPT.from_pretrained(tmp_path).forward(IDS), logits(torch, theirs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_we_load_half_precision(tmp_path: Path, torch: Any, transformers: Any, dtype: str) -> None:
    theirs = their_model(torch, transformers).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path)
    np.testing.assert_allclose(model.forward(IDS), logits(torch, theirs.float()), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [{"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}, {"activation_function": "gelu"}],
)
def test_we_refuse_what_would_compute_something_else(
    tmp_path: Path, torch: Any, transformers: Any, changes: dict[str, Any]
) -> None:
    their_model(torch, transformers, **changes).save_pretrained(tmp_path)
    with pytest.raises(FormatError, match=next(iter(changes))) as caught:
        GPT.from_pretrained(tmp_path)
    assert caught.value.path == str(tmp_path / CONFIG_FILE)


def test_gradients_are_theirs(tmp_path: Path, torch: Any, transformers: Any) -> None:
    theirs = their_model(torch, transformers)
    theirs.save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path)
    targets = np.roll(IDS, -1, axis=1)
    targets[0, 5:9] = -100
    model.loss_backward(IDS, targets)
    output = theirs.eval()(torch.tensor(IDS)).logits
    torch.nn.functional.cross_entropy(output.mT, torch.tensor(targets)).backward()
    want = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    assert want.keys() == model.gradients().keys()
    for name, gradient in model.gradients().items():
        oracle.assert_close(gradient, want[name], 100)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_theirs(torch: Any, causal: bool) -> None:
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 3, 50, 16)).astype(np.float32)
    theirs = torch.nn.functional.scaled_dot_product_attention(*map(torch.tensor, (q, k, v)), is_causal=causal)
    oracle.assert_close(ops.attention(q, k, v, causal=causal), theirs.numpy(), 60)
