# SPDX-License-Identifier: MIT
"""The tokenizer's file: what is saved comes back the same, and anything else is refused with a reason."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miaobi.errors import FormatError
from miaobi.tokenizer import SPECIAL_TOKENS, TOKENIZER_FILE, JiebaTokenizer

TEXT = "今天天气很好，我们一起去公园散步。\n春天来了，公园里的花都开了。Latin 7.0\r\n"
new_words = st.sets(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)).map(
    lambda words: words - set(JiebaTokenizer([]).tokens)
)


@pytest.fixture(scope="module")
def tokenizer() -> JiebaTokenizer:
    return JiebaTokenizer.train([TEXT], 300)


def test_save_and_load(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    tokenizer.save(folder)
    assert [file.name for file in folder.iterdir()] == [TOKENIZER_FILE]
    loaded = JiebaTokenizer.load(str(folder))
    assert (loaded.tokens, loaded.hmm, loaded.hash) == (tokenizer.tokens, tokenizer.hmm, tokenizer.hash)
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    lines = (folder / TOKENIZER_FILE).read_text(encoding="utf-8").split("\n")
    assert json.dumps(tokenizer.tokens[290], ensure_ascii=False) + "," in lines
    before = (folder / TOKENIZER_FILE).read_bytes()
    loaded.save(folder)
    assert (folder / TOKENIZER_FILE).read_bytes() == before


@settings(derandomize=True, deadline=None, max_examples=40)
@given(words=new_words, hmm=st.booleans())
def test_any_word_list_survives_the_file(tmp_path_factory: pytest.TempPathFactory, words: set[str], hmm: bool) -> None:
    folder = tmp_path_factory.getbasetemp() / "words"
    tokenizer = JiebaTokenizer(sorted(words), hmm=hmm)
    tokenizer.save(folder)
    loaded = JiebaTokenizer.load(folder)
    assert (loaded.tokens, loaded.hmm, loaded.hash) == (tokenizer.tokens, hmm, tokenizer.hash)


def test_the_hash_tells_tokenizers_apart() -> None:
    tokenizers = [JiebaTokenizer(["一", "二"]), JiebaTokenizer(["二", "一"]), JiebaTokenizer(["一", "二"], hmm=True)]
    assert len({tokenizer.hash for tokenizer in tokenizers}) == 3
    assert JiebaTokenizer(["一", "二"]).hash == tokenizers[0].hash
    # Fixed for ever: model folders name it.
    assert tokenizers[0].hash == "d3c57d0b9b59bc7f7c9fce67518e5e33bd84b42e778b3c2e3c99967384266bdb"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "other"}, "format"),
        ({"version": 2}, "version"),
        ({"hash": "0" * 64}, "hash"),
        ({"hmm": True}, "hash"),
        ({"hmm": 0}, "hmm"),
        ({"special_tokens": list(reversed(SPECIAL_TOKENS))}, "special_tokens"),
        ({"byte_fallback": None}, "byte_fallback"),
        ({"tokens": 5}, "tokens"),
        ({"tokens": []}, "tokens"),
        ({"tokens": [*JiebaTokenizer([]).tokens, 5]}, "tokens"),
        ({"tokens": [*JiebaTokenizer([]).tokens, "一", "一"]}, "twice"),
        ({"tokens": [*JiebaTokenizer([]).tokens, "\ud800"]}, "surrogate"),
        ({"tokens": JiebaTokenizer(["二"]).tokens}, "hash"),
        ({"idioms": []}, "fields"),
    ],
)
def test_a_changed_file_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    JiebaTokenizer(["一"]).save(tmp_path)
    file = tmp_path / TOKENIZER_FILE
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(FormatError) as error:
        JiebaTokenizer.load(tmp_path)
    assert reason in error.value.reason
    assert error.value.path == str(file)


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"", 0),
        (b"{", 1),
        ('["龘",'.encode(), 7),
        (b"ab\xff", 2),
        (b"[]", None),
        (b"[" * 99_999, None),
        (b"9" * 9_999, None),
    ],
)
def test_what_is_no_tokenizer_file_is_refused(tmp_path: Path, data: bytes, offset: int | None) -> None:
    (tmp_path / TOKENIZER_FILE).write_bytes(data)
    with pytest.raises(FormatError) as error:
        JiebaTokenizer.load(tmp_path)
    assert error.value.offset == offset
    assert str(tmp_path) in str(error.value)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FormatError, match="no tokenizer here"):
            JiebaTokenizer.load(folder)


def test_mutated_files_are_refused_or_say_the_same(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    file = tmp_path / TOKENIZER_FILE
    original = file.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        data = bytearray(original)
        for _ in range(rng.choice([1, 1, 3])):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    del data[at : at + rng.randrange(1, 20)]
                case 2:
                    data[at:at] = data[rng.randrange(len(data)) :][: rng.randrange(1, 20)]
                case 3:
                    del data[at + 1 :]
        file.write_bytes(data)
        try:
            assert JiebaTokenizer.load(tmp_path).hash == tokenizer.hash
        except FormatError:
            refused += 1
    assert refused > 350


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    tokenizer: JiebaTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    JiebaTokenizer(["一"]).save(tmp_path)
    before = (tmp_path / TOKENIZER_FILE).read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        tokenizer.save(tmp_path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(TOKENIZER_FILE, before)]


def test_format_error_is_a_value_error_that_travels_between_processes() -> None:
    error = FormatError(Path("model") / "file", "too short", 12)
    assert isinstance(error, ValueError)
    again = pickle.loads(pickle.dumps(error))
    assert (again.path, again.reason, again.offset) == (str(Path("model") / "file"), "too short", 12)
    assert str(again) == f"{Path('model') / 'file'}: too short (at byte 12)"
    assert str(copy.copy(FormatError("f", "r"))) == "f: r"
