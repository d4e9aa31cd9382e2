# SPDX-License-Identifier: MIT
"""The vocabulary API of the first version, lossless."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miaobi.tokenizer import SPECIAL_TOKENS
from miaobi.vocab import Vocab

TEXTS = ["我们今天学习人工智能。", "人工智能改变生活，生活改变我们。\n"]


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return Vocab.build_from_texts(TEXTS)


def test_words_have_ids_in_order() -> None:
    vocab = Vocab(["今天", "天气", "很", "好", "今天", "</s>", "", "<0x0A>"])
    assert len(vocab) == 263 + 4
    assert len(vocab.words) == len(vocab)
    assert vocab.words[263:] == ["今天", "天气", "很", "好"]
    assert vocab.words[:7] == list(SPECIAL_TOKENS)
    for i, word in enumerate(vocab.words):
        assert vocab.encode(word) == i
        assert vocab.decode(i) == word
    assert vocab.encode("明天") is None
    assert vocab.encode_with_unk("明天") == vocab.unk_token_id == 1
    assert vocab.encode_with_unk("天气") == 264
    assert vocab.decode(len(vocab)) is None
    assert vocab.decode(-1) is None


def test_special_tokens(vocab: Vocab) -> None:
    assert vocab.special_tokens == {token: i for i, token in enumerate(SPECIAL_TOKENS)}
    assert (vocab.pad_token_id, vocab.unk_token_id, vocab.bos_token_id, vocab.eos_token_id) == (0, 1, 2, 3)
    assert vocab.encode("</s>") == vocab.eos_token_id


def test_built_from_texts_it_has_every_character_and_word(vocab: Vocab) -> None:
    for token in {*"".join(TEXTS), "我们", "今天", "学习", "人工智能", "改变", "生活"}:
        assert vocab.encode(token) is not None, token
    assert min(vocab.encode_sequence("".join(TEXTS))) >= 263


def test_sequences_of_words_that_are_not_there_come_back(vocab: Vocab) -> None:
    text = "我们 明天\t学习 <|unk|> </s> 🐉 ＡＢＣ\r\n"
    ids = vocab.encode_sequence(text)
    assert vocab.decode_sequence(ids) == text
    assert vocab.encode("我们") in ids
    assert min(ids) >= 7
    assert Vocab([]).decode_sequence(Vocab([]).encode_sequence(text)) == text


@settings(derandomize=True, deadline=None, max_examples=100)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_sequence_comes_back(vocab: Vocab, text: str) -> None:
    assert vocab.decode_sequence(vocab.encode_sequence(text)) == text


def test_no_text_and_bad_words_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Vocab.build_from_texts([])
    with pytest.raises(ValueError, match="surrogate"):
        Vocab(["\ud800"])
