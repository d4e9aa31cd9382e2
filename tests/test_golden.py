# SPDX-License-Identifier: MIT
"""Models and ops against the files that ``golden/make_golden.py`` wrote with PyTorch: logits, losses, all gradients."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import miaobi
from miaobi import ops

GOLDEN = Path(__file__).parent / "golden"
MODELS = ["gpt2_tied", "gpt2_untied_relu"]
TOLERANCE = 1e-4

Array = npt.NDArray[Any]


def expected(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def close(got: npt.ArrayLike, want: npt.ArrayLike, what: str) -> None:
    np.testing.assert_allclose(got, want, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=False, err_msg=what)


def part(data: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): value for name, value in data.items() if name.startswith(prefix)}


@pytest.fixture(params=MODELS)
def golden(request: pytest.FixtureRequest) -> tuple[miaobi.GPT, dict[str, Array]]:
    folder = GOLDEN / request.param
    return miaobi.GPT.from_pretrained(folder), expected(folder / "expected.npz")


def test_logits_and_losses(golden: tuple[miaobi.GPT, dict[str, Array]]) -> None:
    model, want = golden
    close(model.forward(want["ids"]), want["logits"], "logits")
    close(model.loss(want["ids"], want["targets"]), want["loss"], "loss")
    close(model.token_losses(want["ids"], want["targets"]), want["token_losses"], "token losses")


@pytest.mark.parametrize("in_one_pass", [True, False])
def test_all_gradients(golden: tuple[miaobi.GPT, dict[str, Array]], in_one_pass: bool) -> None:
    model, want = golden
    if in_one_pass:
        total, count = model.loss_backward(want["ids"], want["targets"])
        close(total / count, want["loss"], "loss")
    else:
        close(model.loss(want["ids"], want["targets"]), want["loss"], "loss")
        model.backward()
    gradients = part(want, "gradient/")
    assert model.gradients().keys() == gradients.keys()
    for name, gradient in gradients.items():
        close(model.gradients()[name], gradient, name)
    # Once more: gradients accumulate.
    model.loss_backward(want["ids"], want["targets"])
    for name, gradient in gradients.items():
        close(model.gradients()[name], 2 * gradient, f"{name} twice")


def test_sequences_of_several_lengths_in_one_batch(golden: tuple[miaobi.GPT, dict[str, Array]]) -> None:
    model, data = golden
    want = part(data, "ragged/")
    close(model.forward(want["ids"], want["offsets"]), want["logits"], "logits")
    total, count = model.loss_backward(want["ids"], want["targets"], want["offsets"])
    close(total / count, want["loss"], "loss")
    for name, gradient in part(want, "gradient/").items():
        close(model.gradients()[name], gradient, name)


def test_gradients_of_parts_add_up_to_the_batch(golden: tuple[miaobi.GPT, dict[str, Array]]) -> None:
    """Accumulation over calls uses each call's own activations, and one normalizer for all."""
    model, want = golden
    count = int((want["targets"] != -100).sum())
    for row in range(len(want["ids"])):
        model.loss_backward(want["ids"][row : row + 1], want["targets"][row : row + 1], normalizer=count)
    for name, gradient in part(want, "gradient/").items():
        close(model.gradients()[name], gradient, name)


def test_ten_steps_of_adamw(golden: tuple[miaobi.GPT, dict[str, Array]]) -> None:
    model, data = golden
    want = part(data, "curve/")
    optimizer = miaobi.AdamW(model, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(10):
        model.zero_grad()
        total, count = model.loss_backward(want["ids"][step], want["targets"][step])
        close(total / count, want["loss"][step], f"loss of step {step}")
        norm = optimizer.step(max_grad_norm=1.0)
        np.testing.assert_allclose(norm, want["gradient_norm"][step], rtol=1e-3, err_msg=f"norm of step {step}")


@pytest.fixture(scope="module")
def golden_ops() -> dict[str, Array]:
    return expected(GOLDEN / "ops.npz")


def check_layer(layer: Any, want: Mapping[str, Array], parameters: list[str]) -> None:
    """Forward, dx and the gradients of the named parameters; twice, since gradients accumulate."""
    for name in parameters:
        layer.parameters()[name][...] = want[name]
    for times in (1, 2):
        close(layer.forward(want["x"]), want["y"], "y")
        close(layer.backward(want["dy"]), want["dx"], "dx")
        for name in parameters:
            close(layer.gradients()[name], times * want[f"d{name}"], f"d{name}")


def test_layer_norm(golden_ops: dict[str, Array]) -> None:
    want = part(golden_ops, "layer_norm/")
    close(ops.layer_norm(want["x"], want["gamma"], want["beta"], 1e-5), want["y"], "y")
    check_layer(miaobi.LayerNorm(want["x"].shape[-1]), want, ["gamma", "beta"])


def test_gelu(golden_ops: dict[str, Array]) -> None:
    want = part(golden_ops, "gelu/")
    close(ops.gelu(want["x"]), want["y"], "y")
    # Through an identity: y = gelu(x) I.
    size = want["x"].shape[-1]
    layer = miaobi.FusedGELULinear(size, size)
    layer.parameters()["weight"][...] = np.eye(size)
    layer.parameters()["bias"][...] = 0.0
    close(layer.forward(want["x"]), want["y"], "y")
    close(layer.backward(want["dy"]), want["dx"], "dx")


@pytest.mark.parametrize("causal", [True, False])
def test_attention(golden_ops: dict[str, Array], causal: bool) -> None:
    data = part(golden_ops, "attention/")
    want = part(data, "causal/" if causal else "full/")
    close(ops.attention(data["q"], data["k"], data["v"], causal=causal), want["y"], "y")


def test_self_attention(golden_ops: dict[str, Array]) -> None:
    want = part(golden_ops, "self_attention/")
    layer = miaobi.SelfAttention(want["x"].shape[-1], num_heads=3)
    check_layer(layer, want, ["w_qkv", "b_qkv", "w_o", "b_o"])
