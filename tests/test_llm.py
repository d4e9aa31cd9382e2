# SPDX-License-Identifier: MIT
"""LLM: the same text with and without cache, past the context and in pieces; stop strings, dialogues, wrong folders."""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import miaobi
from miaobi.beam import beam_search
from miaobi.decoding import Decoder, StopFilter, kept_tokens
from miaobi.errors import FormatError
from miaobi.generation import GenerationConfig
from miaobi.llm import LLM
from miaobi.model import GPT, GPTConfig
from miaobi.token_rules import TokenRules
from miaobi.tokenizer import JiebaTokenizer

TEXTS = [
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "用户：你好\n助手：你好！\n系统：",
]
CONTEXT = 32
BLOCK = 32  # tokens by which the cache counts
PROMPTS = ["", "床前", "春眠不觉晓，" * 20]
SAMPLED = {"max_new_tokens": 80, "seed": 3, "temperature": 1.2}
GREEDY = {"max_new_tokens": 80, "do_sample": False}
PENALISED = {"max_new_tokens": 40, "seed": 1, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "top_k": 20}
BEAMS = {"max_new_tokens": 40, "do_sample": False, "num_beams": 3}
WAYS = pytest.mark.parametrize(
    "options", [SAMPLED, GREEDY, PENALISED, BEAMS], ids=["sampled", "greedy", "penal", "beams"]
)


@pytest.fixture(scope="module")
def tokenizer() -> JiebaTokenizer:
    return JiebaTokenizer.train(TEXTS, 400, shrink=True)


@pytest.fixture(scope="module")
def model(tokenizer: JiebaTokenizer) -> GPT:
    config = GPTConfig(tokenizer.vocab_size, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4)
    model = GPT(config, seed=1)
    model.arena[:] *= 6  # far from uniform, so that what the model sees decides what it writes
    model.parameters()["transformer.wte.weight"][JiebaTokenizer.eos_token_id] = 0  # and goes on for long
    return model


@pytest.fixture
def llm(model: GPT, tokenizer: JiebaTokenizer) -> LLM:
    return LLM(model, tokenizer)


class ScriptedModel:
    """Stands in for a GPT: says the tokens of a script, one after the other, and counts the tokens it is given."""

    def __init__(self, tokenizer: JiebaTokenizer, script: Sequence[int], context: int = 1000) -> None:
        self.config = GPTConfig(tokenizer.vocab_size, n_positions=context, n_embd=8, n_layer=1, n_head=1)
        self.arena = np.zeros(8, np.float32)
        self.num_parameters = 8
        self.script = list(script)
        self.at = 0
        self.given: list[list[int]] = []

    def forward(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        if self.given and ids[-1] in self.script[self.at :]:
            self.at = self.script.index(ids[-1], self.at) + 1
        self.given.append(ids.tolist())
        logits = np.zeros((len(ids), self.config.vocab_size), np.float32)
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


def test_changed_weights_are_seen(model: GPT, tokenizer: JiebaTokenizer) -> None:
    changed = GPT(model.config, seed=1)
    llm = LLM(changed, tokenizer)
    llm.generate("床前明月光", do_sample=False)
    changed.arena[:] = model.arena
    assert llm.generate("床前明月光", do_sample=False) == LLM(model, tokenizer).generate("床前明月光", do_sample=False)


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


# --- stop strings and pieces


def test_pieces_never_split_a_character(tokenizer: JiebaTokenizer) -> None:
    text = "光😀é龘𠮷。"
    script = tokenizer.encode(text)
    assert len(script) > len(text)  # bytes
    llm = scripted(tokenizer, script)
    pieces = list(llm.stream("床", max_new_tokens=99))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert len(pieces) == len(text)


def test_a_character_without_its_last_bytes_is_left_out(tokenizer: JiebaTokenizer) -> None:
    script = tokenizer.encode("光😀")
    assert len(script) == 5
    assert scripted(tokenizer, script).generate("床", max_new_tokens=4) == "光"
    assert scripted(tokenizer, script).generate("床", max_new_tokens=5) == "光😀"


@pytest.mark.parametrize("options", [{}, {"do_sample": False, "num_beams": 2}], ids=["sampled", "beams"])
def test_what_is_written_is_valid_unicode(llm: LLM, options: dict[str, Any]) -> None:
    for seed in range(20):
        text = llm.generate("床", max_new_tokens=60, seed=seed, repetition_penalty=1 + seed / 10, **options)
        text += llm.chat([{"role": "user", "content": "床" * seed}], max_new_tokens=60, seed=seed, **options)
        assert "\ufffd" not in text
        assert len(text) > 20


def test_only_bytes_that_complete_a_character_may_follow(tokenizer: JiebaTokenizer) -> None:
    rules = TokenRules(tokenizer)
    by_byte = {tokenizer.token_bytes(i)[0]: i for i in range(7, 263)}
    for text in ("é", "\u0800", "中", "\ud7ff", "\ue000", "😀", "\U00010000", "\U0010ffff"):
        data = text.encode()
        for length in range(1, len(data)):
            ids = [by_byte[byte] for byte in data[:length]]
            allowed = set(range(tokenizer.vocab_size)) - set(rules.banned([*tokenizer.encode("月"), *ids]).tolist())
            for token in range(tokenizer.vocab_size):
                end = data[:length] + tokenizer.token_bytes(token)
                good = any(_decodes(end + more) for more in (b"", b"\x80", b"\x80\x80")) and token >= 7
                assert (token in allowed) == good
    starts = set(range(tokenizer.vocab_size)) - set(rules.banned(tokenizer.encode("中😀")).tolist())
    for byte, token in by_byte.items():
        assert (token in starts) == (byte < 0x80 or 0xC2 <= byte <= 0xF4)
    assert tokenizer.eos_token_id in starts
    assert tokenizer.eos_token_id in rules.banned([], opening=True)
    assert by_byte[ord("\n")] in rules.banned([], opening=True)


def _decodes(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("霜", "明月光，疑是地上"),
        ("光，疑", "明月"),  # over three tokens
        ("地上霜。举头望明天", "明月光，疑是地上霜。举头"),  # only its beginning comes
        (["头", "是地"], "明月光，疑"),
        (["上霜。举", "霜"], "明月光，疑是地上"),
        ("明", ""),
        ("没有", "明月光，疑是地上霜。举头"),
    ],
)
def test_stop_strings_end_the_text_and_never_leak(
    tokenizer: JiebaTokenizer, stop: str | list[str], expected: str
) -> None:
    script = tokenizer.encode("明月光，疑是地上霜。举头")
    pieces = list(scripted(tokenizer, script).stream("床前", stop=stop))
    assert "".join(pieces) == expected
    assert all(pieces)
    assert scripted(tokenizer, script, stop=stop).generate("床前") == expected


@settings(derandomize=True, deadline=None)
@given(
    text=st.text("ab"),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 20), max_size=8),
)
def test_stop_filter_does_not_depend_on_the_pieces(text: str, stops: list[str], cuts: list[int]) -> None:
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    whole = text
    if ends:
        whole = text[: ends[0] - max(len(stop) for stop in stops if text[: ends[0]].endswith(stop))]
    stop_filter = StopFilter(stops)
    shown = ""
    places = sorted({0, *cuts, len(text)} & set(range(len(text) + 1)))
    for begin, end in pairwise(places):
        shown += stop_filter.feed(text[begin:end])
        assert whole.startswith(shown)
        if stop_filter.stopped:
            break
    assert stop_filter.stopped == bool(ends)
    assert shown + stop_filter.finish() == whole


def test_the_end_token_ends_and_special_tokens_never_come(tokenizer: JiebaTokenizer) -> None:
    月 = tokenizer.encode("月")
    special = [i for i in tokenizer.special_tokens.values() if i != tokenizer.eos_token_id]
    assert scripted(tokenizer, [*月, tokenizer.eos_token_id, *月]).generate("床") == "月"
    assert scripted(tokenizer, []).generate("床") == ""
    for token in special:
        assert scripted(tokenizer, [token, *月]).generate("床", max_new_tokens=1) == "月"


# --- dialogues


def test_an_answer_is_visible_and_ends_where_the_next_turn_begins(tokenizer: JiebaTokenizer) -> None:
    script = [tokenizer.eos_token_id, *tokenizer.encode("你好！\n用户：")]
    llm = scripted(tokenizer, script)
    assert llm.chat([{"role": "user", "content": "你好"}]) == "你好！"
    script = [*tokenizer.encode("\n"), *tokenizer.encode("你好\n好\n系统：")]
    llm = scripted(tokenizer, script)
    assert "".join(llm.stream_chat([{"role": "user", "content": "你好"}])) == "你好\n好"
    model: Any = llm.model
    assert model.given[0] == [tokenizer.bos_token_id, *tokenizer.encode("用户：你好\n助手：")]


def test_a_long_dialogue_loses_its_oldest_turns(llm: LLM, tokenizer: JiebaTokenizer) -> None:
    system = {"role": "system", "content": "月"}
    dialogue = [{"role": ("user", "assistant")[i % 2], "content": "明月"} for i in range(9)]
    seen = llm.fit_dialogue(dialogue)
    assert 1 <= len(seen) < len(dialogue)
    assert seen == dialogue[-len(seen) :]
    assert seen[0]["role"] == "user"
    assert llm.fit_dialogue([system, *dialogue])[0] == system
    assert llm.fit_dialogue(dialogue[:1]) == dialogue[:1]
    long = [{"role": "user", "content": "春眠不觉晓，" * 30}]
    assert llm.fit_dialogue(long) == long
    for messages in (dialogue, long, [system, *dialogue]):
        for seed in range(5):
            assert llm.chat(messages, seed=seed, max_new_tokens=CONTEXT * 2).strip()
    llm.disable_kv_cache()
    uncached = llm.chat(dialogue, seed=1)
    llm.enable_kv_cache()
    assert llm.chat(dialogue, seed=1) == uncached


def test_a_dialogue_must_end_with_the_user(llm: LLM) -> None:
    with pytest.raises(ValueError, match="last message"):
        llm.chat([{"role": "user", "content": "一"}, {"role": "assistant", "content": "二"}])
    with pytest.raises(ValueError, match="at least one message"):
        llm.stream_chat([])


# --- seeds, threads, many at once


def test_same_seed_same_text(llm: LLM) -> None:
    texts = {llm.generate("床前", seed=seed, max_new_tokens=20) for seed in range(5)}
    assert len(texts) == 5
    assert {llm.generate("床前", seed=seed, max_new_tokens=20) for seed in range(5)} == texts
    assert len({llm.generate("床前", max_new_tokens=20) for _ in range(4)}) > 1


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = miaobi.get_num_threads()
    yield
    miaobi.set_num_threads(before)


@WAYS
@pytest.mark.usefixtures("restored_threads")
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
    counting.forward_cached = None
    with pytest.raises(TypeError):
        list(stream)
    del counting.forward_cached
    assert llm.cache_info()["used"] == 0
    assert llm.generate("床前", **SAMPLED) == whole


# --- beams


class TableModel:
    """Stands in for a GPT with five tokens whose logits are any function of the text."""

    def forward(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        rows = [self.logits(ids[begin:end].tolist()) for begin, end in pairwise(offsets.tolist())]
        logits = np.zeros((len(ids), 5), np.float32)
        logits[offsets[1:] - 1] = rows
        return logits

    def logits(self, ids: list[int]) -> np.ndarray:
        return np.random.default_rng(ids).normal(0, 2, 5).astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
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
