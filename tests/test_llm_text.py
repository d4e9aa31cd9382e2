# SPDX-License-Identifier: MIT
"""What LLM writes: whole characters, nothing of a stop string, answers that are visible and end in time."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_helpers import CONTEXT, scripted

from miaobi.llm import LLM
from miaobi.token_rules import TokenRules
from miaobi.tokenizer import JiebaTokenizer
from miaobi.writing import StopFilter

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
