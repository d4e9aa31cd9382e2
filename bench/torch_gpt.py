# SPDX-License-Identifier: MIT
"""The peer of the training comparison: GPT-2 in PyTorch, written as someone who wants it fast on a CPU would write it.

Fused QKV, scaled_dot_product_attention, tanh GELU, tied head, fused AdamW, gradients set to None; optionally compiled
and under bf16 autocast. Weights have the names of Hugging Face GPT-2 and, in nn.Linear, its layouts transposed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import miaobi


class Block(nn.Module):
    """Pre-LN block with the modules' names of GPT-2."""

    def __init__(self, config: miaobi.GPTConfig) -> None:
        super().__init__()
        c, eps = config.n_embd, config.layer_norm_epsilon
        self.heads = config.n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(c, eps), nn.LayerNorm(c, eps)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(c, 3 * c), "c_proj": nn.Linear(c, c)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(c, config.inner_size), "c_proj": nn.Linear(config.inner_size, c)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = self.attn["c_attn"](self.ln_1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        x = x + self.attn["c_proj"](y)
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class TorchGPT(nn.Module):
    """GPT-2 with tied embeddings."""

    def __init__(self, model: miaobi.GPT) -> None:
        super().__init__()
        config = model.config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        ours = model.parameters()
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                value = ours["transformer." + name]
                linear = name.endswith("weight") and ("attn." in name or "mlp." in name)
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(value.T if linear else value)))

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """(B, T) ids -> (B, T, V)."""
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss."""
        logits = self.logits(ids)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), targets.view(-1))


def training_step(
    model: miaobi.GPT, ids: Any, targets: Any, *, lr: float, compiled: bool, bf16: bool
) -> Callable[[], float]:
    """A function that trains on the batch once, from the weights that `model` has now, and gives the loss."""
    peer: Any = TorchGPT(model).train()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in peer.parameters() if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in peer.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=lr,
        betas=(0.9, 0.95),
        fused=True,
    )
    parameters = list(peer.parameters())
    run = torch.compile(peer, dynamic=False) if compiled else peer
    x, y = torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(targets.astype(np.int64))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            loss = run(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        return float(loss.detach())

    return step
