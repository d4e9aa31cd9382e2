# SPDX-License-Identifier: MIT
"""LLM: the same text with and without cache and past the context, side by side, from a folder; wrong folders."""

from __future__ import annotations

import gc
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llm_helpers import (
    BEAMS,
    CONTEXT,
    GREEDY,
    PENALISED,
    SAMPLED,
    TEXTS,
    CountingModel,
    new_model,
    scripted,
    small_model,
)

import miaobi
from miaobi.decoding import kept_tokens
from miaobi.errors import FormatError
from miaobi.generation import GenerationConfig
from miaobi.llm import LLM
from miaobi.model import GPT, AdamW, GPTConfig
from miaobi.tokenizer import JiebaTokenizer

BLOCK = 32  # tokens by which the cache counts
PROMPTS = ["", "床前", "春眠不觉晓，" * 20]
WAYS = pytest.mark.parametrize(
    "options", [SAMPLED, GREEDY, PENALISED, BEAMS], ids=["sampled", "greedy", "penalised", "beams"]
)


# --- the cache


@WAYS
@pytest.mark.parametrize("prompt", PROMPTS, ids=["empty", "short", "long"])
@pytest.mark.parametrize("window", [None, 1, 7])
def test_cache_changes_nothing(llm: LLM, prompt: str, options: dict[str, Any], window: int | None) -> None:
    llm.enable_kv_cache(window)
    cached = llm.generate(prompt, **options)
    assert llm.generate(prompt, **options) == cached
    llm.disable_kv_cache()
    assert llm.generate(prompt, **options) == cached
    assert llm.cache_info()["used"] == 0
    llm.enable_kv_cache(window)
    assert "".join(llm.stream(prompt, **options)) == cached
    assert cached


def test_each_token_is_given_to_the_model_once(model: GPT, tokenizer: JiebaTokenizer) -> None:
    counting: Any = CountingModel(model)
    llm = LLM(counting, tokenizer)
    llm.generate("床前", max_new_tokens=20, seed=3)
    prompt = len(tokenizer.encode("床前")) + 1
    assert counting.steps == [prompt] + [1] * 19
    assert llm.cache_info()["used"] > 0
    llm.clear_kv_cache()
    assert llm.cache_info() == {"capacity": 0, "used": 0, "bytes": 0}


def test_a_prompt_that_goes_on_reuses_the_cache_and_changes_nothing(model: GPT, tokenizer: JiebaTokenizer) -> None:
    counting: Any = CountingModel(model)
    llm = LLM(counting, tokenizer)
    first, second = "床前明月光，", "床前明月光，疑是地上霜。"
    llm.generate(first, max_new_tokens=1, seed=1)
    counting.steps.clear()
    text = llm.generate(second, max_new_tokens=8, seed=1)
    both, shared = (len(tokenizer.encode(prompt)) + 1 for prompt in (second, first))
    assert counting.steps[0] == both - shared
    assert LLM(model, tokenizer).generate(second, max_new_tokens=8, seed=1) == text


def test_changed_weights_are_seen(tokenizer: JiebaTokenizer) -> None:
    model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=CONTEXT, n_embd=16, n_layer=1, n_head=2))
    optimizer = AdamW(model, lr=1e-3)
    counting: Any = CountingModel(model)
    llm = LLM(counting, tokenizer)
    prompt = "床前明月光"
    ids = np.asarray([[tokenizer.bos_token_id, *tokenizer.encode(prompt)]], np.int32)
    for _ in range(2):
        llm.generate(prompt, max_new_tokens=1)
        assert counting.steps[-1] == ids.size  # all of it
        llm.generate(prompt, max_new_tokens=1)
        assert counting.steps[-1] == 1
        model.loss_backward(ids[:, :-1], ids[:, 1:])
        optimizer.step()


# --- past the context


def test_three_quarters_are_kept() -> None:
    assert [kept_tokens(limit) for limit in (1, 2, 3, 4, 32, 1000)] == [0, 1, 2, 3, 24, 750]


@pytest.mark.parametrize("window", [None, 1, 2, 5])
def test_ten_contexts_go_on_in_bounded_memory(model: GPT, tokenizer: JiebaTokenizer, window: int | None) -> None:
    counting: Any = CountingModel(model)
    llm = LLM(counting, tokenizer)
    llm.enable_kv_cache(window)
    limit = window or CONTEXT
    assert llm.context == limit
    pieces = llm.stream("床前", max_new_tokens=10 * CONTEXT, seed=3, temperature=1.2)
    text = next(pieces) + "".join(pieces)
    assert len(counting.steps) == 10 * CONTEXT  # never silent
    assert len(text) > CONTEXT
    assert max(counting.steps) <= limit
    assert llm.cache_info()["capacity"] == BLOCK
    # 3 tokens are encoded again for each token past the context; with a window of a few tokens the quarter is rounded.
    dropped = limit - kept_tokens(limit)
    assert sum(counting.steps) <= 10 * CONTEXT * (kept_tokens(limit) / dropped + 1) + CONTEXT


def test_a_window_is_all_that_is_seen(tokenizer: JiebaTokenizer) -> None:
    letters = tokenizer.encode("床前明月光，疑是地上霜。举头望明月")
    llm = scripted(tokenizer, letters)
    llm.enable_kv_cache(window=8)
    llm.disable_kv_cache()
    llm.generate("花落知多少", max_new_tokens=12)
    model: Any = llm.model
    everything = [tokenizer.bos_token_id, *tokenizer.encode("花落知多少"), *letters]
    assert max(map(len, model.given)) == 8
    for said, seen in enumerate(model.given):
        end = len(everything) - len(letters) + said
        assert seen == everything[end - len(seen) : end]
        assert len(seen) >= min(kept_tokens(8), end)


# --- seeds, threads, many at once


def test_same_seed_same_text(llm: LLM) -> None:
    texts = {llm.generate("床前", seed=seed, max_new_tokens=20) for seed in range(5)}
    assert len(texts) == 5
    assert {llm.generate("床前", seed=seed, max_new_tokens=20) for seed in range(5)} == texts
    assert len({llm.generate("床前", max_new_tokens=20) for _ in range(4)}) > 1


@WAYS
def test_threads_change_nothing(llm: LLM, options: dict[str, Any]) -> None:
    texts = set()
    for threads in (1, 2, 3):
        miaobi.set_num_threads(threads)
        llm.clear_kv_cache()
        texts.add(llm.generate("床前", **options))
    assert len(texts) == 1


def test_streams_that_run_side_by_side_do_not_meet(llm: LLM) -> None:
    prompts = ["床前", "春眠", "床前明月光，"]
    alone = [llm.generate(prompt, max_new_tokens=40, seed=i) for i, prompt in enumerate(prompts)]
    streams = [llm.stream(prompt, max_new_tokens=40, seed=i) for i, prompt in enumerate(prompts)]
    texts = [""] * 3
    for _ in range(41):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")
    assert texts == alone
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda i: llm.generate(prompts[i % 3], max_new_tokens=40, seed=i % 3), range(24)))
    assert again == alone * 8


def test_a_stream_closed_early_leaves_the_rest_usable(llm: LLM) -> None:
    whole = llm.generate("床前", **SAMPLED)
    stream = llm.stream("床前", **SAMPLED)
    first = next(stream)
    stream.close()
    assert whole.startswith(first)
    assert llm.generate("床前", **SAMPLED) == whole
    for _ in range(3):
        next(llm.stream("春眠", **SAMPLED))  # left to the collector
    gc.collect()
    assert llm.generate("床前", **SAMPLED) == whole


def test_an_error_within_a_step_leaves_the_rest_usable(model: GPT, tokenizer: JiebaTokenizer) -> None:
    counting: Any = CountingModel(model)
    llm = LLM(counting, tokenizer)
    whole = llm.generate("床前", **SAMPLED)
    stream = llm.stream("床前", **SAMPLED)
    next(stream)
    counting.sample_cached = None
    with pytest.raises(TypeError):
        list(stream)
    del counting.sample_cached
    assert llm.cache_info()["used"] == 0
    assert llm.generate("床前", **SAMPLED) == whole


# --- scores


def test_scores_are_the_model_s_own_losses(llm: LLM, model: GPT, tokenizer: JiebaTokenizer) -> None:
    text = "春眠不觉晓，处处闻啼鸟。"
    ids = np.asarray([[tokenizer.bos_token_id, *tokenizer.encode(text), tokenizer.eos_token_id]], np.int32)
    mean = float(model.loss(ids[:, :-1], ids[:, 1:]))
    score = llm.score(text)
    assert (score.tokens, score.characters) == (ids.shape[1] - 1, len(text))
    assert score.nats == pytest.approx(mean * score.tokens, rel=1e-5)
    assert llm.perplexity(text) == pytest.approx(math.exp(mean), rel=1e-5)
    assert score.bits_per_character == pytest.approx(score.nats / math.log(2) / len(text))
    assert llm.score("").tokens == 1
    assert math.isnan(llm.score("").bits_per_character)


def test_every_token_of_a_long_text_is_scored_once_with_half_a_context(llm: LLM, model: GPT) -> None:
    text = "".join(TEXTS) * 4
    tokenizer = llm.tokenizer
    ids = [tokenizer.bos_token_id, *tokenizer.encode(text), tokenizer.eos_token_id]
    nats = 0.0
    for place in range(1, len(ids)):
        # Windows start at multiples of half a context, and each scores what the one before it did not reach.
        start = max(-(-(place - CONTEXT) // (CONTEXT // 2)), 0) * (CONTEXT // 2)
        logits = model.forward(np.asarray([ids[start:place]], np.int32))[0, -1].astype(np.float64)
        nats -= logits[ids[place]] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    score = llm.score(text)
    assert score.tokens == len(ids) - 1
    assert score.nats == pytest.approx(nats, rel=1e-4)


# --- folders, options, closing


@pytest.fixture
def folder(llm: LLM, tmp_path: Path) -> Path:
    llm.generation_config = GenerationConfig(temperature=0.5, stop=["霜"])
    llm.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_writes_the_same(llm: LLM, folder: Path) -> None:
    again = LLM.from_pretrained(folder)
    assert again.generation_config == llm.generation_config
    assert again.generate("床前", seed=1) == llm.generate("床前", seed=1)
    config = json.loads((folder / "config.json").read_text())
    assert config["miaobi_tokenizer_hash"] == llm.tokenizer.hash
    assert (config["bos_token_id"], config["eos_token_id"]) == (2, 3)


def test_a_folder_without_a_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        LLM.from_pretrained(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        LLM.from_pretrained(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        LLM.from_pretrained(folder / "config.json")
    for name in ("miaobi_tokenizer.json", "model.safetensors"):
        broken = tmp_path / f"without {name}"
        shutil.copytree(folder, broken)
        (broken / name).unlink()
        with pytest.raises((FormatError, FileNotFoundError), match=f"without {name}"):
            LLM.from_pretrained(broken)
    (folder / "generation_config.json").unlink()
    assert LLM.from_pretrained(folder).generation_config == GenerationConfig()


def test_another_tokenizer_is_refused(llm: LLM, folder: Path) -> None:
    tokens = list(llm.tokenizer.tokens[263:])
    JiebaTokenizer([*tokens[1:], tokens[0]]).save(folder)
    with pytest.raises(FormatError, match="trained with the tokenizer"):
        LLM.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"vocab_size=.* tokenizer with"):
        LLM(llm.model, JiebaTokenizer(tokens[1:]))


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"miaobi_tokenizer_hash": 3}'])
def test_a_damaged_config_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(FormatError, match=r"config\.json"):
        LLM.from_pretrained(folder)


def test_unknown_options_are_refused_at_once(llm: LLM) -> None:
    with pytest.raises(ValueError, match="did you mean 'temperature'"):
        llm.stream("床前", temprature=1.0)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="expected top_p"):
        llm.stream_chat([{"role": "user", "content": "一"}], top_p=3.0)
    with pytest.raises(ValueError, match="half a surrogate"):
        llm.stream("\ud800")
    for window in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="expected window"):
            llm.enable_kv_cache(window)  # type: ignore[arg-type]


def test_a_closed_llm_says_so(model: GPT, tokenizer: JiebaTokenizer) -> None:
    with LLM(model, tokenizer) as llm:
        stream = llm.stream("床前", seed=1)
        next(stream)
    llm.close()
    with pytest.raises(ValueError, match="closed"):
        list(stream)
    calls = (llm.enable_kv_cache, llm.disable_kv_cache, llm.clear_kv_cache, llm.cache_info, llm.generate, llm.stream)
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()
    with pytest.raises(ValueError, match="closed"):
        llm.perplexity("床前")
    assert repr(llm) == "LLM(closed)"


def test_all_llms_of_a_model_read_its_weights_as_the_same_dtype(tokenizer: JiebaTokenizer) -> None:
    model = new_model()
    with LLM(model, tokenizer, dtype="bf16") as rounded:
        text = rounded.generate("床前", **SAMPLED)
        with pytest.raises(ValueError, match=r'expected dtype="bf16", as another LLM of this model has, got "float32"'):
            LLM(model, tokenizer)
        assert LLM(model, tokenizer, dtype="bf16").generate("床前", **SAMPLED) == text
    exact = LLM(model, tokenizer)
    exact.generate("床前", **SAMPLED)
    assert model.packed_as == "float32"


def test_bf16_weights_and_cache_write_text_and_follow_training(tokenizer: JiebaTokenizer) -> None:
    model = new_model()
    rounded, exact = LLM(model, tokenizer, dtype="bf16"), LLM(small_model(), tokenizer)
    rounded.enable_kv_cache(dtype="bf16")
    assert rounded.generate(PROMPTS[1], **GREEDY) == rounded.generate(PROMPTS[1], **GREEDY)
    assert model.packed_as == "bf16"
    ids = tokenizer.encode(TEXTS[0])
    np.testing.assert_allclose(rounded.forward_with_kv_cache(ids), exact.forward_with_kv_cache(ids), atol=0.5)
    assert 0 < rounded.cache_info()["bytes"] < exact.cache_info()["bytes"] * 3

    model.loss_backward(np.array([ids[:8]]), np.array([ids[1:9]]))
    AdamW(model, lr=0.1).step()
    assert model.packed_as is None
    again = LLM(model, tokenizer, dtype="bf16")
    np.testing.assert_array_equal(rounded.generate(PROMPTS[1], **GREEDY), again.generate(PROMPTS[1], **GREEDY))
    with pytest.raises(ValueError, match="float32"):
        LLM(model, tokenizer, dtype="int4")
    with pytest.raises(ValueError, match="float32"):
        exact.enable_kv_cache(dtype="fp8")
