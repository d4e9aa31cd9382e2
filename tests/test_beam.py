# SPDX-License-Identifier: MIT
"""Beam search: the best text where nothing is cut off, the same with and without cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from llm_helpers import BEAMS

from miaobi.beam import beam_search
from miaobi.decoding import Cancelled, Decoder
from miaobi.generation import GenerationConfig
from miaobi.llm import LLM
from miaobi.writing import Style

EOS, BANNED = 0, 1


class TableModel:
    """Stands in for a GPT with five tokens whose logits are any function of the text."""

    def forward_last(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        return np.stack([self.logits(ids[begin:end].tolist()) for begin, end in pairwise(offsets.tolist())])

    def logits(self, ids: list[int]) -> np.ndarray:
        return np.random.default_rng(ids).normal(0, 2, 5).astype(np.float32)


def table_style(config: GenerationConfig) -> Style:
    """Of a vocabulary whose tokens are digits, of which one is banned."""
    tokenizer = SimpleNamespace(eos_token_id=EOS, decode=lambda ids: "".join(map(str, ids)))
    table = SimpleNamespace(tokenizer=tokenizer, data=[b"%d" % i for i in range(5)])
    rules: Any = SimpleNamespace(table=table, parts=frozenset(), at_start=np.asarray([BANNED], np.int32))
    return Style(rules, config, 100, stops=["4"])


def search(model: Any, prompt: list[int], config: GenerationConfig) -> list[Any]:
    decoder = Decoder(model, 100, None)
    return beam_search(decoder, decoder.rewind(prompt), table_style(config), prompt, lambda: None)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"length_penalty": 0.0},
        {"length_penalty": 2.5},
        {"presence_penalty": 1.5, "min_new_tokens": 2},
    ],
)
def test_beams_enough_for_all_texts_find_the_best(seed: int, options: dict[str, Any]) -> None:
    model = TableModel()
    length, count = 4, 5
    config = GenerationConfig(
        do_sample=False, num_beams=150, max_new_tokens=length, num_return_sequences=count, **options
    )
    prompt = [seed, 2, 3]

    def log_probability(written: list[int], token: int) -> float:
        context = prompt + written
        row = model.logits(context).astype(np.float64)
        for seen in set(context):
            row[seen] *= config.repetition_penalty if row[seen] < 0 else 1 / config.repetition_penalty
        row[list(set(written))] -= config.presence_penalty
        banned = {BANNED, *[EOS] * (len(written) < config.min_new_tokens)}
        if config.no_repeat_ngram_size == 2:
            banned |= {second for first, second in pairwise(context) if first == context[-1]}
        if token in banned:
            return -math.inf
        allowed = [i for i in range(5) if i not in banned]
        return float(row[token] - np.log(np.exp(row[allowed]).sum()))

    def texts(ids: list[int]) -> Iterator[list[int]]:
        for token in (0, 2, 3, 4):  # all but the banned one
            if token == EOS or token == 4 or len(ids) == length - 1:  # 4 completes a text, too
                yield [*ids, token]
            else:
                yield from texts([*ids, token])

    def score(ids: list[int]) -> float:
        return sum(log_probability(ids[:i], ids[i]) for i in range(len(ids))) / len(ids) ** config.length_penalty

    possible = [ids for ids in texts([]) if score(ids) > -math.inf]
    best = sorted(possible, key=score, reverse=True)[:count]
    found = search(model, prompt, config)
    assert [item.ids for item in found] == [ids[:-1] if ids[-1] == EOS else ids for ids in best]
    assert [item.score for item in found] == pytest.approx([score(ids) for ids in best], rel=1e-4)
    for item, ids in zip(found, best, strict=True):
        assert item.finish_reason == ("stop" if ids[-1] in (EOS, 4) else "length")
        raw = [model.logits(prompt + ids[:i]).astype(np.float64) for i in range(len(item.ids))]
        want = [row[token] - np.log(np.exp(row).sum()) for row, token in zip(raw, ids, strict=False)]
        assert item.logprobs == pytest.approx(want, rel=1e-4)


def test_a_search_that_is_cancelled_gives_what_it_has() -> None:
    calls = iter(range(3))

    def check() -> None:
        if next(calls, None) is None:
            raise Cancelled

    model: Any = TableModel()
    decoder = Decoder(model, 100, None)
    config = GenerationConfig(do_sample=False, num_beams=2, max_new_tokens=50, min_new_tokens=50, bad_words=None)
    (found,) = beam_search(decoder, decoder.rewind([2, 3]), table_style(config), [2, 3], check)
    assert found.finish_reason in ("cancelled", "stop")
    assert len(found.ids) <= 3


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
