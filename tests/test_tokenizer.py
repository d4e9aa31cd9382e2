# SPDX-License-Identifier: MIT
"""The tokenizer: exactly jieba's words, lossless on any Unicode, a vocabulary by frequency, an exact cache."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from miaobi.segmenter import segment
from miaobi.tokenizer import SPECIAL_TOKENS, JiebaTokenizer
from miaobi.tokenizer_train import count_texts

TEXTS = [
    "今天天气很好，我们一起去公园散步。\n春天来了，公园里的花都开了。",
    "人工智能是计算机科学的一个分支。LibreOffice 7.0 可以打开文本文档。\r\n",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "今天我们学习计算机科学，明天去公园。",
]
PIECES = ["公园", "计算机", "龘", "𠮷", "A", "b7", "Ａ", "é", "-", "、", "﷽", "🐉", "👨\u200d👩\u200d👧", "한국", "ไทย"]
PIECES += [" ", "\n", "\r\n", "\t", "\u3000", "\u2028", "\ufeff", "\x00", "\ufffd", "\U0010ffff", *SPECIAL_TOKENS]
# Every character but halves of surrogate pairs; naming the categories is much faster than naming a codec.
CHARACTERS = st.characters(exclude_categories=["Cs"])
any_text = st.one_of(st.text(CHARACTERS), st.lists(st.sampled_from(PIECES)).map("".join))
checked = settings(derandomize=True, deadline=None, max_examples=150)


@pytest.fixture(scope="module")
def tokenizer() -> JiebaTokenizer:
    return JiebaTokenizer.train(TEXTS, 320)


@pytest.fixture(scope="module")
def jieba(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """jieba's own tokenizer, set up its own way (the folder is for the cache file it writes)."""
    module = pytest.importorskip("jieba")
    module.setLogLevel(60)
    reference = module.Tokenizer()
    reference.tmp_dir = str(tmp_path_factory.mktemp("jieba"))
    return reference


# --- segment


@settings(checked, max_examples=80)
@given(text=any_text, hmm=st.booleans())
@example(text="".join(TEXTS), hmm=True)
@example(text="他来到了网易杭研大厦，小明硕士毕业于中国科学院计算所", hmm=True)
def test_segment_is_exactly_jieba(jieba: Any, text: str, hmm: bool) -> None:
    assert segment(text, hmm) == jieba.lcut(text, HMM=hmm)
    assert "".join(segment(text, hmm)) == text


def test_segment_refuses_bytes() -> None:
    with pytest.raises(TypeError, match="expected str, got bytes"):
        segment("今天".encode())  # type: ignore[arg-type]


def test_the_dictionary_is_loaded_late_once_silently_and_leaves_no_file(tmp_path: Path) -> None:
    program = """if True:
        import sys, threading
        import miaobi.tokenizer, miaobi.vocab
        assert "jieba" not in sys.modules
        from miaobi.segmenter import segment
        cuts = []
        threads = [threading.Thread(target=lambda: cuts.append(segment("今天天气很好"))) for _ in range(4)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert cuts == [["今天天气", "很", "好"]] * 4, cuts
        import logging
        assert not logging.getLogger().handlers
    """
    folder = {name: str(tmp_path) for name in ("TMPDIR", "TEMP", "TMP")}
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", program], env={**os.environ, **folder}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


# --- encode and decode


@checked
@given(text=any_text)
@example(text="")
@example(text="今天 天气\t很好\r\n\n　ＡＢＣ ｶﾅ 🐉 Latin 3.14 -- </s>")
def test_nothing_is_lost_and_no_text_is_special(tokenizer: JiebaTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(len(SPECIAL_TOKENS) <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.encode(text) == ids  # from the cache


@checked
@given(text=any_text)
def test_hmm_loses_nothing_either(text: str) -> None:
    tokenizer = JiebaTokenizer(["杭研", "大厦"], hmm=True)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_word_then_character_then_byte() -> None:
    tokenizer = JiebaTokenizer(["公园", "明", "天"])
    assert tokenizer.tokens[263:] == ("公园", "明", "天")
    assert tokenizer.encode("公园") == [263]
    assert tokenizer.encode("明天") == [264, 265]
    assert tokenizer.encode("后天") == [*(7 + byte for byte in "后".encode()), 265]
    assert tokenizer.tokens[7 + 10] == "<0x0A>"
    assert tokenizer.encode("\n") == [17]


@pytest.mark.parametrize("name", [*SPECIAL_TOKENS, "<0x0A>"])
def test_names_of_tokens_are_ordinary_text(tokenizer: JiebaTokenizer, name: str) -> None:
    ids = tokenizer.encode(name)
    assert tokenizer.token_id(name) not in ids
    assert len(ids) > 1
    assert tokenizer.decode(ids) == name


def test_special_ids(tokenizer: JiebaTokenizer) -> None:
    t = tokenizer
    ids = [t.pad_token_id, t.unk_token_id, t.bos_token_id, t.eos_token_id, t.sep_token_id, t.cls_token_id]
    assert [*ids, t.mask_token_id] == list(range(7))
    assert t.tokens[:7] == SPECIAL_TOKENS
    assert [t.special_tokens[token] for token in SPECIAL_TOKENS] == list(range(7))
    ids = [2, *t.encode("公园"), 3]
    assert t.decode(ids) == "公园"
    assert t.decode(ids, skip_special_tokens=False) == "<|bos|>公园</s>"


def test_bad_ids(tokenizer: JiebaTokenizer) -> None:
    for bad in (-1, tokenizer.vocab_size, 10**30):
        with pytest.raises(ValueError, match=f"expected ids from 0 to {tokenizer.vocab_size - 1}, got {bad}"):
            tokenizer.decode([7, bad])
    with pytest.raises(TypeError):
        tokenizer.decode([1.0])  # type: ignore[list-item]
    assert tokenizer.decode([7 + 0xE4, 7 + 0xB8]) == "\ufffd"


def test_numpy_ids(tokenizer: JiebaTokenizer) -> None:
    numpy = pytest.importorskip("numpy")
    ids = numpy.array(tokenizer.encode(TEXTS[0]), dtype=numpy.int32)
    assert tokenizer.decode(ids) == TEXTS[0]
    assert tokenizer.coverage([ids]) == tokenizer.coverage([TEXTS[0]])


@pytest.mark.parametrize("text", ["好\ud800", "好\udc80啊"])
def test_half_a_surrogate_pair_is_refused(tokenizer: JiebaTokenizer, text: str) -> None:
    with pytest.raises(ValueError, match=r"half a surrogate pair \(U\+D[8C][80]0\) at character 1 of the text"):
        tokenizer.encode(text)
    with pytest.raises(ValueError, match="at character 1 of text 1;"):
        JiebaTokenizer.train(["好", text])


def test_wrong_types_are_refused(tokenizer: JiebaTokenizer) -> None:
    with pytest.raises(TypeError, match="expected str, got bytes"):
        tokenizer.encode(b"abc")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="one str"):
        tokenizer.encode_batch("公园")
    with pytest.raises(TypeError, match="one str"):
        JiebaTokenizer.train("公园")
    with pytest.raises(TypeError, match="got bytes"):
        JiebaTokenizer.train([b"abc"])  # type: ignore[list-item]


def test_batch(tokenizer: JiebaTokenizer) -> None:
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.encode_batch([]) == []


@checked
@given(ids=st.lists(st.integers(0, 319)), skip=st.booleans())
@example(ids=[7 + byte for byte in "🐉".encode()], skip=True)
@example(ids=[7 + 0xF0, 7 + 0x9F, 3, 7 + 0xE4], skip=False)
def test_stream_equals_decode(tokenizer: JiebaTokenizer, ids: list[int], skip: bool) -> None:
    stream = tokenizer.decode_stream(skip_special_tokens=skip)
    for _again in range(2):  # a finished stream can be used again
        parts = [stream.feed(i) for i in ids]
        assert "".join([*parts, stream.finish()]) == tokenizer.decode(ids, skip_special_tokens=skip)


def test_stream_holds_a_character_until_it_is_whole(tokenizer: JiebaTokenizer) -> None:
    stream = tokenizer.decode_stream()
    assert [stream.feed(7 + byte) for byte in "龘a".encode()] == ["", "", "龘", "a"]
    assert stream.finish() == ""


def test_coverage() -> None:
    tokenizer = JiebaTokenizer(["公园", "明", "天"])
    coverage = tokenizer.coverage(["公园明天", "龘"])
    assert coverage == (5, 6, 2, 3, 1)
    assert coverage.tokens_per_character == 6 / 5
    assert coverage.character_share == 2 / 6
    assert coverage.byte_share == 1 / 5
    assert tokenizer.coverage([[2, *tokenizer.encode("公园明天"), 3], tokenizer.encode("龘")]) == coverage
    assert tokenizer.coverage([]).tokens_per_character == 0


# --- train


def test_vocabulary_is_by_frequency() -> None:
    tokenizer = JiebaTokenizer.train(["公园", "公园", "公园", "明天", "明天", "散步"], 263 + 8)
    assert tokenizer.vocab_size == 271
    assert tokenizer.tokens[263:] == ("公", "园", "天", "明", "散", "步", "公园", "明天")


def test_characters_come_before_words_in_a_small_vocabulary() -> None:
    tokens = JiebaTokenizer.train(["公园" * 50 + "天地玄黄"], 263 + 4).tokens[263:]
    assert tokens == ("公", "园", "地", "公园")


def test_training_is_deterministic_and_takes_a_generator() -> None:
    texts = [f"{a}{b}" for a in TEXTS for b in TEXTS]
    one = JiebaTokenizer.train(texts, 400, sample_chars=100, seed=7, shrink=True)
    assert JiebaTokenizer.train(iter(texts), 400, sample_chars=100, seed=7, shrink=True).hash == one.hash
    assert JiebaTokenizer.train(texts, 400, sample_chars=100, seed=8, shrink=True).hash != one.hash
    full = JiebaTokenizer.train(texts, 300)
    assert JiebaTokenizer.train(reversed(texts), 300).hash == full.hash


def test_a_sample_is_as_long_as_asked_and_fair() -> None:
    lines = [f"{letter}{letter}{letter}{letter}\n" for letter in "abcdefghijklmnopqrst"]
    seen: Counter[str] = Counter()
    for seed in range(400):
        words = count_texts(["".join(lines)], 300, sample_chars=52, seed=seed).words
        assert len(words) == sum(words.values()) == 10  # lines of five characters
        seen.update(words)
    assert len(seen) == 20
    assert all(150 < times < 250 for times in seen.values()), seen  # 200 expected; 50 is five standard deviations


def test_line_ends_are_learnt() -> None:
    assert {"\n", "\r", "\r\n"} < set(JiebaTokenizer.train(["公园\r\n", "a\n"], 400, shrink=True).tokens)


def test_min_frequency_holds_for_characters_and_words() -> None:
    tokenizer = JiebaTokenizer.train(["公园 公园 明天"], 400, min_frequency=2, shrink=True)
    assert set(tokenizer.tokens[263:]) == {"公", "园", " ", "公园"}


def test_a_sample_still_counts_every_character() -> None:
    tokenizer = JiebaTokenizer.train([*TEXTS, "龘"], 10_000, sample_chars=0, shrink=True)
    assert set(tokenizer.tokens[263:]) == {*"".join(TEXTS), "龘"}


def test_progress_and_very_long_lines() -> None:
    calls: list[tuple[int, int]] = []
    text = "我们去公园。" * 5_000
    tokenizer = JiebaTokenizer.train([text], 268, progress=lambda done, total: calls.append((done, total)))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    # The line is cut in parts of 10,000 characters, of which two happen to differ.
    assert calls[-1][0] == calls[-1][1] > 0
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_a_very_long_word_is_no_token() -> None:
    tokenizer = JiebaTokenizer.train(["a" * 100_000, "abc"], 1_000, shrink=True)
    assert tokenizer.tokens[263:] == ("a", "b", "c", "abc")


@pytest.mark.parametrize("options", [{}, {"min_frequency": 2}, {"hmm": True}])
def test_vocabulary_larger_than_the_texts_support(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="vocab_size=8000 is more than the texts support") as error:
        JiebaTokenizer.train(TEXTS, **options)
    largest = JiebaTokenizer.train(TEXTS, shrink=True, **options).vocab_size
    assert f"use a size of {largest} or less" in str(error.value)
    assert JiebaTokenizer.train(TEXTS, largest, **options).vocab_size == largest
    with pytest.raises(ValueError, match="more than the texts support"):
        JiebaTokenizer.train(TEXTS, largest + 1, **options)


def test_vocabulary_too_small_or_no_text() -> None:
    with pytest.raises(ValueError, match="at least 264"):
        JiebaTokenizer.train(TEXTS, 263)
    assert JiebaTokenizer.train(TEXTS, 264).vocab_size == 264
    for texts in ([], [""]):
        with pytest.raises(ValueError, match="texts are empty"):
            JiebaTokenizer.train(texts, shrink=True)


@pytest.mark.parametrize("words", [["a", "a"], [""], ["</s>"], ["<0x00>"], ["\ud800"]])
def test_bad_words_are_refused(words: list[str]) -> None:
    with pytest.raises(ValueError, match="expected"):
        JiebaTokenizer(words)


# --- cache


def test_cache_counts_under_threads() -> None:
    tokenizer = JiebaTokenizer(["公园"], cache_entries=8)
    texts = [f"公园{i % 12}" for i in range(1_200)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(tokenizer.encode, texts))
    assert [tokenizer.decode(ids) for ids in results] == texts
    info = tokenizer.cache_info()
    assert info.hits + info.misses == len(texts)
    assert info.entries == info.max_entries == 8


def test_a_cached_result_cannot_be_spoilt(tokenizer: JiebaTokenizer) -> None:
    ids = tokenizer.encode("公园")
    expected = list(ids)
    ids.append(0)
    tokenizer.encode("公园").clear()
    assert tokenizer.encode("公园") == expected


def test_long_texts_are_not_kept_and_clear_empties() -> None:
    tokenizer = JiebaTokenizer(["公园"])
    tokenizer.encode("公园" * 20_000)
    assert tokenizer.cache_info().entries == 0
    tokenizer.encode("公园")
    assert tokenizer.cache_info().entries == 1
    tokenizer.cache_clear()
    assert tokenizer.cache_info()[:3] == (0, 2, 0)


def test_the_cache_is_free_while_a_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = JiebaTokenizer(["公园"])
    tokenizer.encode("公园")
    cutting, go_on = threading.Event(), threading.Event()

    def slow_encode(text: str) -> list[int]:
        cutting.set()
        assert go_on.wait(10)
        return [7 + byte for byte in text.encode()]

    monkeypatch.setattr(tokenizer, "encode_ordinary", slow_encode)
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(tokenizer.encode, "很慢")
        assert cutting.wait(10)
        try:
            assert pool.submit(tokenizer.encode, "公园").result(timeout=10) == [263]
            assert not slow.done()
        finally:
            go_on.set()
        assert tokenizer.decode(slow.result()) == "很慢"


# --- real text, where it lies beside the repository


@pytest.mark.parametrize("name", ["modern.val.txt", "poetry.val.txt"])
def test_real_text(jieba: Any, name: str) -> None:
    file = Path(__file__).parents[2] / "shared" / "data" / name
    if not file.exists():
        pytest.skip(f"no {file}")
    text = file.read_bytes().decode()[:60_000]
    tokenizer = JiebaTokenizer.train([text], 3_000, shrink=True)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert segment(text[:20_000]) == jieba.lcut(text[:20_000], HMM=False)
    coverage = tokenizer.coverage([text])
    assert coverage.characters == len(text)
    assert coverage.byte_share < 0.05
