# SPDX-License-Identifier: MIT
"""Tokens on disk are what memory would hold, and reused only while nothing changed; text is read in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from train_helpers import TEXTS, config, make_model, make_tokenizer

from miaobi import files as files_module
from miaobi import text_encoding as text_encoding_module
from miaobi.batches import Batches, TokenData
from miaobi.chat import ChatTemplate
from miaobi.corpus import Documents, read_corpus
from miaobi.errors import FormatError
from miaobi.text_encoding import decode_text, read_text
from miaobi.token_file import open_tokens, tokenize
from miaobi.tokenizer import JiebaTokenizer
from miaobi.trainer import Trainer

DIALOGUE = [{"role": "user", "content": "床前？"}, {"role": "assistant", "content": "明月光。"}]


@pytest.fixture(scope="module")
def tokenizer() -> JiebaTokenizer:
    return make_tokenizer()


def same(one: TokenData, other: TokenData) -> None:
    for mine, theirs in ((one.tokens, other.tokens), (one.starts, other.starts), (one.characters, other.characters)):
        np.testing.assert_array_equal(mine, theirs)
    assert (one.scored is None) == (other.scored is None)
    if one.scored is not None:
        np.testing.assert_array_equal(one.scored, other.scored)
    assert one.hash == other.hash


@pytest.mark.parametrize("dialogues", [False, True])
def test_a_file_holds_what_memory_would(tokenizer: JiebaTokenizer, tmp_path: Path, dialogues: bool) -> None:
    documents = Documents.of([*TEXTS, DIALOGUE] if dialogues else TEXTS)
    told: list[tuple[int, int]] = []
    data, reused = tokenize(tmp_path / "t", documents, tokenizer, lambda *now: told.append(now))
    assert not reused
    assert told[-1] == (documents.characters, documents.characters)
    assert isinstance(data.tokens, np.memmap)
    assert data.tokens.dtype == np.dtype("<u2")
    memory = TokenData.from_texts(documents, tokenizer)
    same(data, memory)
    same(open_tokens(tmp_path / "t"), memory)
    for place in ((0, 0), (3, 1)):
        for one, other in zip(
            Batches(data, 8, 24, seed=1).batch(*place), Batches(memory, 8, 24, seed=1).batch(*place), strict=True
        ):
            np.testing.assert_array_equal(one, other)
            assert np.asarray(one).dtype == np.asarray(other).dtype
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t"]


def test_a_large_vocabulary_takes_32_bits(tmp_path: Path) -> None:
    words = [chr(0x20000 + i) for i in range(40_000)] + [f"词{i}" for i in range(30_000)]
    tokenizer = JiebaTokenizer(words)
    documents = Documents.of([words[0] + words[39_999]])
    data, _ = tokenize(tmp_path / "t", documents, tokenizer)
    assert data.tokens.dtype == np.dtype("<u4")
    same(data, TokenData.from_texts(documents, tokenizer))


def test_a_run_on_mapped_tokens_is_the_same_run(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    data, _ = tokenize(tmp_path / "t", Documents.of(TEXTS), tokenizer)
    mapped = Trainer(make_model(tokenizer), tokenizer, config())
    mapped.fit(data)
    memory = Trainer(make_model(tokenizer), tokenizer, config())
    memory.fit(TEXTS)
    assert mapped.model.arena.tobytes() == memory.model.arena.tobytes()
    assert mapped.state.train_hash == memory.state.train_hash


def test_it_is_written_anew_only_when_something_changed(tokenizer: JiebaTokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    documents = Documents.of([*TEXTS, DIALOGUE])
    tokenize(folder, documents, tokenizer)
    before = (folder / "tokens.bin").stat().st_mtime_ns
    assert tokenize(folder, Documents.of([*TEXTS, DIALOGUE]), tokenizer)[1]
    assert (folder / "tokens.bin").stat().st_mtime_ns == before
    assert not tokenize(folder, Documents.of([*TEXTS[::-1], DIALOGUE]), tokenizer)[1]
    assert not tokenize(folder, documents, JiebaTokenizer([*tokenizer.tokens[263:], "别的"]))[1]
    assert not tokenize(folder, documents, tokenizer)[1]
    assert not tokenize(folder, documents, tokenizer, template=ChatTemplate(assistant="答："))[1]
    text = "".join(f'{{"role": "{m["role"]}", "content": "{m["content"]}"}}' for m in DIALOGUE)
    assert not tokenize(folder, Documents.of([*TEXTS, text]), tokenizer)[1]


@pytest.mark.parametrize("name", ["tokens.bin", "starts.bin", "characters.bin", "scored.bin", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_a_damaged_file_is_refused_and_written_anew(
    tokenizer: JiebaTokenizer, tmp_path: Path, name: str, damage: str
) -> None:
    documents = Documents.of([*TEXTS, DIALOGUE])
    tokenize(tmp_path / "t", documents, tokenizer)
    path = tmp_path / "t" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    if damage != "missing":
        path.write_bytes(content if damage == "flip" and name != "manifest.json" else content[: len(content) // 2])
    with pytest.raises((FormatError, FileNotFoundError)):
        open_tokens(tmp_path / "t")
    data, reused = tokenize(tmp_path / "t", documents, tokenizer)
    assert not reused
    same(data, TokenData.from_texts(documents, tokenizer))


def test_a_full_disk_is_seen_before_writing(
    tokenizer: JiebaTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=10**9, used=10**9 - 1000, free=1000)
    monkeypatch.setattr(files_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="the tokens of the text take 17 MB, 0 MB are free"):
        tokenize(tmp_path / "t", Documents.of(TEXTS), tokenizer)
    assert list(tmp_path.iterdir()) == []


# --- text larger than memory ---


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "gb18030", "big5", "utf-16", "utf-16-le"])
def test_a_large_file_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    text = "國家圖書館藏有許多珍貴的歷史資料，學生們經常來這裡閱讀。\r\n" * 40 + "短。\r\n"
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(codec))
    whole = decode_text(path.read_bytes(), path)
    expected = read_corpus(path)
    monkeypatch.setattr(text_encoding_module, "_WHOLE_BYTES", 100)
    for chunk in (61, 64, 1009):  # characters and line ends fall across the cuts
        monkeypatch.setattr(text_encoding_module, "_CHUNK_BYTES", chunk)
        name, parts = read_text(path)
        found = list(parts)
        assert len(found) > 1
        assert ("".join(found), name) == whole
        corpus = read_corpus(path)
        assert corpus.documents == expected.documents
        assert corpus.hash == expected.hash


def test_a_fault_far_into_a_large_file_has_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    good = "床前明月光，疑是地上霜。\n".encode() * 50
    path.write_bytes(good + b"\xff\n" + good)
    monkeypatch.setattr(text_encoding_module, "_WHOLE_BYTES", 100)
    monkeypatch.setattr(text_encoding_module, "_CHUNK_BYTES", 100)
    with pytest.raises(FormatError, match="begins as UTF-8") as caught:
        read_corpus(path)
    assert caught.value.offset == len(good)
    path.write_bytes("长".encode() * 1_100_000)
    monkeypatch.setattr(text_encoding_module, "_CHUNK_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="line 1: a line of more than 1,000,000 characters"):
        read_corpus(path)


PEAK = """
import sys
from pathlib import Path
from miaobi import text_encoding
from miaobi.corpus import read_corpus
from miaobi.peak_memory import peak_memory
from miaobi.token_file import tokenize
from miaobi.tokenizer import JiebaTokenizer
text_encoding._WHOLE_BYTES = text_encoding._CHUNK_BYTES = 1 << 16
tokenizer = JiebaTokenizer("ab \\n")
tokenizer.encode("ab")
before = peak_memory()
tokenize(Path(sys.argv[2]), read_corpus(sys.argv[1]), tokenizer)
print(peak_memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process, not of those before it")
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    line = "a " * 2000 + "\n"
    path.write_text(line * 2000, "utf-8")  # 8 MB of text, and as many tokens
    command = [sys.executable, "-W", "ignore", "-c", PEAK, path, tmp_path / "t"]
    grown = int(subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout)
    assert json.loads((tmp_path / "t/manifest.json").read_text())["tokens"] > 7_500_000
    # Buffers of a million tokens, the mapped file's own pages of 16 MB, which the system may take back, and the index.
    # All tokens at once would be 32 MB as arrays, and several times that as lists.
    assert grown < 50e6


LIMITED = """
import resource, sys
from miaobi import text_encoding
from miaobi.corpus import read_corpus
text_encoding._WHOLE_BYTES = text_encoding._CHUNK_BYTES = 1 << 16
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (12 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
corpus = read_corpus(sys.argv[1])
print(len(corpus), sum(map(len, corpus)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of memory")
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_a_text_larger_than_memory_is_read_in_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    lines = ["床前明月光，" * 1000] * 1200  # 22 MB, and 14 MB as str
    if name == "a.json":
        path.write_text(json.dumps(lines, ensure_ascii=False), "utf-8")
    else:
        mark = '"' if name == "a.jsonl" else ""
        path.write_text("".join(f"{mark}{line}{mark}\n" for line in lines), "utf-8")
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, path]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.stdout == "1200 7200000\n", done.stderr


# --- what a corpus tells ---


def test_copies_are_left_out_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("甲\n乙\n甲\n丙\n乙\n甲乙\n", "utf-8")
    corpus = read_corpus(path)
    assert list(corpus.deduplicated()) == ["甲", "乙", "丙", "甲乙"]
    assert corpus.deduplicated().characters == 5
    train, held_out = corpus.deduplicated().hold_out(0.5)
    assert sorted([*train, *held_out]) == ["丙", "乙", "甲", "甲乙"]  # a part of a part


def test_text_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for changed in ("甲\n乙\n", "甲\n丙\n乙\n", "甲\n乙\n丁\n"):
        path.write_text("甲\n乙\n丙\n", "utf-8")
        corpus = read_corpus(path)
        path.write_text(changed, "utf-8")
        with pytest.raises(ValueError, match="changed while it was read"):
            list(corpus)
