# SPDX-License-Identifier: MIT
"""What people do with a tokenizer: words of their own, idioms, offsets, batches, a forecast, an explanation, files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import miaobi
from miaobi.cli import app
from miaobi.errors import FormatError
from miaobi.lru_cache import LRUCache
from miaobi.tokenizer import TOKENIZER_FILE, JiebaTokenizer
from miaobi.tokenizer_train import choose_tokens, count_texts, forecast

TEXTS = ["他吃一堑，长一智，妙笔小模型很好。🐉\n", "云计算和妙笔小模型，今天天气很好。\n", "今天天气很好，天天很好。\n"]


def tokenizer_with_words() -> JiebaTokenizer:
    return JiebaTokenizer.train(
        TEXTS, 400, shrink=True, user_dict=[("妙笔小模型", None)], idioms=["吃一堑，长一智", "画蛇添足"]
    )


def test_offsets_cover_the_text_and_ids_are_those_of_encode() -> None:
    tokenizer = JiebaTokenizer(["今天", "好", "天"])
    text = "今天天好🐉é今天\r\n"
    ids, offsets = tokenizer.encode(text, return_offsets=True)
    assert ids == tokenizer.encode(text) == tokenizer.encode_ordinary(text)
    assert len(ids) == len(offsets)
    assert "".join(text[start:end] for start, end in dict.fromkeys(offsets)) == text
    assert offsets[:4] == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert offsets.count((4, 5)) == len("🐉".encode())
    with pytest.raises(ValueError, match="half a surrogate"):
        tokenizer.encode("\ud800", return_offsets=True)


def test_a_batch_is_the_same_on_any_number_of_threads_and_counts_each_call() -> None:
    tokenizer = JiebaTokenizer.train(TEXTS, 290)
    texts = [text[i:] for text in TEXTS for i in range(20)] * 3
    expected = [tokenizer.encode_ordinary(text) for text in texts]
    for threads in (1, 4):
        miaobi.set_num_threads(threads)
        tokenizer.cache_clear()
        assert tokenizer.encode_batch(texts) == expected
    info = tokenizer.cache_info()
    assert info.hits + info.misses == 2 * len(texts)
    assert tokenizer.encode_batch(texts[:9]) == expected[:9]
    assert tokenizer.cache_info().hits == info.hits + 9
    batch = tokenizer.encode_batch([texts[0], texts[0]])
    batch[0].clear()
    assert batch[1] == expected[0] == tokenizer.encode(texts[0])
    with pytest.raises(ValueError, match="of text 1"):
        tokenizer.encode_batch(["好", "\ud800"])


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell the peak")
def test_a_vocabulary_from_a_file_larger_than_the_memory_it_takes(tmp_path: Path) -> None:
    file = tmp_path / "large.txt"
    with file.open("w", encoding="utf-8") as out:
        for i in range(60):  # 50 MB, all lines different
            out.write(
                "".join(f"{i * 8_000 + k}、今天天气很好，我们去公园散步，看见了许多人。\n" for k in range(11_000))
            )
    program = """if True:
        import sys
        from pathlib import Path
        import miaobi
        from miaobi.peak_memory import peak_memory as peak
        from miaobi.text_encoding import read_text
        train = lambda texts: miaobi.JiebaTokenizer.train(texts, 300, sample_chars=500_000, shrink=True)
        train(["今天天气很好"])
        before = peak()
        tokenizer = train(read_text(Path(sys.argv[1]))[1])
        assert tokenizer.token_id("今天天气") or tokenizer.token_id("公园"), tokenizer.tokens[263:]
        print(peak() - before)
    """
    done = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True)
    assert file.stat().st_size > 45e6
    assert int(done.stdout) < 32e6, done.stdout  # the sample, and 4 MB of the file in some forms


def test_arrays_are_the_lists_of_a_batch_past_the_cache() -> None:
    tokenizer = JiebaTokenizer.train(["今天天气很好，我们去公园。" * 3], vocab_size=270, shrink=True)
    texts = ["今天", "", "公园龘🐉\r\n", *(f"我们{i}去公园" * 40 for i in range(300))]
    expected = tokenizer.encode_batch(texts)
    before = tokenizer.cache_info()
    for threads in (1, 3):
        miaobi.set_num_threads(threads)
        ids, starts = tokenizer.encode_arrays(iter(texts))
        assert (ids.dtype, starts.dtype) == (np.int32, np.int64)
        assert starts.tolist() == [0, *np.cumsum([len(item) for item in expected])]
        assert ids.tolist() == [i for item in expected for i in item]
    assert tokenizer.cache_info() == before
    ids, starts = tokenizer.encode_arrays([])
    assert (len(ids), starts.tolist()) == (0, [0])
    with pytest.raises(ValueError, match="text 1"):
        tokenizer.encode_arrays(["好", "\ud800"])
    with pytest.raises(TypeError, match="one str"):
        tokenizer.encode_arrays("好")
    with pytest.raises(TypeError, match="expected str, got bytes"):
        tokenizer.encode_arrays([b"x"])  # type: ignore[list-item]


def test_cache_can_be_resized() -> None:
    tokenizer = JiebaTokenizer([])
    for i in range(5):
        tokenizer.encode(str(i))
    tokenizer.cache_resize(2)
    assert tokenizer.cache_info()[2:4] == (2, 2)
    tokenizer.cache_resize(0)
    tokenizer.encode("x")
    assert tokenizer.cache_info().entries == 0
    with pytest.raises(ValueError, match="0 or more"):
        LRUCache(3).resize(-1)


def test_idioms_and_words_of_a_user_are_whole_saved_and_part_of_the_hash(tmp_path: Path) -> None:
    tokenizer = tokenizer_with_words()
    for word in ("吃一堑，长一智", "妙笔小模型"):
        assert tokenizer.token_id(word) in tokenizer.encode(f"他{word}了")
        assert tokenizer.decode(tokenizer.encode(f"他{word}了")) == f"他{word}了"
    plain = JiebaTokenizer(tokenizer.tokens[263:])
    assert plain.token_id("吃一堑，长一智") not in plain.encode(TEXTS[0])
    tokenizer.save(tmp_path)
    loaded = JiebaTokenizer.load(tmp_path)
    assert (loaded.hash, loaded.user_words, loaded.idioms) == (tokenizer.hash, tokenizer.user_words, tokenizer.idioms)
    assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert plain.hash != tokenizer.hash
    file = tmp_path / TOKENIZER_FILE
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["version"] == 2
    for change in (
        {"idioms": ["一"]},
        {"user_words": []},
        {"idioms": 3},
        {"user_words": [["妙笔", -1]]},
        {"version": 1},
    ):
        file.write_text(json.dumps({**content, **change}), encoding="utf-8")
        with pytest.raises(FormatError):
            JiebaTokenizer.load(tmp_path)


def test_other_idioms_are_refused_by_a_trained_model(tmp_path: Path) -> None:
    tokenizer = tokenizer_with_words()
    model = miaobi.GPT(miaobi.GPTConfig(tokenizer.vocab_size, 8, 8, 1, 1))
    with miaobi.LLM(model, tokenizer) as llm:
        llm.save_pretrained(tmp_path)
    JiebaTokenizer(tokenizer.tokens[263:], user_words=tokenizer.user_words).save(tmp_path)
    with pytest.raises(ValueError, match="tokenizer"):
        miaobi.LLM.from_pretrained(tmp_path)


def test_idioms_are_the_first_words_of_a_small_vocabulary() -> None:
    texts = ["今天天气很好" * 9 + "画蛇添足"]
    assert "画蛇添足" not in JiebaTokenizer.train(texts, 263 + 8).tokens
    assert "画蛇添足" in JiebaTokenizer.train(texts, 263 + 8, idioms=["画蛇添足", "一心一意"]).tokens


@pytest.mark.parametrize("bad", [{"idioms": [""]}, {"user_words": [("一", -1)]}, {"user_words": [("\ud800", 1)]}])
def test_bad_words_are_refused(bad: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="expected"):
        JiebaTokenizer([], **bad)  # type: ignore[arg-type]


def test_the_forecast_is_what_the_vocabulary_then_does() -> None:
    counts = count_texts(TEXTS, 300)
    for room in (5, 20, 60):
        tokens = choose_tokens(counts, room)
        assert forecast(counts, tokens) == JiebaTokenizer(tokens).coverage(TEXTS)


def test_explain_says_where_each_token_came_from() -> None:
    tokenizer = JiebaTokenizer(["今天", "好"])
    explanation = tokenizer.explain("今天很好<🐉>")
    assert explanation.words == ["今天", "很", "好", "<", "🐉", ">"]
    assert [token.id for token in explanation.tokens] == tokenizer.encode("今天很好<🐉>")
    assert [token.origin for token in explanation.tokens] == ["word", *["byte"] * 3, "word", *["byte"] * 6]
    assert [(token.start, token.end) for token in explanation.tokens][:2] == [(0, 2), (2, 3)]
    assert explanation.tokens[0].frequency == miaobi.Segmenter().frequency("今天")
    assert explanation.tokens[-1].frequency is None
    character = JiebaTokenizer(["今"]).explain("今天").tokens[0]
    assert (character.origin, character.word, character.text) == ("character", "今天", "今")
    page = explanation.to_html()
    assert page.count("<div ") == len(explanation.words)
    assert "<🐉" not in page  # escaped
    assert tokenizer.explain("").tokens == []


def test_the_commands(tmp_path: Path) -> None:
    text, idioms, user = tmp_path / "text.txt", tmp_path / "idioms.json", tmp_path / "user.txt"
    text.write_text("".join(TEXTS), encoding="utf-8")
    idioms.write_text('["吃一堑，长一智"]', encoding="utf-8")
    user.write_text("妙笔小模型\n", encoding="utf-8")
    words = ["--vocab-size", "300", "--idioms", str(idioms), "--user-dict", str(user)]
    run = CliRunner().invoke
    done = run(app, ["tokenizer", "report", str(text), *words])
    assert done.exit_code == 0, done.output
    assert "吃一堑，长一智" in done.output
    assert re.search(r"300 .*100\.000%|100\.000%", done.output)
    done = run(app, ["tokenizer", "train", str(text), "--out", str(tmp_path / "t"), *words])
    assert done.exit_code == 0, done.output
    tokenizer = JiebaTokenizer.load(tmp_path / "t")
    assert tokenizer.idioms == ("吃一堑，长一智",)
    assert tokenizer.user_words == (("妙笔小模型", None),)
    page = tmp_path / "page.html"
    done = run(app, ["tokenizer", "explain", str(tmp_path / "t"), "他吃一堑，长一智\x1b[2J", "--html", str(page)])
    assert done.exit_code == 0, done.output
    assert "\x1b[2J" not in done.output
    assert str(tokenizer.token_id("吃一堑，长一智")) in done.output
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
