# SPDX-License-Identifier: MIT
"""Reading text files, and cutting and packing their tokens into batches."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from miaobi.batches import IGNORED_TARGET, Batches, TokenData
from miaobi.corpus import hold_out, read_corpus
from miaobi.errors import FormatError
from miaobi.shuffle import permutation
from miaobi.text_encoding import decode_text
from miaobi.tokenizer import JiebaTokenizer

POEM = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n"
TRADITIONAL = "國家圖書館藏有許多珍貴的歷史資料，學生們經常來這裡閱讀。"
BOS, EOS = JiebaTokenizer.bos_token_id, JiebaTokenizer.eos_token_id


@pytest.fixture(scope="module")
def tokenizer() -> JiebaTokenizer:
    return JiebaTokenizer.train([POEM], 300, shrink=True)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def data_of_lengths(*lengths: int) -> TokenData:
    """Documents of so many predictions; all ids but bos differ, so that each can be found again."""
    ids = iter(range(10, 10**6))
    documents = [[BOS, *(next(ids) for _ in range(n - 1)), EOS] for n in lengths]
    return TokenData.from_ids(documents, [n - 1 for n in lengths])


# --- encodings ---


@pytest.mark.parametrize(
    ("text", "codec", "name"),
    [
        (POEM, "utf-8", "UTF-8"),
        (POEM, "utf-8-sig", "UTF-8 with BOM"),
        (POEM, "gb18030", "GB18030"),
        (POEM, "gbk", "GB18030"),
        (POEM, "utf-16", "UTF-16"),
        (POEM, "utf-16-le", "UTF-16"),
        (POEM, "utf-16-be", "UTF-16"),
        (POEM, "utf-32", "UTF-32"),
        (TRADITIONAL, "big5", "Big5"),
        (TRADITIONAL, "gb18030", "GB18030"),
        ("only Latin, in two bytes each\n", "utf-16-le", "UTF-16"),
        ("mostly Latin, 不过也有一些中文 of 这样的。\n", "gb18030", "GB18030"),
        ("plain ASCII\tand a tab\n", "ascii", "UTF-8"),
        ("", "utf-8", "UTF-8"),
    ],
)
def test_encodings_are_recognised(text: str, codec: str, name: str) -> None:
    decoded = decode_text(text.encode(codec), "f.txt")
    assert decoded == (text, name)


@pytest.mark.parametrize(
    ("data", "offset", "words"),
    [
        (POEM.encode()[:40] + b"\xff" + POEM.encode()[40:], 40, "broken character"),
        (POEM.encode()[:-2], len(POEM.encode()) - 4, "broken character"),
        (b"\xff\xfe\x41", 2, "begins with the mark of UTF-16"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", 6, "binary"),
        (b"\x7fELF\x02\x01\x01\x00", 0, "binary"),
        (bytes(range(256)) * 20, 0, "binary"),
        ("모든 인간은 태어날 때부터 자유로우며".encode("euc_kr"), 0, "iconv"),
        ("Déjà vu, à côté de la forêt".encode("latin-1"), 1, "iconv"),
    ],
    ids=["damaged", "cut short", "utf16 mark", "png", "elf", "noise", "korean", "latin-1"],
)
def test_what_is_no_text_is_refused_with_its_place(data: bytes, offset: int, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        decode_text(data, "f.txt")
    assert caught.value.offset == offset
    assert str(caught.value).startswith("f.txt: ")
    assert "\n" not in str(caught.value)


def test_decoding_never_fails_in_another_way() -> None:
    seed = 7
    draw = random.Random(seed)
    refused: list[int | None] = []
    for _ in range(300):
        data = bytearray(draw.choice([POEM.encode(), POEM.encode("gb18030"), POEM.encode("utf-16"), b"{}"]))
        for _ in range(draw.randint(1, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            text = decode_text(bytes(data), "f.txt").text
        except FormatError as error:
            refused.append(error.offset)
        else:
            text.encode()
    assert len(refused) > 50, f"seed {seed}"
    assert all(offset is not None and 0 <= offset <= 200 for offset in refused), f"seed {seed}"


# --- documents ---


def test_a_document_in_each_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "一\r\n\r\n  二  \r三\u2028三\n\n")
    corpus = read_corpus(path)
    assert corpus.documents == ["一", "二", "三\u2028三"]
    source = corpus.sources[0]
    assert (source.path, source.encoding, source.documents, source.characters) == (str(path), "UTF-8", 3, 5)


def test_documents_between_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "\n\n一\n　二\n \t\n\n三\n")
    assert read_corpus([path], separator="blank").documents == ["一\n　二", "三"]
    with pytest.raises(ValueError, match='"line" or "blank"'):
        read_corpus(path, separator="page")  # type: ignore[arg-type]


def test_json_of_each_kind(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "您好！"}]
    values = ["  一行\n两行 ", {"text": "三", "id": 4}, {"messages": messages}, "", "用户：早 助手：早上好"]
    expected = ["一行\n两行", "三", "用户：你好\n助手：您好！", "用户：早\n助手：早上好"]
    as_list = write(tmp_path, "a.json", json.dumps(values))
    as_lines = write(tmp_path, "a.JSONL", "\n\n".join(json.dumps(value, ensure_ascii=False) for value in values))
    for path in (as_list, as_lines):
        corpus = read_corpus(path)
        assert corpus.documents == expected
        assert corpus.dialogues == corpus.sources[0].dialogues == 2
        assert corpus.characters == sum(map(len, expected))
    other = write(tmp_path, "b.json", json.dumps({"content": "四"}))
    assert read_corpus(other, text_field="content").documents == ["四"]


def test_dialogues_in_plain_text_come_out_in_one_form(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "User: 什么是雨？ Assistant: 云里落下的水\n用户：你好助手：您好\n雨是水\n")
    corpus = read_corpus(path)
    assert corpus.documents == ["用户：什么是雨？\n助手：云里落下的水", "用户：你好\n助手：您好", "雨是水"]
    assert corpus.dialogues == 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "the file is empty"),
        ("a.txt", b" \n\t\n", "there is no text in it"),
        ("a.txt", "长" * 1_000_001, "a line of 1,000,001 characters"),
        ("a.txt", b"x" * 10_000_000, "a line of 10,000,000 characters"),
        ("a.json", "[]", "there is no text in it"),
        ("a.json", '["\u4e00", 3]', "document 2: expected a string or an object, got a number"),
        ("a.json", '"\u4e00"', "expected a JSON list of documents, got a string"),
        ("a.json", '["\u4e00"', "line 1, column 5"),
        ("a.json", '"\u4e00"\n"\u4e8c"', "name the file .jsonl"),
        ("a.json", "[" * 100_000, "too deep"),
        ("a.json", '["\\ud83d"]', "half a surrogate pair"),
        ("a.json", '[{"title": "x", "body": "y"}]', "fields .'body', 'title'.*--text-field"),
        ("a.json", '[{"messages": [{"role": "robot", "content": "y"}]}]', "document 1: .*robot"),
        ("a.json", '[{"messages": "y"}]', "document 1: "),
        ("a.jsonl", '"\u4e00"\n[1\n', "line 2: expected JSON"),
        ("a.jsonl", '"\u4e00"\nnull\n', "line 2: expected a string or an object, got null"),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(ValueError, match=words) as caught:
        read_corpus(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_long_text_is_fine_if_its_lines_are_not(tmp_path: Path) -> None:
    text = "\n".join(["长" * 60_000] * 20)
    assert read_corpus(write(tmp_path, "a.txt", text), separator="blank").documents == [text]


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"this is a folder; give the files in it"):
        read_corpus(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_corpus(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="at least one file"):
        read_corpus([])
    if os.path.exists("/dev/zero"):
        with pytest.raises(ValueError, match="not a file"):
            read_corpus("/dev/zero")


# --- holding out ---


@pytest.mark.parametrize(
    ("count", "fraction", "expected"), [(1, 0.02, 0), (2, 0.02, 1), (9, 0.02, 1), (100, 0.02, 10), (5000, 0.02, 100)]
)
def test_a_part_is_held_out(count: int, fraction: float, expected: int) -> None:
    documents = [f"document {i}" for i in range(count)]
    train, held_out = hold_out(documents, fraction, seed=3)
    assert len(held_out) == expected
    assert sorted(train + held_out) == sorted(documents)
    assert (train, held_out) == hold_out(documents, fraction, seed=3)
    kept = set(train)
    assert train == [document for document in documents if document in kept]  # in order
    if 1 < count < 5000:
        return
    assert count == 1 or held_out != hold_out(documents, fraction, seed=4)[1]


def test_copies_go_to_one_side_and_long_documents_stay_in_training() -> None:
    train, held_out = hold_out(["甲", "乙"] * 30)
    assert {*train} | {*held_out} == {"甲", "乙"}
    assert not {*train} & {*held_out}
    documents = ["长" * 90_000, *(f"短{i}" for i in range(200))]
    for seed in range(5):
        _, held_out = hold_out(documents, seed=seed, max_characters=1000)
        assert sum(map(len, held_out[1:])) <= 1000
    assert hold_out(documents, 0.0)[1] == []
    with pytest.raises(ValueError, match="fraction"):
        hold_out(documents, 1.0)


def test_the_permutation_is_one_and_never_changes() -> None:
    for n in (0, 1, 2, 1000):
        assert sorted(permutation(n, 5, 1).tolist()) == list(range(n))
    assert permutation(8, 0, 0).tolist() == permutation(8, 0, 0).tolist()
    assert permutation(100, 1, 0).tolist() != permutation(100, 0, 1).tolist()
    assert permutation(8, 1, 2).tolist() == [7, 5, 6, 1, 4, 3, 0, 2]  # old checkpoints go on in the same order


# --- tokens and batches ---


def test_a_document_begins_with_bos_and_ends_with_eos(tokenizer: JiebaTokenizer) -> None:
    data = TokenData.from_texts(["明月", "霜"], tokenizer)
    assert data.tokens.tolist() == [BOS, *tokenizer.encode("明月"), EOS, BOS, *tokenizer.encode("霜"), EOS]
    assert data.characters.tolist() == [2, 1]
    assert data.predictions == len(data.tokens) - 2
    assert list(data.documents())[1].ids.tolist() == [BOS, *tokenizer.encode("霜"), EOS]
    assert data.hash == TokenData.from_texts(["明月", "霜"], tokenizer).hash
    assert data.hash != TokenData.from_texts(["霜", "明月"], tokenizer).hash


@pytest.mark.parametrize("lengths", [(3,), (1, 1, 1), (5, 17, 8, 30, 2, 16), (64,), (7,) * 40, (100, 3)])
@pytest.mark.parametrize("max_tokens", [1, 7, 16, 50, 10_000])
def test_every_token_is_predicted_once_in_an_epoch(lengths: tuple[int, ...], max_tokens: int) -> None:
    context = 8
    data = data_of_lengths(*lengths)
    following = dict(zip(data.tokens.tolist(), data.tokens.tolist()[1:], strict=False))
    batches = Batches(data, context, max_tokens, seed=1)
    for epoch in range(2):
        targets: list[int] = []
        sizes = []
        for batch in batches.epoch(epoch):
            assert batch.ids.dtype == batch.targets.dtype == np.int32
            assert batch.offsets[0] == 0
            assert batch.offsets[-1] == len(batch.ids) == len(batch.targets) == batch.scored
            assert np.diff(batch.offsets).min() >= 1
            assert np.diff(batch.offsets).max() <= context
            for start, end in zip(batch.offsets, batch.offsets[1:], strict=False):
                ids, following_ids = batch.ids[start:end].tolist(), batch.targets[start:end].tolist()
                assert ids[1:] == following_ids[:-1]  # one document, its tokens in order
                assert BOS not in ids[1:]
                assert ids[0] == BOS or following[ids[0]] == following_ids[0]
            targets += batch.targets.tolist()
            sizes.append(len(batch.ids))
        assert sorted(targets) == sorted(id for id in data.tokens.tolist() if id != BOS)
        assert targets.count(EOS) == len(lengths)
        assert max(sizes) <= max_tokens
        assert max(sizes[:-1], default=0) == min(sizes[:-1], default=0)
        assert len(sizes) == -(-sum(lengths) // max(sizes))


def test_a_document_longer_than_the_context_is_read_on_in_pieces() -> None:
    data = data_of_lengths(20)
    (batch,) = Batches(data, 8, 100).epoch()
    assert np.diff(batch.offsets).tolist() == [8, 8, 4]
    assert batch.ids.tolist() == data.tokens[:-1].tolist()
    assert batch.targets.tolist() == data.tokens[1:].tolist()
    assert batch.targets[-1] == EOS


def test_a_batch_depends_on_seed_and_epoch_only() -> None:
    data = data_of_lengths(*range(1, 60))
    batches = Batches(data, 16, 64, seed=2)
    wanted = [(1, 3), (0, 0), (1, 3), (5, 1)]
    taken = [batches.batch(*place) for place in wanted]
    for place, batch in zip(wanted, taken, strict=True):
        again = Batches(data, 16, 64, seed=2).batch(*place)
        for one, other in zip(batch[:3], again[:3], strict=True):
            np.testing.assert_array_equal(one, other)
    assert batches.batch(0, 0).ids.tolist() != batches.batch(1, 0).ids.tolist()
    assert batches.batch(0, 0).ids.tolist() != Batches(data, 16, 64, seed=3).batch(0, 0).ids.tolist()
    assert next(batches.epoch(1, 3)).ids.tolist() == taken[0].ids.tolist()
    with pytest.raises(IndexError):
        batches.batch(0, batches.batches_per_epoch)


def test_pad_is_never_scored() -> None:
    data = TokenData.from_ids([[BOS, 10, 11, EOS, 0, 0], [BOS, 12, EOS, 0]], [2, 1])
    (batch,) = Batches(data, 8, 100).epoch()
    assert batch.targets.tolist() == [10, 11, EOS, IGNORED_TARGET, IGNORED_TARGET, 12, EOS, IGNORED_TARGET]
    assert batch.scored == 5


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 100])
def test_the_parts_of_a_batch_are_its_sequences(parts: int) -> None:
    batch = Batches(data_of_lengths(*range(1, 20)), 16, 64, seed=0).batch(0, 1)
    split = list(batch.split(parts))
    assert 1 <= len(split) <= parts
    assert np.concatenate([part.ids for part in split]).tolist() == batch.ids.tolist()
    assert np.concatenate([part.targets for part in split]).tolist() == batch.targets.tolist()
    assert np.concatenate([np.diff(part.offsets) for part in split]).tolist() == np.diff(batch.offsets).tolist()
    assert sum(part.scored for part in split) == batch.scored
    assert max(len(part.ids) for part in split) <= len(batch.ids) / parts + 16


def test_bad_token_data_is_refused() -> None:
    with pytest.raises(ValueError, match="two tokens or more"):
        TokenData.from_ids([[BOS]], [0])
    with pytest.raises(ValueError, match="characters of 1 documents"):
        TokenData.from_ids([[BOS, EOS]], [])
    with pytest.raises(ValueError, match="at least one document"):
        Batches(TokenData.from_ids([], []), 8, 8)
    with pytest.raises(ValueError, match="1 or more"):
        Batches(data_of_lengths(3), 0, 8)


def test_a_part_of_the_documents_is_spread_over_all() -> None:
    data = data_of_lengths(*[10] * 40)
    part = data.spread(100)
    total = len(data.tokens)
    assert len(part) == 40 * 100 // total
    assert len(part.tokens) <= 100
    step = 40 // len(part)
    assert list(part.documents())[1].ids.tolist() == list(data.documents())[step].ids.tolist()
    assert data.spread(total) is data
    assert len(data.spread(1)) == 1
