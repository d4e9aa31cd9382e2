# SPDX-License-Identifier: MIT
"""The segmenter: jieba's own words in every mode, with words of a user, on any Unicode, from any number of threads."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import miaobi
from miaobi import _core
from miaobi.segmenter import Segmenter, read_idioms

jieba = pytest.importorskip("jieba")

SENTENCES = [
    "他来到了网易杭研大厦，小明硕士毕业于中国科学院计算所，后在日本京都大学深造。",
    "工信处女干事每月经过下属科室都要亲口交代24口交换机等技术性器件的安装工作",
    "李小福是创新办主任也是云计算方面的专家；什么是八一双鹿，例如我输入一个带“韩玉赏鉴”的标题",
    "LibreOffice 7.0 的 sudo apt-get install -y C++ 和 T恤 3.5% AT&T v1.2.3b4",
    "床前明月光，疑是地上霜。\r\n\r\n举头望明月　低头思故乡\r\r\n \t\n",
]
# What decides how jieba cuts: the edges of its character classes, its joiners, white space, and what is far from all.
EDGES = "一龥龦龿\u4dff\u4e00\u9fd5\u9fd6azAZ09+#&._%-·—，。！é٣Ａ０🐉𠮷\ud800\udfff\0"
EDGES += " \t\r\n\x0b\x1c\x85\xa0\u2028\u3000\u200b\ufeff"
WORDS = ["中国", "科学", "大学", "计算机", "的", "了", "在", "是", "不", "一", "东方红", "石墨烯", "京都大学", "明月"]
WORDS += ["凱特琳", "云计算", "八一双鹿"]
RUNS = ["3.14%", "v1.2", "..", "a.b.c", "50%%", "x-1", "\r\n", "  ", "--", "T恤", "卡拉ok", "B超"]


def random_text(rng: random.Random) -> str:
    pieces = []
    for _ in range(rng.randrange(12)):
        match rng.randrange(7):
            case 0:
                pieces.append(rng.choice(EDGES))
            case 1:
                pieces.append(rng.choice(WORDS))
            case 2:
                pieces.append(rng.choice(RUNS))
            case 3:
                pieces.append("".join(chr(rng.randrange(0x4E00, 0x9FD6)) for _ in range(rng.randrange(1, 6))))
            case 4:
                pieces.append("".join(chr(rng.randrange(0x4E00, 0x5200)) for _ in range(rng.randrange(1, 20))))
            case 5:
                sentence = rng.choice(SENTENCES)
                start = rng.randrange(len(sentence))
                pieces.append(sentence[start : start + rng.randrange(1, 12)])
            case 6:  # any block of Unicode
                pieces.append(chr(rng.randrange(0x110000)))
    return "".join(pieces)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """jieba's dictionary, loaded its own way (the folder is for the cache file it writes)."""
    jieba.setLogLevel(60)
    tokenizer = jieba.Tokenizer()
    tokenizer.tmp_dir = str(tmp_path_factory.mktemp("jieba"))
    tokenizer.initialize()
    return tokenizer


@pytest.fixture
def reference(loaded: Any) -> Iterator[Any]:
    """A jieba.Tokenizer that a test may change."""
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total, tokenizer.initialized = dict(loaded.FREQ), loaded.total, True
    jieba.finalseg.Force_Split_Words.clear()
    yield tokenizer
    jieba.finalseg.Force_Split_Words.clear()


def assert_same(segmenter: Segmenter, reference: Any, text: str) -> None:
    for hmm in (False, True):
        words = segmenter.segment(text, hmm)
        assert words == reference.lcut(text, HMM=hmm), ascii(text)
        assert "".join(words) == text
        assert segmenter.cut_for_search(text, hmm) == reference.lcut_for_search(text, HMM=hmm), ascii(text)
    assert segmenter.cut_all(text) == reference.lcut(text, cut_all=True), ascii(text)


def test_every_mode_is_exactly_jieba(reference: Any) -> None:
    segmenter = Segmenter()
    rng = random.Random(1)
    for text in [*SENTENCES, "", EDGES, *(random_text(rng) for _ in range(1_500))]:
        assert_same(segmenter, reference, text)


@pytest.mark.parametrize("seed", range(4))
def test_words_of_a_user_are_exactly_jieba(reference: Any, seed: int) -> None:
    rng = random.Random(seed)
    segmenter = Segmenter()
    for _ in range(60):
        sentence = rng.choice(SENTENCES)
        start = rng.randrange(len(sentence) - 6)
        word = sentence[start : start + rng.randrange(1, 6)]
        word = rng.choice([word, rng.choice(WORDS), rng.choice(RUNS), "ab" * rng.randrange(1, 9), "C♯ 小调"])
        match rng.randrange(6):
            case 0:
                segmenter.add_word(word)
                reference.add_word(word)
            case 1:
                freq = rng.choice([0, 1, 3, 10**5, 10**9])
                segmenter.add_word(word, freq)
                reference.add_word(word, freq)
            case 2:
                segmenter.del_word(word)
                reference.del_word(word)
            case 3:
                tune = rng.random() < 0.5
                assert segmenter.suggest_freq(word, tune) == reference.suggest_freq(word, tune)
            case 4:
                parts = [word[:1], word[1:]] if len(word) > 1 else [word]
                assert segmenter.suggest_freq(parts, True) == reference.suggest_freq(tuple(parts), True)
            case 5:
                assert segmenter.frequency(word) == reference.FREQ.get(word)
        for text in [sentence, f"{word}{sentence}{word}", random_text(rng) + word + random_text(rng)]:
            assert_same(segmenter, reference, text)
    assert Segmenter().segment(SENTENCES[0]) == miaobi.segment(SENTENCES[0])  # what one learnt reached no other


def test_a_deleted_word_is_split_where_the_hmm_finds_it(reference: Any) -> None:
    segmenter = Segmenter()
    assert "杭研" in segmenter.segment(SENTENCES[0], hmm=True)
    segmenter.del_word("杭研")
    reference.del_word("杭研")
    assert "杭研" not in segmenter.segment(SENTENCES[0], hmm=True)
    assert_same(segmenter, reference, SENTENCES[0])


def test_user_dictionary_file(reference: Any, tmp_path: Path) -> None:
    file = tmp_path / "user.txt"
    file.write_bytes("\ufeff云计算 5\n李小福 2 nr\r\n\n  创新办 3 i \nNew York 1000 ns\n韩玉赏鉴\n凯特琳 nz".encode())
    with file.open("rb") as opened:  # by its name jieba would leave it open
        reference.load_userdict(opened)
    segmenter = Segmenter(user_dict=file)
    for text in [*SENTENCES, "New York凯特琳"]:
        assert_same(segmenter, reference, text)
    file.write_bytes("云计算\n".encode("gb18030"))
    with pytest.raises(ValueError, match="line 1 is not UTF-8"):
        Segmenter(user_dict=file)
    with pytest.raises(FileNotFoundError):
        Segmenter(user_dict=tmp_path / "none")


def test_what_is_kept_whole_is_never_cut(tmp_path: Path) -> None:
    segmenter = Segmenter()
    segmenter.keep_whole(["一寸光阴一寸金", "吃一堑，长一智", "光阴", "🐉 go"])
    assert segmenter.segment("一寸光阴一寸金。光阴") == ["一寸光阴一寸金", "。", "光阴"]
    assert segmenter.segment("他吃一堑，长一智了🐉 go") == ["他", "吃一堑，长一智", "了", "🐉 go"]
    assert segmenter.segment("吃一堑，长") == miaobi.segment("吃一堑，长")
    for text, expected in (
        ("一心一意\n\n 画蛇添足 \n一心一意", ["一心一意", "画蛇添足"]),
        ('\ufeff["一心一意"]', ["一心一意"]),
    ):
        (tmp_path / "idioms").write_text(text, encoding="utf-8")
        assert read_idioms(tmp_path / "idioms") == expected
    (tmp_path / "idioms").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match="list of strings"):
        read_idioms(tmp_path / "idioms")


def test_batch_is_the_same_on_any_number_of_threads() -> None:
    rng = random.Random(2)
    texts = [random_text(rng) for _ in range(300)]
    expected = [miaobi.segment(text, hmm=True) for text in texts]
    for threads in (1, 4):
        miaobi.set_num_threads(threads)
        assert miaobi.segment_batch(iter(texts), hmm=True) == expected
    assert miaobi.segment_batch([]) == []
    with pytest.raises(TypeError, match="one str"):
        miaobi.segment_batch("今天")
    with pytest.raises(TypeError, match="expected str, got int"):
        miaobi.segment_batch([1])  # type: ignore[list-item]


def test_words_may_be_added_while_others_cut() -> None:
    segmenter = Segmenter()
    text = SENTENCES[0] * 50
    errors: list[BaseException] = []

    def cut() -> None:
        try:
            for _ in range(30):
                assert "".join(segmenter.segment(text, hmm=True)) == text
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=cut) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(300):
        segmenter.add_word(f"大厦{i}", i)
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize("unit", ["的", "中", "a", "\r", "工信处女干事", "3.", "\ud800"])
def test_long_runs_of_one_thing(reference: Any, unit: str) -> None:
    assert_same(Segmenter(), reference, unit * 300)
    text = unit * (200_000 // len(unit))  # linear, or this would not end
    assert "".join(miaobi.segment(text)) == "".join(miaobi.segment(text, hmm=True)) == text


@pytest.mark.parametrize("kind", ["character", "sentence", "noise"])
def test_ten_times_the_text_takes_about_ten_times_as_long(kind: str) -> None:
    rng = random.Random(3)
    unit = {
        "character": "的",
        "sentence": SENTENCES[0],
        "noise": "".join(map(chr, rng.choices(range(0xD800), k=70_000))),
    }
    text = unit[kind] * (700_000 // len(unit[kind]))

    def best(part: str) -> float:
        taken = []
        for _ in range(3):
            start = time.process_time()
            miaobi.segment(part, hmm=True)
            taken.append(time.process_time() - start)
        return min(taken)

    miaobi.segment(text[:1_000], hmm=True)  # reads the dictionary
    assert best(text) < 40 * best(text[: len(text) // 10])  # 100 for quadratic time; caches are smaller than the text


def test_bad_words_are_refused() -> None:
    segmenter = Segmenter()
    for word, freq in (("", 1), ("", None), ("一", -1), ("一", 2**60), ("一" * 65_536, 1)):
        with pytest.raises(ValueError, match="expected"):
            segmenter.add_word(word, freq)
    with pytest.raises(ValueError, match="expected"):
        segmenter.suggest_freq([])
    segmenter.add_word("一" * 65_535, 1)
    assert segmenter.frequency("一" * 65_535) == 1
    assert segmenter.frequency("一" * 65_534) == 0
    assert segmenter.frequency("") is None


FILES = {
    "dict.txt": "一 3 n\n一心 2\n",
    "finalseg/prob_start.py": "P={'B': -1.0, 'E': -2.0, 'M': -3.0, 'S': -4.0}\n",
    "finalseg/prob_trans.py": "P={'B': {'E': -0.5, 'M': -1.0}}\n",
    "finalseg/prob_emit.py": "from __future__ import unicode_literals\n\nP={'B': {'\\u4e00': -1.5, '二': -2}}\n",
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dict.txt", ""),
        ("dict.txt", "一\n"),
        ("dict.txt", "一 x\n"),
        ("dict.txt", "一  3\n"),
        ("dict.txt", "一 3\n\n二 1\n"),
        ("dict.txt", "一 -3\n"),
        ("dict.txt", f"一 {2**53}\n二 1\n"),
        ("dict.txt", "\udc80 3\n"),
        ("finalseg/prob_start.py", "P={'X': -1.0}"),
        ("finalseg/prob_trans.py", "P={'B': {'E': }}"),
        ("finalseg/prob_emit.py", "P={'B': {'\\u4e': -1.0}}"),
        ("finalseg/prob_emit.py", "P={'B': {'\\u4e00': -1.0}"),
        ("finalseg/prob_emit.py", "P={'B': {'\\u4e00': -1.0}} x"),
        ("finalseg/prob_emit.py", ""),
    ],
)
def test_broken_files_of_jieba_are_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "finalseg").mkdir()
    for file, good in FILES.items():
        (tmp_path / file).write_bytes(good.encode())
    _core.Dictionary(tmp_path)
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(miaobi.FormatError) as error:
        _core.Dictionary(tmp_path)
    assert name.rpartition("/")[2] in error.value.path
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError):
        _core.Dictionary(tmp_path)


def test_jieba_itself_is_never_imported() -> None:
    program = "import sys, miaobi; miaobi.segment('今天', hmm=True); assert 'jieba' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", ["modern.val.txt", "poetry.val.txt"])
def test_real_lines(reference: Any, data_dir: Path, name: str) -> None:
    with open(data_dir / name, encoding="utf-8", newline="") as file:
        lines = file.readlines()
    segmenter = Segmenter()
    for line in lines[:: len(lines) // 60]:
        assert_same(segmenter, reference, line)
