# SPDX-License-Identifier: MIT
"""Constraints: met exactly whatever the model says, with words and bytes, together, in beams and batches."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from llm_helpers import TEXTS, scripted, small_model, small_tokenizer

from miaobi.constraints import Acrostic, Constraint, ExactLength, LineLength, SentenceEnd, Written
from miaobi.llm import LLM
from miaobi.model import GPT, GPTConfig
from miaobi.token_rules import SENTENCE_ENDS, TokenTable, is_han
from miaobi.tokenizer import JiebaTokenizer

WAYS = pytest.mark.parametrize(
    "options",
    [{"temperature": 1.5, "top_p": 1.0}, {"do_sample": False}, {"do_sample": False, "num_beams": 3}],
    ids=["sampled", "greedy", "beams"],
)


def random_llm(words: list[str], seed: int = 1) -> LLM:
    """A model that knows nothing, with these words."""
    tokenizer = JiebaTokenizer(words)
    model = GPT(GPTConfig(tokenizer.vocab_size, n_positions=64, n_embd=16, n_layer=1, n_head=2), seed=seed)
    model.arena[:] *= 8
    return LLM(model, tokenizer)


# Words of several characters, punctuation in them, too few characters, no full stop: what could go wrong.
VOCABULARIES = {
    "as trained": None,
    "words": ["春", "风", "春风", "春风化雨", "夏日", "秋风瑟瑟", "冬", "，", "。", "雨。", "a春", "春a", "\n春"],
    "bytes": ["春风", "好好学习"],
}
vocabularies = pytest.mark.parametrize("words", VOCABULARIES.values(), ids=VOCABULARIES.keys())


def llm_of(words: list[str] | None, seed: int = 1) -> LLM:
    return LLM(small_model(), small_tokenizer()) if words is None else random_llm(words, seed)


def test_tokens_as_text() -> None:
    tokenizer = JiebaTokenizer(["春", "春风", "，", "雨。", "é", "a"])
    table = TokenTable(tokenizer)
    first = 263
    assert table.characters[first:].tolist() == [1, 2, 1, 2, 1, 1]
    assert table.characters[:7].tolist() == [0] * 7
    assert [int(table.characters[7 + byte]) for byte in (0x41, 0xE6, 0x98)] == [1, 1, 0]
    assert np.flatnonzero(table.han).tolist() == [first, first + 1]
    assert table.starting_with("春".encode()).tolist() == [first, first + 1]
    assert table.starting_with("春风".encode()).tolist() == [first + 1]
    assert table.starting_with(b"\xe6")[0] == 7 + 0xE6
    assert table.spell("春雨".encode()) == first
    assert table.spell("秋".encode()) == 7 + "秋".encode()[0]
    assert set(np.flatnonzero(table.ends_sentence)) == {first + 3, 7 + ord("!"), 7 + ord("?")}
    assert is_han("春〇𠮷")
    assert not any(is_han(text) for text in ("", "a", "春a", "，", "々", " "))


# --- verses


def check_poem(text: str, heads: str, length: int, endings: str = "，。") -> None:
    lines = text.split("\n")
    assert len(lines) == len(heads)
    for number, (line, head) in enumerate(zip(lines, heads, strict=True)):
        assert line[0] == head
        assert line[length:] == (endings[number % len(endings)] if endings else "")
        assert len(line) == length + bool(endings)
        assert length == 1 or is_han(line[1:length])


@WAYS
@vocabularies
@pytest.mark.parametrize(("heads", "length"), [("春夏秋冬", 7), ("妙笔", 5), ("春", 1), ("龘A月", 2)])
def test_an_acrostic_is_one(words: list[str] | None, heads: str, length: int, options: dict[str, Any]) -> None:
    llm = llm_of(words)
    poem = Acrostic(heads, length)
    for seed in range(4):
        result = llm.generate("咏", processors=[poem], seed=seed, max_new_tokens=1, return_details=True, **options)
        check_poem(result.text, heads, length)
        assert result.finish_reason == "stop"
        assert llm.tokenizer.decode(result.tokens) == result.text
        assert len(result.tokens) == len(result.logprobs)


@vocabularies
@pytest.mark.parametrize("endings", ["，。", "", "；", "！？。"])
@pytest.mark.parametrize("in_sight", [False, True])
def test_lines_end_as_they_are_told(words: list[str] | None, endings: str, in_sight: bool) -> None:
    llm = llm_of(words)
    poem = Acrostic("春夏秋冬春", 5, endings=endings, in_sight=in_sight)
    pieces = list(llm.stream("咏", processors=[poem], seed=3))
    check_poem("".join(pieces), "春夏秋冬春", 5, endings)
    assert all("\ufffd" not in piece for piece in pieces)
    if endings:
        text = llm.generate(processors=[LineLength(3, 4, endings=endings, breaks=False)], seed=1)
        assert len(text) == 16
        assert text[3::4] == (endings * 4)[:4]


def test_the_model_sees_line_breaks_only_if_it_should() -> None:
    for in_sight in (False, True):
        tokenizer = small_tokenizer()
        llm = scripted(tokenizer, tokenizer.encode("明月光霜月光") * 20)
        model: Any = llm.model
        text = llm.generate("床", processors=[LineLength(3, 3, in_sight=in_sight)])
        assert text.count("\n") == 2
        seen = tokenizer.decode(model.given[-1])
        assert seen.count("\n") == (2 if in_sight else 0)
        assert seen.replace("\n", "") == "床" + text[:-1].replace("\n", "")


def test_lines_without_number_go_on_and_the_model_may_end_them(llm: LLM) -> None:
    lines = llm.generate("春", processors=[LineLength(4)], max_new_tokens=60, seed=1).split("\n")
    assert len(lines) > 5
    assert all(len(line) == 5 and line[4] == "，。"[number % 2] for number, line in enumerate(lines[:-1]))
    for in_sight in (False, True):
        tokenizer = small_tokenizer()
        ending = scripted(tokenizer, [*tokenizer.encode("明月光"), tokenizer.eos_token_id] * 3)
        result = ending.generate("床", processors=[LineLength(3, in_sight=in_sight)], return_details=True)
        assert (result.text, result.finish_reason) == ("明月光，", "stop")


def test_beams_and_batches_keep_their_own_place(llm: LLM) -> None:
    poem = Acrostic("春夏秋冬", 7)
    alone = [llm.generate(prompt, processors=[poem], seed=seed) for seed, prompt in enumerate(["", "床前"], 5)]
    assert llm.generate_batch(["", "床前"], processors=[poem], seed=5) == alone
    many = llm.generate_batch(["咏"], processors=[poem], num_beams=4, num_return_sequences=4, do_sample=False)
    assert len(set(many)) == 4
    for text in many:
        check_poem(text, "春夏秋冬", 7)


# --- lengths and sentences


@WAYS
@vocabularies
@pytest.mark.parametrize("sentence_end", [False, True])
def test_exactly_so_many_characters(words: list[str] | None, sentence_end: bool, options: dict[str, Any]) -> None:
    llm = llm_of(words)
    for count in (1, 2, 3, 10, 61):
        result = llm.generate("月", processors=[ExactLength(count, sentence_end)], return_details=True, **options)
        assert len(result.text) == count
        assert result.finish_reason == "stop"
        assert not sentence_end or result.text.endswith(SENTENCE_ENDS)


@pytest.mark.parametrize(
    ("script", "minimum", "expected"),
    [
        ("月光。花落", 1, "月光。"),
        ("月光。花落。知多少！", 5, "月光。花落。"),
        ("他说：“月。花！”然后。", 1, "他说：“月。花！”"),
        ("（月光。）花。", 1, "（月光。）"),
        ("月光，花落", 1, "月光，花落"),
    ],
)
def test_a_text_ends_with_a_sentence(script: str, minimum: int, expected: str) -> None:
    tokenizer = JiebaTokenizer(sorted(set("".join([*TEXTS, script]))))
    assert scripted(tokenizer, tokenizer.encode(script)).generate(processors=[SentenceEnd(minimum)]) == expected


def test_a_prompt_s_sentence_is_not_the_text_s() -> None:
    tokenizer = small_tokenizer()
    llm = scripted(tokenizer, tokenizer.encode("月光。花"))
    assert llm.generate("花落。", processors=[SentenceEnd()]) == "月光。"


def test_constraints_are_met_together(llm: LLM) -> None:
    text = llm.generate(processors=[LineLength(5), ExactLength(4 * 7 - 1)], seed=2)
    assert [len(line) for line in text.split("\n")] == [6] * 4
    assert len(llm.generate(processors=[SentenceEnd(), ExactLength(30, sentence_end=True)], seed=2)) == 30
    with pytest.raises(ValueError, match=r"contradicts|at least one finite logit"):
        llm.generate(processors=[Acrostic("春夏", 5), ExactLength(4)])


def test_rules_of_the_call_hold_too(llm: LLM) -> None:
    options: dict[str, Any] = {"stop_on_loop": True, "stop_token_ids": llm.tokenizer.encode("月"), "do_sample": False}
    text = llm.generate("床前", processors=[ExactLength(80)], **options)
    assert len(text) == 80
    assert "月" not in text  # it would end the text too early
    assert "春" not in llm.generate(processors=[LineLength(7, 4)], bad_words=["春", "明月"], seed=3)


# --- processors of one's own


def test_any_function_is_a_processor(llm: LLM) -> None:
    texts = []

    def only_moon(written: Written, logits: np.ndarray) -> None:
        texts.append((written.tokens.copy(), written.characters, written.tail.decode()))
        logits[:] = -np.inf
        logits[llm.tokenizer.encode("月")] = 0

    assert llm.generate("床", max_new_tokens=3, processors=[only_moon]) == "月月月"
    月 = llm.tokenizer.encode("月")
    assert texts == [([], 0, "床"), (月, 1, "床月"), (月 * 2, 2, "床月月")]
    with pytest.raises(ValueError, match="expected processors"):
        llm.generate(processors=[Acrostic])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="expected processors"):
        llm.stream(processors=["春"])  # type: ignore[list-item]


def test_what_is_written_is_remembered_in_bounded_memory() -> None:
    tokenizer = JiebaTokenizer(["春"])
    written = Written(TokenTable(tokenizer), tokenizer.encode("夏" * 500), reach=300)
    for number, token in enumerate(tokenizer.encode("春龘" * 3000)):
        written.append(token, seen=number % 2 == 0)
    assert written.characters == 6000
    assert len(written.tail) == 300
    assert written.tail.decode("utf-8", "ignore").endswith("春龘")
    assert 1024 <= len(written.tokens) <= 2048


@pytest.mark.parametrize("text", ["é", "春", "😀", "a"])
def test_a_character_is_pending_until_its_last_byte(text: str) -> None:
    tokenizer = JiebaTokenizer(["春天"])
    written = Written(TokenTable(tokenizer), [], 0)
    ids = tokenizer.encode(text)
    for done, token in enumerate(ids, 1):
        written.append(token)
        assert written.characters == 1
        assert written.pending == (text.encode()[:done] if done < len(ids) else b"")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Acrostic("", 7),
        lambda: Acrostic("春，", 7),
        lambda: Acrostic("春", 0),
        lambda: LineLength(True),
        lambda: LineLength(5, 0),
        lambda: LineLength(5, endings="", breaks=False),
        lambda: ExactLength(-1),
        lambda: SentenceEnd(0),
    ],
)
def test_a_constraint_without_sense_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"expected .* of|expected LineLength"):
        make()


def test_a_constraint_that_asks_nothing_changes_nothing(llm: LLM) -> None:
    texts = {llm.generate("床前", seed=4, processors=processors) for processors in ([], [Constraint()])}
    assert len(texts) == 1
    assert all(repr(a) != repr(b) for a, b in pairwise([Acrostic("春", 3), LineLength(3), ExactLength(3)]))
