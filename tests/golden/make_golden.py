# SPDX-License-Identifier: MIT
"""Writes the golden files of this folder with PyTorch and transformers; run by hand, from anywhere.

    python tests/golden/make_golden.py

Everything is computed in float64 on float32 weights and inputs, so that the files hold the exact answer and not
PyTorch's own rounding. Each model is a folder as ``GPT2LMHeadModel.save_pretrained`` leaves it, with ``expected.npz``
beside the weights; ``ops.npz`` has single ops with their gradients. The numbers come from NumPy's seeded generator:
running this again gives the same files.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

HERE = Path(__file__).parent
IGNORE_INDEX = -100
STEPS = 10
LEARNING_RATE = 1e-2

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}

MODELS = {
    "gpt2_tied": GPT2Config(
        vocab_size=50,
        n_positions=12,
        n_embd=16,
        n_layer=2,
        n_head=2,
        activation_function="gelu_new",
        **NO_DROPOUT,
    ),
    "gpt2_untied_relu": GPT2Config(
        vocab_size=37,
        n_positions=12,
        n_embd=24,
        n_layer=1,
        n_head=3,
        n_inner=40,
        activation_function="relu",
        tie_word_embeddings=False,
        **NO_DROPOUT,
    ),
}


def make_model(config: GPT2Config, random: np.random.Generator) -> GPT2LMHeadModel:
    """A model whose every parameter matters: biases and norms are not left at 0 and 1."""
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = random.normal(0.0, 0.2, parameter.shape)
            if parameter.ndim == 1 and name.endswith("weight"):
                values += 1.0
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return model


def batch(random: np.random.Generator, config: GPT2Config, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Random ids and targets (rows, n_positions); a part of the targets is not scored."""
    ids = random.integers(0, config.vocab_size, (rows, config.n_positions), dtype=np.int32)
    targets = random.integers(0, config.vocab_size, ids.shape, dtype=np.int32)
    targets[random.random(ids.shape) < 0.2] = IGNORE_INDEX
    targets[0, :4] = IGNORE_INDEX
    return ids, targets


def logits_and_losses(
    model: GPT2LMHeadModel, ids: np.ndarray, targets: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model(torch.from_numpy(ids).long()).logits
    losses = functional.cross_entropy(
        logits.flatten(0, -2),
        torch.from_numpy(targets).long().flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )
    return logits, losses


def mean_loss(model: GPT2LMHeadModel, ids: np.ndarray, targets: np.ndarray) -> torch.Tensor:
    _, losses = logits_and_losses(model, ids, targets)
    return losses.sum() / int((targets != IGNORE_INDEX).sum())


def float32(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float32)


def write_model(name: str, config: GPT2Config, seed: int) -> None:
    random = np.random.default_rng(seed)
    model = make_model(config, random)
    model.save_pretrained(HERE / name)
    (HERE / name / "model.safetensors").chmod(0o644)
    model = model.double()
    expected: dict[str, np.ndarray] = {}

    ids, targets = batch(random, config, 3)
    logits, losses = logits_and_losses(model, ids, targets)
    loss = mean_loss(model, ids, targets)
    loss.backward()
    expected |= {"ids": ids, "targets": targets, "logits": float32(logits), "loss": np.float64(loss.item())}
    expected["token_losses"] = float32(losses.reshape(ids.shape))
    for parameter_name, parameter in model.named_parameters():
        expected[f"gradient/{parameter_name}"] = float32(parameter.grad)

    # Sequences of several lengths in one flat batch, each computed alone here.
    lengths = [5, config.n_positions, 1, 7]
    ids, targets = (part.reshape(-1)[: sum(lengths)] for part in batch(random, config, 3))
    offsets = np.cumsum([0, *lengths])
    expected |= {"ragged/ids": ids, "ragged/targets": targets, "ragged/offsets": offsets.astype(np.int64)}
    model.zero_grad()
    ragged_logits, ragged_losses = [], []
    for begin, end in itertools.pairwise(offsets):
        part_logits, part_losses = logits_and_losses(model, ids[None, begin:end], targets[None, begin:end])
        ragged_logits.append(part_logits[0])
        ragged_losses.append(part_losses)
    ragged_loss = torch.cat(ragged_losses).sum() / int((targets != IGNORE_INDEX).sum())
    ragged_loss.backward()
    expected["ragged/logits"] = float32(torch.cat(ragged_logits))
    expected["ragged/loss"] = np.float64(ragged_loss.item())
    first_matrix = "transformer.h.0.attn.c_attn.weight"
    expected[f"ragged/gradient/{first_matrix}"] = float32(model.get_parameter(first_matrix).grad)

    # Ten steps on ten batches: AdamW with weight decay on matrices only, and clipping over all gradients together.
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8)
    curve, norms, all_ids, all_targets = [], [], [], []
    for _ in range(STEPS):
        ids, targets = batch(random, config, 2)
        optimizer.zero_grad()
        loss = mean_loss(model, ids, targets)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        curve.append(loss.item())
        all_ids.append(ids)
        all_targets.append(targets)
    expected |= {
        "curve/ids": np.stack(all_ids),
        "curve/targets": np.stack(all_targets),
        "curve/loss": np.array(curve),
        "curve/gradient_norm": np.array(norms),
    }
    np.savez_compressed(HERE / name / "expected.npz", **expected)


def write_ops(seed: int) -> None:
    random = np.random.default_rng(seed)
    expected: dict[str, np.ndarray] = {}

    def tensor(name: str, *shape: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
        values = (shift + scale * random.standard_normal(shape)).astype(np.float32)
        expected[name] = values
        return torch.from_numpy(values).double().requires_grad_()

    def keep(prefix: str, y: torch.Tensor, dy: torch.Tensor, **inputs: torch.Tensor) -> None:
        expected[f"{prefix}/y"] = float32(y)
        for name, gradient in zip(inputs, torch.autograd.grad(y, list(inputs.values()), dy), strict=True):
            expected[f"{prefix}/d{name}"] = float32(gradient)

    x, dy = tensor("layer_norm/x", 2, 5, 19, scale=2.0, shift=1.0), tensor("layer_norm/dy", 2, 5, 19)
    gamma, beta = tensor("layer_norm/gamma", 19, shift=1.0, scale=0.3), tensor("layer_norm/beta", 19)
    y = functional.layer_norm(x, (19,), gamma, beta, 1e-5)
    keep("layer_norm", y, dy, x=x, gamma=gamma, beta=beta)

    x, dy = tensor("gelu/x", 7, 13, scale=2.0), tensor("gelu/dy", 7, 13)
    keep("gelu", functional.gelu(x, approximate="tanh"), dy, x=x)

    shape = (2, 3, 17, 8)  # B, H, T, D
    q, k, v = (tensor(f"attention/{name}", *shape, scale=1.5) for name in "qkv")
    for prefix, causal in (("attention/causal", True), ("attention/full", False)):
        expected[f"{prefix}/y"] = float32(functional.scaled_dot_product_attention(q, k, v, is_causal=causal))

    # Its gradients in the whole layer, between the two projections.
    C, heads = 12, 3
    x, dy = tensor("self_attention/x", 2, 9, C), tensor("self_attention/dy", 2, 9, C)
    w_qkv, b_qkv = tensor("self_attention/w_qkv", C, 3 * C, scale=0.5), tensor("self_attention/b_qkv", 3 * C)
    w_o, b_o = tensor("self_attention/w_o", C, C, scale=0.5), tensor("self_attention/b_o", C)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (x @ w_qkv + b_qkv).chunk(3, dim=-1))
    o = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
    keep("self_attention", o @ w_o + b_o, dy, x=x, w_qkv=w_qkv, b_qkv=b_qkv, w_o=w_o, b_o=b_o)

    np.savez_compressed(HERE / "ops.npz", **expected)


def main() -> None:
    for seed, (name, config) in enumerate(MODELS.items(), start=1):
        write_model(name, config, seed)
    write_ops(seed=9)
    size = sum(path.stat().st_size for path in HERE.rglob("*") if path.suffix in {".npz", ".safetensors", ".json"})
    print(f"torch {torch.__version__}: {size / 1000:.0f} kB in {HERE}")


if __name__ == "__main__":
    main()
