# SPDX-License-Identifier: MIT
"""generate, stream, chat and generate_batch: options, details, batches, threads, cancelling, windows."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from llm_helpers import (
    BEAMS,
    CONTEXT,
    GREEDY,
    PENALISED,
    SAMPLED,
    CountingModel,
    scripted,
)

import miaobi
from miaobi.generation import CHAT_DEFAULTS, GenerationConfig, GenerationResult
from miaobi.llm import LLM
from miaobi.model import GPT
from miaobi.tokenizer import JiebaTokenizer

USER = [{"role": "user", "content": "你好"}]
PROMPTS = ["", "床前", "春眠不觉晓，" * 20, "床前明月光，疑是", "举头"]


# --- options


def test_details_say_what_was_written_and_why_it_ended(llm: LLM, model: GPT, tokenizer: JiebaTokenizer) -> None:
    result = llm.generate("床前", return_details=True, max_new_tokens=10, seed=3, repetition_penalty=1.3, top_k=5)
    assert isinstance(result, GenerationResult)
    assert result.text == llm.generate("床前", max_new_tokens=10, seed=3, repetition_penalty=1.3, top_k=5)
    assert (result.finish_reason, result.seed, len(result.tokens)) == ("length", 3, 10)
    prompt = [tokenizer.bos_token_id, *tokenizer.encode("床前")]
    assert result.prompt_tokens == len(prompt)
    logits = model.forward(np.asarray([[*prompt, *result.tokens]]))[0].astype(np.float64)
    for place, (token, logprob) in enumerate(zip(result.tokens, result.logprobs, strict=True), len(prompt) - 1):
        row = logits[place] - logits[place].max()
        assert logprob == pytest.approx(row[token] - np.log(np.exp(row).sum()), abs=1e-4)
    fresh = llm.generate("床前", return_details=True)
    assert llm.generate("床前", seed=fresh.seed) == fresh.text


def test_finish_reasons(tokenizer: JiebaTokenizer) -> None:
    script = tokenizer.encode("明月光，疑是地上霜。")
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({}, "明月光，疑是地上霜。", "stop"),
        ({"stop": "霜"}, "明月光，疑是地上", "stop"),
        ({"stop": "霜。完"}, "明月光，疑是地上霜。", "stop"),
        ({"stop_token_ids": tokenizer.encode("，")}, "明月光", "stop"),
        ({"max_new_tokens": 2}, tokenizer.decode(script[:2]), "length"),
    ]
    for options, text, reason in cases:
        result = scripted(tokenizer, script).generate("床", return_details=True, **options)
        assert (result.text, result.finish_reason) == (text, reason)
        stream = scripted(tokenizer, script).stream("床", **options)
        assert stream.finish_reason is None
        assert "".join(stream) == text
        assert stream.finish_reason == reason


def test_a_loop_ends_a_chat_and_only_there_by_default(tokenizer: JiebaTokenizer) -> None:
    script = tokenizer.encode("月光") * 60
    answer = scripted(tokenizer, script).chat(USER, return_details=True, max_new_tokens=100)
    assert answer.finish_reason == "loop"
    assert 24 <= len(answer.tokens) <= 30
    for result in (
        scripted(tokenizer, script).generate("床", return_details=True, max_new_tokens=100),
        scripted(tokenizer, script).chat(USER, return_details=True, max_new_tokens=100, stop_on_loop=False),
    ):
        assert (result.finish_reason, len(result.tokens)) == ("length", 100)
    looping = scripted(tokenizer, script).generate("床", return_details=True, stop_on_loop=True)
    assert looping.finish_reason == "loop"


def test_chat_has_defaults_of_its_own_that_give_way() -> None:
    config = GenerationConfig(frequency_penalty=0.7)
    assert config.for_chat({}) == GenerationConfig(**{**CHAT_DEFAULTS, "frequency_penalty": 0.7})
    assert config.for_chat({"frequency_penalty": 0.0, "stop_on_loop": False}) == GenerationConfig(penalty_window=64)


def test_bad_words_do_not_come_however_they_are_cut(llm: LLM, tokenizer: JiebaTokenizer) -> None:
    options: dict[str, Any] = {"max_new_tokens": 60, "temperature": 1.3, "top_p": 1.0}
    free = "".join(llm.generate("床前", seed=seed, **options) for seed in range(20))
    for words in (["月"], ["光，", "明月"], [free[7:9], free[30:33]], ["é"]):
        for seed in range(20):
            text = "前床" + llm.generate("前床", bad_words=words, seed=seed, **options)
            assert not any(word in text for word in words)
    # Cut into single characters and bytes, which the words of the vocabulary are not.
    for script, word in (("明月光", "月光"), ("😀é", "😀"), ("光é。", "光é。")):
        pieces = [token for character in script for token in tokenizer.encode(character)]
        assert word not in scripted(tokenizer, pieces).generate("床", bad_words=word)
    # Begun by the prompt.
    assert "光" not in scripted(tokenizer, tokenizer.encode("光。")).generate("床前明月", bad_words="月光")


def test_biases_and_minimum_lengths(tokenizer: JiebaTokenizer) -> None:
    script = tokenizer.encode("明月光")
    月 = tokenizer.encode("霜")[0]
    biased = scripted(tokenizer, script).generate("床", logit_bias={月: 100.0}, max_new_tokens=3)
    assert biased == "霜霜霜"
    ended = scripted(tokenizer, [])
    assert ended.generate("床") == ""
    assert len(ended.generate("床", min_new_tokens=5, return_details=True).tokens) >= 5
    with pytest.raises(ValueError, match=r"from 0 to .* in logit_bias, got 99999"):
        ended.generate(logit_bias={99999: 1.0})
    with pytest.raises(ValueError, match="in stop_token_ids, got 99999"):
        ended.stream(stop_token_ids=[99999])


# --- batches


@pytest.mark.parametrize(
    "options", [SAMPLED, GREEDY, PENALISED, BEAMS], ids=["sampled", "greedy", "penalised", "beams"]
)
@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no cache"])
def test_a_batch_gives_what_each_prompt_gives_alone(llm: LLM, options: dict[str, Any], cached: bool) -> None:
    seed = options.get("seed", 0)
    alone = [llm.generate(prompt, **{**options, "seed": seed + k}) for k, prompt in enumerate(PROMPTS)]
    if not cached:
        llm.disable_kv_cache()
    assert llm.generate_batch(PROMPTS, **{**options, "seed": seed}) == alone
    miaobi.set_num_threads(1)
    assert llm.generate_batch(PROMPTS[::-1], **{**options, "do_sample": False}) == [
        llm.generate(prompt, **{**options, "do_sample": False}) for prompt in PROMPTS[::-1]
    ]


def test_several_texts_for_each_prompt(llm: LLM) -> None:
    texts = llm.generate_batch(["床前", "春眠"], num_return_sequences=3, seed=2**64 - 2, max_new_tokens=40)
    seeds = [(2**64 - 2 + k) % 2**64 for k in range(6)]
    prompts = ["床前"] * 3 + ["春眠"] * 3
    assert texts == [llm.generate(p, seed=s, max_new_tokens=40) for p, s in zip(prompts, seeds, strict=True)]
    results = llm.generate_batch(["床前"], num_return_sequences=2, seed=1, return_details=True)
    assert [result.seed for result in results] == [1, 2]
    assert llm.generate_batch([]) == []
    for call in (llm.generate, llm.stream):
        with pytest.raises(ValueError, match="expected num_return_sequences=1 for one text"):
            call("床", num_return_sequences=2)
    with pytest.raises(ValueError, match="expected prompts to be a list of texts"):
        llm.generate_batch("床前")


def test_more_texts_than_are_written_at_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [PROMPTS[k % 5] for k in range(23)]
    whole = llm.generate_batch(prompts, seed=1, max_new_tokens=20)
    monkeypatch.setattr("miaobi.session._MAX_ROWS", 4)
    assert llm.generate_batch(prompts, seed=1, max_new_tokens=20) == whole
    assert llm.generate_batch(["床"], seed=1, max_new_tokens=9, num_return_sequences=11) == [
        llm.generate("床", seed=1 + k, max_new_tokens=9) for k in range(11)
    ]
    assert llm.cache_info()["capacity"] <= 2 * CONTEXT  # a batch leaves nothing behind


def test_a_row_that_ends_makes_room_at_once(model: GPT, tokenizer: JiebaTokenizer) -> None:
    counting: Any = CountingModel(model)
    llm = LLM(counting, tokenizer)
    stops = {"stop": "月", "max_new_tokens": 30, "seed": 5, "temperature": 1.5}
    results = llm.generate_batch(["床前", "春眠", "举头"], return_details=True, **stops)
    lengths = sorted(len(result.tokens) for result in results)
    assert lengths[0] < lengths[-1]
    rows = counting.steps[1:]
    assert rows == sorted(rows, reverse=True)
    assert len(set(rows)) > 1


# --- cancelling, threads


class SlowModel(CountingModel):
    """Calls a function before each step."""

    def __init__(self, model: GPT, before: Callable[[int], None]) -> None:
        super().__init__(model)
        self.before = before

    def forward_cached(self, cache: Any, sequences: list[int], ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        self.before(len(self.steps))
        return super().forward_cached(cache, sequences, ids, offsets)

    def sample_cached(self, cache: Any, sequences: list[int], ids: list[int], samplers: Any, banned: Any) -> list[int]:
        self.before(len(self.steps))
        return super().sample_cached(cache, sequences, ids, samplers, banned)


@pytest.mark.parametrize("what", ["stream", "llm", "close"])
@pytest.mark.parametrize("where", [0, 1, 7])
def test_cancelling_ends_within_a_step(what: str, where: int, model: GPT, tokenizer: JiebaTokenizer) -> None:
    whole = LLM(model, tokenizer).generate("床前", max_new_tokens=30, seed=1)

    def from_another_thread(step: int) -> None:
        if step == where:
            cancel = {"stream": stream.cancel, "llm": llm.cancel, "close": stream.close}[what]
            thread = threading.Thread(target=cancel)
            thread.start()
            thread.join()

    slow: Any = SlowModel(model, from_another_thread)
    llm = LLM(slow, tokenizer)
    stream = llm.stream("床前", max_new_tokens=30, seed=1)
    text = "".join(stream)
    assert stream.finish_reason == "cancelled"
    assert len(slow.steps) == where + 1
    assert whole.startswith(text)
    assert len(text) < len(whole)
    slow.before = lambda step: None
    assert llm.generate("床前", max_new_tokens=30, seed=1) == whole  # the next call is not cancelled


def test_cancelling_within_a_long_prompt(tokenizer: JiebaTokenizer) -> None:
    config = miaobi.GPTConfig(tokenizer.vocab_size, n_positions=1024, n_embd=16, n_layer=1, n_head=2)
    slow: Any = SlowModel(GPT(config, seed=1), lambda step: llm.cancel() if step == 2 else None)
    llm = LLM(slow, tokenizer)
    result = llm.generate("春眠不觉晓，" * 100, return_details=True, seed=1)
    assert (result.text, result.tokens, result.finish_reason) == ("", (), "cancelled")
    assert len(slow.steps) == 3
    assert sum(slow.steps) < 400
    slow.before = lambda step: None
    again = llm.generate("春眠不觉晓，" * 100, seed=1)
    assert again == LLM(slow._model, tokenizer).generate("春眠不觉晓，" * 100, seed=1)
    assert sum(slow.steps) < 700  # what was encoded before is not encoded again


def test_a_batch_and_beams_are_cancelled(model: GPT, tokenizer: JiebaTokenizer) -> None:
    slow: Any = SlowModel(model, lambda step: llm.cancel() if step == 5 else None)
    llm = LLM(slow, tokenizer)
    ways: list[dict[str, Any]] = [{"seed": 1}, {"do_sample": False, "num_beams": 3}]
    for options in ways:
        slow.steps.clear()
        results = llm.generate_batch(["床前", "春眠"], max_new_tokens=30, return_details=True, **options)
        assert "cancelled" in [result.finish_reason for result in results]
        assert all(result.text for result in results)


def test_ctrl_c_leaves_the_rest_usable(model: GPT, tokenizer: JiebaTokenizer) -> None:
    def interrupt(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    slow: Any = SlowModel(model, interrupt)
    llm = LLM(slow, tokenizer)
    stream = llm.stream("床前", max_new_tokens=30, seed=1)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    slow.before = lambda step: None
    assert llm.generate("床前", max_new_tokens=30, seed=1) == LLM(model, tokenizer).generate(
        "床前", max_new_tokens=30, seed=1
    )


def test_threads_write_at_the_same_time(model: GPT, tokenizer: JiebaTokenizer) -> None:
    """Two calls are inside the model at once: each waits there for the other."""
    both = threading.Barrier(2)
    slow: Any = SlowModel(model, lambda step: both.wait(timeout=20) and None)
    llm = LLM(slow, tokenizer)
    with ThreadPoolExecutor(2) as pool:
        texts = list(pool.map(lambda seed: llm.generate("床前", max_new_tokens=6, seed=seed), [1, 2]))
    slow.before = lambda step: None
    assert texts == [llm.generate("床前", max_new_tokens=6, seed=seed) for seed in (1, 2)]


def test_a_stream_is_a_context(llm: LLM) -> None:
    with llm.stream("床前", seed=1, max_new_tokens=1000) as stream:
        first = next(stream)
    assert stream.finish_reason == "cancelled"
    assert list(stream) == []
    assert stream.seed == 1
    assert llm.generate("床前", seed=1, max_new_tokens=1000).startswith(first)
    stream = llm.stream("床前")
    stream.close()  # before it began
    stream.close()
    assert list(stream) == []


# --- cache, windows


def test_dialogues_keep_caches_of_their_own(model: GPT, tokenizer: JiebaTokenizer) -> None:
    counting: Any = CountingModel(model)
    llm = LLM(counting, tokenizer)
    streams = [llm.stream(prompt, max_new_tokens=3, seed=1) for prompt in ("床前明月光，", "春眠不觉晓，")]
    for stream in streams:
        next(stream)
    for stream in streams:
        list(stream)
    counting.steps.clear()
    for prompt in ("春眠不觉晓，处", "床前明月光，疑"):
        llm.generate(prompt, max_new_tokens=1, seed=1)
    assert all(step <= 4 for step in counting.steps)
    assert llm.cache_info()["capacity"] == 2 * CONTEXT


@pytest.mark.parametrize("window", [None, 9, "auto"])
@pytest.mark.parametrize("cuts", [[1] * 50, [50], [20, 1, 1, 28], [40, 10]], ids=str)
def test_forward_with_kv_cache(llm: LLM, window: Any, cuts: list[int]) -> None:
    """The same logits as in one piece without cache, past the context, too."""
    ids = np.random.default_rng(1).integers(7, llm.tokenizer.vocab_size, 50)
    llm.enable_kv_cache(window)
    llm.disable_kv_cache()
    want = llm.forward_with_kv_cache(ids)
    assert want.shape == (50, llm.tokenizer.vocab_size)
    np.testing.assert_allclose(want[:9], llm.model.forward(ids[None, :9])[0], atol=1e-4)
    for cached in (True, False):
        if cached:
            llm.enable_kv_cache(window)
        llm.clear_kv_cache()
        ends = np.cumsum(cuts)
        got = [llm.forward_with_kv_cache(ids[end - count : end]) for end, count in zip(ends, cuts, strict=True)]
        np.testing.assert_allclose(np.concatenate(got), want, atol=1e-4)
        info = llm.cache_info()
        assert (info["used"] > 0) == cached
        llm.disable_kv_cache()
    for wrong in ([], [[1]]):
        with pytest.raises(ValueError, match="expected ids"):
            llm.forward_with_kv_cache(wrong)


def test_an_automatic_window_takes_what_it_needs_and_changes_no_text(tokenizer: JiebaTokenizer) -> None:
    config = miaobi.GPTConfig(tokenizer.vocab_size, n_positions=300, n_embd=32, n_layer=1, n_head=2)
    model = GPT(config, seed=1)
    model.arena[:] *= 6
    auto, plain = LLM(model, tokenizer), LLM(model, tokenizer)
    auto.enable_kv_cache(window="auto")
    assert auto.context == 300
    capacities = []
    for turns in (1, 8, 20, 60):
        prompt = "春眠不觉晓，" * turns
        assert auto.generate(prompt, seed=turns) == plain.generate(prompt, seed=turns)
        capacities.append(auto.cache_info()["capacity"])
    assert capacities[0] == 128
    assert capacities[-1] == 320  # 300 in whole blocks
    assert all(a <= b for a, b in pairwise(capacities))


@pytest.mark.parametrize("window", [None, "auto", 20])
def test_a_text_of_many_contexts_needs_no_more_memory(llm: LLM, window: Any) -> None:
    llm.enable_kv_cache(window)
    stream = llm.stream("床前", max_new_tokens=40 * CONTEXT, seed=3, temperature=1.3)
    for _ in range(2 * CONTEXT):
        next(stream, "")
    gc.collect()
    before = miaobi._core.allocated_bytes()
    rest = "".join(stream)
    assert len(rest) > 20 * CONTEXT
    assert miaobi._core.allocated_bytes() <= before
    assert llm.cache_info()["capacity"] == CONTEXT
    assert len(set(rest[-200:])) >= len(set(rest[:200])) / 2  # as varied late as early


def test_a_long_text_costs_the_same_for_each_token(model: GPT, tokenizer: JiebaTokenizer) -> None:
    counting: Any = CountingModel(model)
    llm = LLM(counting, tokenizer)
    llm.generate("床前", max_new_tokens=20 * CONTEXT, seed=1)
    assert sum(counting.steps) <= 4.5 * 20 * CONTEXT  # one token and three again for each
