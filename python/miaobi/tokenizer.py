# SPDX-License-Identifier: MIT
"""The tokenizer: jieba's words where the vocabulary has them, else characters, else UTF-8 bytes; nothing is lost."""

from __future__ import annotations

import codecs
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

from miaobi import _core
from miaobi.errors import FormatError
from miaobi.files import write_atomic
from miaobi.lru_cache import CacheInfo, LRUCache
from miaobi.segmenter import Segmenter, default_segmenter, read_idioms, read_userdict
from miaobi.tokenizer_train import Coverage, Progress, choose_tokens, count_texts
from miaobi.unicode import encode_utf8

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from miaobi.token_explain import Explanation

__all__ = ["SPECIAL_TOKENS", "TOKENIZER_FILE", "Coverage", "DecodeStream", "JiebaTokenizer"]

_T = TypeVar("_T")

TOKENIZER_FILE: Final = "miaobi_tokenizer.json"  # not tokenizer.json: transformers would take that for its own
SPECIAL_TOKENS: Final = ("<|pad|>", "<|unk|>", "<|bos|>", "</s>", "<|sep|>", "<|cls|>", "<|mask|>")
_FORMAT: Final = "miaobi-tokenizer"
_VERSION: Final = 1
_VERSION_WITH_WORDS: Final = 2  # of a tokenizer that has words of a user or idioms
_FIRST_BYTE: Final = len(SPECIAL_TOKENS)
_FIRST_TEXT: Final = _FIRST_BYTE + 256
_FIXED_TOKENS: Final = SPECIAL_TOKENS + tuple(f"<0x{byte:02X}>" for byte in range(256))


class DecodeStream:
    """Decodes token by token: what `feed` and then `finish` return, joined, is what `decode` returns for all ids."""

    def __init__(self, tokenizer: JiebaTokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._whole: Sequence[str | None] = tokenizer._whole_texts if skip_special_tokens else ()
        self._inside = False  # whether the last character lacks bytes

    def feed(self, token_id: int) -> str:
        """The text that is complete with this token; "" while a character still lacks bytes."""
        if not self._inside and 0 <= token_id < len(self._whole):
            text = self._whole[token_id]
            if text is not None:
                return text
        text = self._utf8.decode(self._tokenizer.token_bytes(token_id, self._skip_special_tokens))
        self._inside = self._utf8.getstate()[0] != b""
        return text

    def finish(self) -> str:
        """What is left: "" or U+FFFD for a character that was never completed. The stream can then be used anew."""
        self._inside = False
        return self._utf8.decode(b"", final=True)


class JiebaTokenizer:
    """Text to token ids and back, without loss: `decode(encode(text)) == text` for every valid Unicode text.

    Ids 0-6 are the special tokens, which no text ever encodes to; 7-262 the bytes; then characters and words.
    Safe to share between threads.
    """

    pad_token_id: Final = 0
    unk_token_id: Final = 1
    bos_token_id: Final = 2
    eos_token_id: Final = 3
    sep_token_id: Final = 4
    cls_token_id: Final = 5
    mask_token_id: Final = 6

    def __init__(
        self,
        words: Iterable[str],
        *,
        hmm: bool = False,
        cache_entries: int = 10_000,
        user_words: Iterable[tuple[str, int | None]] = (),
        idioms: Iterable[str] = (),
    ) -> None:
        """A tokenizer whose ids from 263 on are `words`, in order; single characters are words, too.

        `hmm` lets jieba guess words that its dictionary lacks. `user_words` are added to the dictionary as
        `Segmenter.add_word` does; `idioms` are never cut. `cache_entries` texts are kept with their ids.
        Raises ValueError if a word is empty, no valid Unicode, there twice, or the name of a special or byte token.
        """
        self.tokens: Final = (*_FIXED_TOKENS, *words)
        self.hmm: Final = hmm
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self._ids) < len(self.tokens):
            token, _ = Counter(self.tokens).most_common(1)[0]
            raise ValueError(f"[tokenizer] expected every token once, got {token!r} twice")
        if "" in self._ids:
            raise ValueError('[tokenizer] expected words of one or more characters, got ""')
        self._text_ids = {token: i for token, i in self._ids.items() if i >= _FIRST_TEXT}
        self._bytes = [b""] * _FIRST_BYTE + [bytes([byte]) for byte in range(256)]
        self._bytes += [encode_utf8(token, repr(token)) for token in self._text_ids]
        self._cache = LRUCache(cache_entries)
        self.user_words: Final = tuple((word, freq) for word, freq in user_words)
        self.idioms: Final = tuple(idioms)
        for word in (*self.idioms, *(word for word, _ in self.user_words)):
            if not encode_utf8(word, repr(word)):
                raise ValueError('[tokenizer] expected words of a user and idioms of one or more characters, got ""')
        for word, freq in self.user_words:
            if freq is not None and (not isinstance(freq, int) or freq < 0):
                raise ValueError(f"[tokenizer] expected a frequency of 0 or more for {word!r}, got {freq!r}")
        identity: list[Any] = [_FORMAT, self._version, hmm, self.tokens]
        if self._version == _VERSION_WITH_WORDS:
            identity += [self.user_words, self.idioms]
        content = json.dumps(identity, ensure_ascii=False, separators=(",", ":"))
        self.hash: Final = hashlib.sha256(content.encode()).hexdigest()

    @property
    def _version(self) -> int:
        return _VERSION_WITH_WORDS if self.user_words or self.idioms else _VERSION

    @functools.cached_property
    def segmenter(self) -> Segmenter:
        """What cuts the text; made when it is first needed."""
        return _make_segmenter(self.user_words, self.idioms)

    @functools.cached_property
    def _encoder(self) -> _core.Encoder:
        words = list(self.tokens[_FIRST_TEXT:])
        return _core.Encoder(self.segmenter.core, self.hmm, words, _FIRST_BYTE, _FIRST_TEXT)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int = 8000,
        *,
        shrink: bool = False,
        min_frequency: int = 1,
        hmm: bool = False,
        user_dict: str | os.PathLike[str] | Iterable[tuple[str, int | None]] = (),
        idioms: str | os.PathLike[str] | Iterable[str] = (),
        sample_chars: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> JiebaTokenizer:
        """A tokenizer of `vocab_size` tokens, chosen by frequency in `texts`, which are read once.

        Characters are counted in all texts; words in a random sample of lines of `sample_chars` characters (None:
        2,500 per vocabulary entry, at least 20 million). A token has to come `min_frequency` times. `user_dict` is a
        file in jieba's format, or (word, frequency or None) pairs; `idioms`, a file with one in each line or a JSON
        list, or the idioms, are never cut, and those that the texts have are the first words of the vocabulary.
        `progress` is called with (characters cut, characters to cut). Raises ValueError if `vocab_size` is under 264,
        or is more than the texts support and not `shrink`, which takes the most they support instead.
        """
        if vocab_size <= _FIRST_TEXT:
            raise ValueError(
                f"[tokenizer] expected vocab_size of at least {_FIRST_TEXT + 1} ({_FIRST_BYTE} special tokens, "
                f"256 bytes and one character), got {vocab_size}"
            )
        words_of_user = read_userdict(user_dict) if isinstance(user_dict, str | os.PathLike) else list(user_dict)
        kept = read_idioms(idioms) if isinstance(idioms, str | os.PathLike) else list(idioms)
        segmenter = _make_segmenter(words_of_user, kept)
        counts = count_texts(
            texts, vocab_size, segmenter=segmenter, hmm=hmm, sample_chars=sample_chars, seed=seed, progress=progress
        )
        if not counts.characters:
            raise ValueError("[tokenizer] expected text to learn a vocabulary from, got none: the texts are empty")
        words = choose_tokens(counts, vocab_size - _FIRST_TEXT, min_frequency, frozenset(kept))
        largest = _FIRST_TEXT + len(words)
        if largest < vocab_size and not shrink:
            raise ValueError(
                f"[tokenizer] vocab_size={vocab_size} is more than the texts support: they have characters and words "
                f"for {largest}; use a size of {largest} or less, or more text"
            )
        return cls(words, hmm=hmm, user_words=words_of_user, idioms=kept)

    @property
    def vocab_size(self) -> int:
        """Number of tokens: special tokens, bytes, characters and words."""
        return len(self.tokens)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens with their ids."""
        return {token: i for i, token in enumerate(SPECIAL_TOKENS)}

    def __repr__(self) -> str:
        return f"JiebaTokenizer(vocab_size={self.vocab_size}, hmm={self.hmm}, hash={self.hash[:12]})"

    @overload
    def encode(self, text: str, return_offsets: Literal[False] = False) -> list[int]: ...
    @overload
    def encode(self, text: str, return_offsets: Literal[True]) -> tuple[list[int], list[tuple[int, int]]]: ...

    def encode(self, text: str, return_offsets: bool = False) -> list[int] | tuple[list[int], list[tuple[int, int]]]:
        """The token ids of `text`. Names of special tokens in it are ordinary text.

        With `return_offsets` also, for each token, the characters (begin, end) of `text` that it stands for; each byte
        of a character has the whole character. The cache is not used then.
        Raises TypeError if it is not a str, and ValueError if it has half a surrogate pair, which is not Unicode text.
        """
        if not isinstance(text, str):
            raise TypeError(f"[tokenizer] expected str, got {type(text).__name__}; decode bytes first")
        if return_offsets:
            encode_utf8(text)
            return self._encoder.encode_with_offsets(text)
        ids = self._cache.get(text)
        if ids is None:
            new = self.encode_ordinary(text)
            self._cache.put(text, tuple(new))
            return new
        return list(ids)

    def encode_ordinary(self, text: str) -> list[int]:
        """The same as `encode(text)`, past the cache: for texts that come once."""
        try:
            return self._encoder.encode(text)
        except ValueError:
            encode_utf8(text)  # says what is wrong, and how to repair it
            raise

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The token ids of each text, computed on all threads of the engine; raises as `encode`."""
        if isinstance(texts, str):
            raise TypeError("[tokenizer] expected a list of texts, got one str; call encode(text)")
        texts = list(texts)
        known = self._cache.get_many(texts)
        if known is None:  # none of them is there, which is so for most large batches: no detour
            lists = self._encode_all(self._encoder.encode_batch, texts)
            self._cache.put_many(zip(texts, lists, strict=True))
            return lists
        new = list(dict.fromkeys(text for text, ids in zip(texts, known, strict=True) if ids is None))
        made = dict(zip(new, self._encode_all(self._encoder.encode_batch, new), strict=True))
        self._cache.put_many(made.items())
        return [list(made[text] if ids is None else ids) for text, ids in zip(texts, known, strict=True)]

    def encode_arrays(self, texts: Iterable[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The token ids of all texts one after the other, (N,), and where they start, (texts + 1,).

        Those of text i are `ids[starts[i]:starts[i + 1]]`. On all threads of the engine and past the cache: for text to
        train on, where lists of Python's ints would take longer to make than the ids. Raises as `encode`.
        """
        if isinstance(texts, str):
            raise TypeError("[tokenizer] expected a list of texts, got one str; wrap it: [text]")
        return self._encode_all(self._encoder.encode_arrays, list(texts))

    def _encode_all(self, encode: Callable[[list[str]], _T], texts: list[str]) -> _T:
        """encode(texts), with an error that says which text is wrong, and how to repair it."""
        try:
            return encode(texts)
        except ValueError:
            for number, text in enumerate(texts):
                encode_utf8(text, f"text {number}")
            raise

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; special tokens become nothing, or their names if not `skip_special_tokens`.

        Bytes that are no UTF-8 become U+FFFD. Raises ValueError if an id is not in the vocabulary.
        """
        data = b"".join([self.token_bytes(token_id, skip_special_tokens) for token_id in ids])
        return data.decode("utf-8", errors="replace")

    def decode_stream(self, skip_special_tokens: bool = True) -> DecodeStream:
        """A decoder for ids that come one by one; it never emits a part of a character."""
        return DecodeStream(self, skip_special_tokens)

    def token_bytes(self, token_id: int, skip_special_tokens: bool = True) -> bytes:
        """The UTF-8 bytes that a token stands for; of a special token none, or its name's if not `skip_special_tokens`.

        Raises ValueError if the id is not in the vocabulary.
        """
        i = index(token_id)
        if not 0 <= i < len(self._bytes):
            raise ValueError(f"[tokenizer] expected ids from 0 to {len(self._bytes) - 1}, got {i}")
        if i < _FIRST_BYTE and not skip_special_tokens:
            return SPECIAL_TOKENS[i].encode()
        return self._bytes[i]

    @functools.cached_property
    def _whole_texts(self) -> list[str | None]:
        """The text of each token, "" for special ones; None for a byte that is no character."""
        return [None if len(data) == 1 and data >= b"\x80" else data.decode() for data in self._bytes]

    def token_id(self, token: str) -> int | None:
        """The id of a token by its name: a word, a character, a special token, a byte as "<0x0A>"; None if unknown."""
        return self._ids.get(token)

    def coverage(self, texts: Iterable[str | Iterable[int]]) -> Coverage:
        """How the vocabulary fits texts, or texts that are already encoded. Raises as `encode` and `decode`."""
        counts: Counter[int] = Counter()
        for text in texts:
            counts.update(self.encode_ordinary(text) if isinstance(text, str) else text)
        characters = tokens = character_tokens = byte_tokens = byte_characters = 0
        for token_id, count in counts.items():
            data = self.token_bytes(token_id)
            if token_id < _FIRST_BYTE:
                continue
            tokens += count
            # Each character starts with one byte that is not a continuation (10xxxxxx), as token or in a token.
            length = sum(byte & 0xC0 != 0x80 for byte in data)
            characters += count * length
            if token_id < _FIRST_TEXT:
                byte_tokens += count
                byte_characters += count * length
            elif length == 1:
                character_tokens += count
        return Coverage(characters, tokens, character_tokens, byte_tokens, byte_characters)

    def cache_info(self) -> CacheInfo:
        """Hits, misses, entries, max_entries, bytes and max_bytes of the cache of encoded texts."""
        return self._cache.info()

    def explain(self, text: str) -> Explanation:
        """The cut of `text` and where each token came from, with `to_html()`. Raises as `encode`."""
        from miaobi.token_explain import explain

        return explain(self, text)

    def cache_resize(self, max_entries: int) -> None:
        """Keeps at most `max_entries` texts from now on; 0 switches the cache off."""
        self._cache.resize(max_entries)

    def cache_clear(self) -> None:
        """Empties the cache of encoded texts; the counts stay."""
        self._cache.clear()

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `miaobi_tokenizer.json` into `directory`, which is made if missing. Raises OSError."""
        head = {
            "format": _FORMAT,
            "version": self._version,
            "hash": self.hash,
            "hmm": self.hmm,
            "special_tokens": SPECIAL_TOKENS,
            "byte_fallback": {"first_id": _FIRST_BYTE, "count": 256},
        }
        if self._version == _VERSION_WITH_WORDS:
            head |= {"user_words": self.user_words, "idioms": self.idioms}
        lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
        tokens = ",\n".join(json.dumps(token, ensure_ascii=False) for token in self.tokens)
        lines.append(f'"tokens": [\n{tokens}\n]')
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / TOKENIZER_FILE, ("{\n" + ",\n".join(lines) + "\n}\n").encode())

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, cache_entries: int = 10_000) -> JiebaTokenizer:
        """The tokenizer that `save` wrote into `directory`.

        Raises FormatError if there is none or the file is not exactly what `save` writes, and OSError if it cannot
        be read.
        """
        path = Path(directory) / TOKENIZER_FILE
        content = _read_json(path)
        expected: dict[str, Any] = {
            "format": _FORMAT,
            "version": content.get("version") if content.get("version") == _VERSION_WITH_WORDS else _VERSION,
            "special_tokens": list(SPECIAL_TOKENS),
            "byte_fallback": {"first_id": _FIRST_BYTE, "count": 256},
        }
        with_words = expected["version"] == _VERSION_WITH_WORDS
        keys = {*expected, "hash", "hmm", "tokens"} | ({"user_words", "idioms"} if with_words else set())
        if set(content) != keys:
            raise FormatError(path, f"expected the fields {sorted(keys)}, got {sorted(content)[:20]}")
        for key, value in expected.items():
            if content[key] != value:
                raise FormatError(path, f'expected "{key}" to be {value!r}, got {str(content[key])[:200]!r}')
        hmm, tokens = content["hmm"], content["tokens"]
        if not isinstance(hmm, bool):
            raise FormatError(path, 'expected "hmm" to be true or false')
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise FormatError(path, 'expected "tokens" to be a list of strings')
        if tuple(tokens[:_FIRST_TEXT]) != _FIXED_TOKENS:
            raise FormatError(path, f'expected "tokens" to begin with the {_FIRST_TEXT} special and byte tokens')
        user_words, idioms = content.get("user_words", []), content.get("idioms", [])
        if not isinstance(user_words, list) or not all(
            isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) for entry in user_words
        ):
            raise FormatError(path, 'expected "user_words" to be a list of [word, frequency or null]')
        if not isinstance(idioms, list) or not all(isinstance(idiom, str) for idiom in idioms):
            raise FormatError(path, 'expected "idioms" to be a list of strings')
        try:
            tokenizer = cls(
                tokens[_FIRST_TEXT:],
                hmm=hmm,
                cache_entries=cache_entries,
                user_words=[(word, frequency) for word, frequency in user_words],
                idioms=idioms,
            )
        except ValueError as error:
            raise FormatError(path, str(error)) from None
        if tokenizer.hash != content["hash"]:
            raise FormatError(
                path, "its content does not have the hash it names: it was changed; restore it or train again"
            )
        return tokenizer


def _make_segmenter(user_words: Iterable[tuple[str, int | None]], idioms: Iterable[str]) -> Segmenter:
    """One of its own for words of a user; else the one that all share."""
    user_words, idioms = list(user_words), list(idioms)
    if not user_words and not idioms:
        return default_segmenter()
    segmenter = Segmenter()
    for word, freq in user_words:
        segmenter.add_word(word, freq)
    segmenter.keep_whole(idioms)
    return segmenter


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`; raises FormatError if that is not what is there."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(path, "there is no tokenizer here; give the folder of a saved one") from None
    text = ""
    try:
        text = data.decode()
        content = json.loads(text)
    except UnicodeDecodeError as error:
        raise FormatError(path, "expected UTF-8 text", error.start) from None
    except json.JSONDecodeError as error:
        raise FormatError(path, f"expected JSON: {error.msg}", len(text[: error.pos].encode())) from None
    except (ValueError, RecursionError):
        raise FormatError(path, "expected JSON of a tokenizer: a number is too long or lists are too deep") from None
    if not isinstance(content, dict):
        raise FormatError(path, f"expected a JSON object, got {type(content).__name__}")
    return content
