# SPDX-License-Identifier: MIT
"""Small models that the tests of generation share, and stand-ins for a model that do as they are told."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from miaobi.generation import GenerationConfig
from miaobi.llm import LLM
from miaobi.model import GPT, GPTConfig
from miaobi.tokenizer import JiebaTokenizer

TEXTS = [
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "用户：你好\n助手：你好！\n系统：",
]
CONTEXT = 32
SAMPLED = {"max_new_tokens": 80, "seed": 3, "temperature": 1.2}
GREEDY = {"max_new_tokens": 80, "do_sample": False}
PENALISED = {"max_new_tokens": 40, "seed": 1, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "top_k": 20}
BEAMS = {"max_new_tokens": 40, "do_sample": False, "num_beams": 3}


@cache
def small_tokenizer() -> JiebaTokenizer:
    return JiebaTokenizer.train(TEXTS, 400, shrink=True)


def new_model() -> GPT:
    """A model that seldom ends a text by itself."""
    config = GPTConfig(small_tokenizer().vocab_size, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4)
    model = GPT(config, seed=1)
    model.arena[:] *= 6  # far from uniform, so that what the model sees decides what it writes
    model.parameters()["transformer.wte.weight"][JiebaTokenizer.eos_token_id] = 0
    return model


@cache
def small_model() -> GPT:
    """The same. Shared: not to be changed."""
    return new_model()


class ScriptedModel:
    """Stands in for a GPT: says the tokens of a script, one after the other, and counts the tokens it is given."""

    def __init__(self, tokenizer: JiebaTokenizer, script: Sequence[int], context: int = 1000) -> None:
        self.config = GPTConfig(tokenizer.vocab_size, n_positions=context, n_embd=8, n_layer=1, n_head=1)
        self.arena = np.zeros(8, np.float32)
        self.num_parameters = 8
        self.script = list(script)
        self.at = 0
        self.given: list[list[int]] = []
        self.packed_as: str | None = None

    def pack(self, dtype: str) -> None:
        self.packed_as = dtype

    def forward_last(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        if self.given and ids[-1] in self.script[self.at :]:
            self.at = self.script.index(ids[-1], self.at) + 1
        self.given.append(ids.tolist())
        logits = np.zeros((1, self.config.vocab_size), np.float32)
        for rank, token in enumerate(self.script[self.at : self.at + 2]):  # where the first is banned, the second comes
            logits[-1, token] += 9 - rank
        return logits


def scripted(tokenizer: JiebaTokenizer, script: Sequence[int], **options: Any) -> LLM:
    model: Any = ScriptedModel(tokenizer, [*script, tokenizer.eos_token_id])
    llm = LLM(model, tokenizer, GenerationConfig(do_sample=False, **options))
    llm.disable_kv_cache()
    return llm


class CountingModel:
    """A GPT that notes how many tokens each step gives it."""

    def __init__(self, model: GPT) -> None:
        self._model = model
        self.steps: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward_cached(self, cache: Any, sequences: list[int], ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        self.steps.append(len(ids))
        return self._model.forward_cached(cache, sequences, ids, offsets)

    def sample_cached(self, cache: Any, sequences: list[int], ids: list[int], samplers: Any, banned: Any) -> list[int]:
        self.steps.append(len(ids))
        return self._model.sample_cached(cache, sequences, ids, samplers, banned)
