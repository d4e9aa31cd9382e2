# SPDX-License-Identifier: MIT
"""Beam search: the best text where nothing is cut off, the same with and without cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from llm_helpers import BEAMS, small_model, small_tokenizer

from miaobi.beam import beam_search
from miaobi.decoding import Decoder
from miaobi.generation import GenerationConfig
from miaobi.llm import LLM


@pytest.fixture
def llm() -> LLM:
    return LLM(small_model(), small_tokenizer())


class TableModel:
    """Stands in for a GPT with five tokens whose logits are any function of the text."""

    def forward(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        rows = [self.logits(ids[begin:end].tolist()) for begin, end in pairwise(offsets.tolist())]
        logits = np.zeros((len(ids), 5), np.float32)
        logits[offsets[1:] - 1] = rows
        return logits

    def logits(self, ids: list[int]) -> np.ndarray:
        return np.random.default_rng(ids).normal(0, 2, 5).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 2}])
def test_beams_enough_for_all_texts_find_the_best(seed: int, options: dict[str, Any]) -> None:
    model: Any = TableModel()
    eos, banned, length = 0, 1, 4
    config = GenerationConfig(do_sample=False, num_beams=150, max_new_tokens=length, **options)
    prompt = [seed, 2, 3]

    def log_probability(context: list[int], token: int) -> float:
        row = model.logits(context).astype(np.float64)
        for seen in set(context):
            row[seen] *= config.repetition_penalty if row[seen] < 0 else 1 / config.repetition_penalty
        repeated = (context[-1], token) in set(pairwise(context)) and config.no_repeat_ngram_size == 2
        return -math.inf if repeated else float(row[token] - np.log(np.exp(row).sum()))

    def texts(ids: list[int]) -> Iterator[list[int]]:
        for token in (0, 2, 3, 4):  # all but the banned one
            if token == eos or token == 4 or len(ids) == length - 1:  # 4 completes a text, too
                yield [*ids, token]
            else:
                yield from texts([*ids, token])

    def score(ids: list[int]) -> float:
        return sum(log_probability(prompt + ids[:i], ids[i]) for i in range(len(ids))) / len(ids)

    found = beam_search(
        Decoder(model, 100, None),
        np.asarray(prompt, np.int32),
        config,
        eos=eos,
        banned=lambda ids: np.asarray([banned], np.int32),
        ends=lambda ids: ids[-1] == 4,
    )
    best = max(texts([]), key=score)
    assert found == (best[:-1] if best[-1] == eos else best)


def test_beams_share_what_they_have_in_common(llm: LLM) -> None:
    wide = {**BEAMS, "num_beams": 12}
    cached = llm.generate("床前", **wide)
    llm.disable_kv_cache()
    assert llm.generate("床前", **wide) == cached


def test_beams_obey_stop_strings(llm: LLM) -> None:
    text = llm.generate("床前", **BEAMS)
    stop = text[len(text) // 2]
    assert stop not in llm.generate("床前", **BEAMS, stop=stop)
    assert list(llm.stream("床前", **BEAMS)) == [text]
