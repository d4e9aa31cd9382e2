# SPDX-License-Identifier: MIT
"""Tensor files: round trips, interop, every defect by itself, mutated files."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miaobi import _core
from miaobi.errors import FormatError

FLOATS = np.random.default_rng(7).standard_normal((3, 5)).astype(np.float32)
posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


def raw_file(header: str | bytes, data: bytes = b"", header_size: int | None = None) -> bytes:
    encoded = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(encoded) if header_size is None else header_size) + encoded + data


def read_all(path: Path) -> dict[str, np.ndarray]:
    with _core.SafetensorsFile(path) as file:
        return {name: file.read(name) for name in file.names()}


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert list(got) == list(want)
    for name, array in want.items():
        assert got[name].dtype == np.float32
        assert got[name].shape == array.shape
        assert got[name].tobytes() == array.tobytes()  # bits, so NaN counts too


# Round trips


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "模型.safetensors"
    tensors = {
        "weight": FLOATS,
        "scalar": np.array(-0.0, dtype=np.float32),
        "empty": np.zeros((0, 4), dtype=np.float32),
        "empty inside": np.zeros((2, 0, 3), dtype=np.float32),
        "special": np.array([np.nan, np.inf, -np.inf, 1e-45, 3.4e38], dtype=np.float32),
        '妙笔 "引号" \\ / \n\t\x00\x1f\x7f 🖌': FLOATS[0],
        "": FLOATS[1],
        "deep": FLOATS.reshape((1,) * 30 + (3, 5)),
    }
    metadata = {"format": "pt", "说明": "春眠不觉晓\n", "": ""}
    _core.write_safetensors(path, tensors, metadata)
    assert_same(read_all(path), tensors)
    with _core.SafetensorsFile(path) as file:
        assert file.metadata() == metadata
        assert file.info("empty") == ("F32", (0, 4))
        assert file.info("scalar") == ("F32", ())
    content = path.read_bytes()
    assert struct.unpack("<Q", content[:8])[0] % 8 == 0
    _core.write_safetensors(str(path), tensors, metadata)
    assert path.read_bytes() == content  # the same input gives the same bytes
    assert os.listdir(tmp_path) == [path.name]


def test_no_tensors_no_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a"
    _core.write_safetensors(path, {})
    assert path.read_bytes() == raw_file("{}      ")
    assert read_all(path) == {}


def test_read_is_a_copy_and_close_is_final(tmp_path: Path) -> None:
    path = tmp_path / "a"
    _core.write_safetensors(path, {"x": FLOATS})
    file = _core.SafetensorsFile(path)
    array = file.read("x")
    file.close()
    file.close()
    array += 1
    assert_same(read_all(path), {"x": FLOATS})
    with pytest.raises(ValueError, match="closed"):
        file.names()


@posix_only
def test_an_open_file_keeps_the_content_it_was_opened_with(tmp_path: Path) -> None:
    path = tmp_path / "a"
    _core.write_safetensors(path, {"x": FLOATS})
    with _core.SafetensorsFile(path) as file:
        _core.write_safetensors(path, {"x": FLOATS + 1})
        np.testing.assert_array_equal(file.read("x"), FLOATS)
    assert_same(read_all(path), {"x": FLOATS + 1})


@pytest.mark.parametrize("pad", [0, 1], ids=["even", "odd"])  # tensors at odd addresses too
def test_f16_and_bf16_convert_exactly(tmp_path: Path, pad: int) -> None:
    halves = np.arange(65536, dtype=np.uint16)
    header = json.dumps(
        {
            "f16": {"dtype": "F16", "shape": [256, 256], "data_offsets": [0, 131072]},
            "bf16": {"dtype": "BF16", "shape": [65536], "data_offsets": [131072, 262144]},
        }
    )
    header += " " * ((len(header) + pad) % 2)
    (tmp_path / "a").write_bytes(raw_file(header, halves.tobytes() * 2))
    got = read_all(tmp_path / "a")
    # float16 NaNs are compared with their payload shifted by hand: NumPy may set the quiet bit.
    want = halves.view(np.float16).astype(np.float32).view(np.uint32)
    nan = (halves & 0x7FFF) > 0x7C00
    bits = halves[nan].astype(np.uint32)
    want[nan] = ((bits & 0x8000) << 16) | 0x7F800000 | ((bits & 0x3FF) << 13)
    np.testing.assert_array_equal(got["f16"].reshape(-1).view(np.uint32), want)
    np.testing.assert_array_equal(got["bf16"].view(np.uint32), halves.astype(np.uint32) << 16)


# The reference implementation


def test_safetensors_reads_ours(tmp_path: Path) -> None:
    numpy_api = pytest.importorskip("safetensors.numpy")
    safe_open = pytest.importorskip("safetensors").safe_open
    path = tmp_path / "a.safetensors"
    tensors = {"妙": FLOATS, "scalar": np.array(2, dtype=np.float32), "empty": np.zeros((0, 2), dtype=np.float32)}
    _core.write_safetensors(path, tensors, {"format": "pt"})
    got = numpy_api.load_file(path)
    assert_same({name: got[name] for name in tensors}, tensors)
    with safe_open(path, framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_we_read_safetensors(tmp_path: Path) -> None:
    numpy_api = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "a.safetensors"
    numpy_api.save_file({"b": FLOATS, "a": FLOATS.astype(np.float16), "妙\\": np.arange(3)}, path, {"k": '"值"'})
    with _core.SafetensorsFile(path) as file:
        assert file.metadata() == {"k": '"值"'}
        assert sorted(file.names()) == ["a", "b", "妙\\"]
        assert file.info("a") == ("F16", (3, 5))
        assert file.info("妙\\") == ("I64", (3,))
        np.testing.assert_array_equal(file.read("b"), FLOATS)
        np.testing.assert_array_equal(file.read("a"), FLOATS.astype(np.float16).astype(np.float32))
        with pytest.raises(FormatError, match="I64; only F32, F16 and BF16"):
            file.read("妙\\")


@pytest.mark.interop
def test_we_read_bf16_from_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch_api = pytest.importorskip("safetensors.torch")
    path = tmp_path / "a.safetensors"
    tensor = torch.from_numpy(FLOATS).bfloat16()
    torch_api.save_file({"x": tensor}, path)
    with _core.SafetensorsFile(path) as file:
        assert file.info("x") == ("BF16", (3, 5))
    assert_same(read_all(path), {"x": tensor.float().numpy()})


# Defects. In a header, ^ marks the byte that the error must name; it is not written.

ENTRY = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
DEFECTS = {
    "not an object": ('^["a"]', 0, "expected '{' as its first byte"),
    "space first": ('^ {}', 0, "expected '{' as its first byte"),
    "empty header": ("^", 0, "expected '{' as its first byte"),
    "cut object": ("{^", 0, "expected '\"', got the end of the header"),
    "cut entry": ('{"a":{"dtype":"F32"^', 0, "expected '}', got the end of the header"),
    "cut string": ('{"abc^', 0, "without its closing quote"),
    "comma at the end": ("{" + ENTRY + ",^}", 8, "expected '\"', got '}'"),
    "no comma": ("{" + ENTRY + '^"b":{}}', 8, "expected '}', got '\"'"),
    "no colon": ('{"a"^{}}', 0, "expected ':', got '{'"),
    "text after": ("{" + ENTRY + "}^x", 8, "expected only spaces after it, got 'x'"),
    "NUL padding": ("{" + ENTRY + "} ^\0", 8, "expected only spaces after it, got byte 0x00"),
    "deep nesting": ('{"a":^' + "[" * 5000 + "}", 0, "expected '{', got '['"),
    "control character": ('{"a^\n":{}}', 0, "control character in a string, byte 0x0a"),
    "unknown escape": (r'{"a^\x":{}}', 0, "unknown escape"),
    "cut escape": ('{"a^\\', 0, "unknown escape"),
    "short \\u": (r'{"\u12^g4":{}}', 0, "four hexadecimal digits, got 'g'"),
    "lone surrogate": (r'{"^\ud800":{}}', 0, "surrogate"),
    "wrong pair": (r'{"^\ud800A":{}}', 0, "surrogate"),
    "invalid UTF-8": (b'{"^\xff":{}}', 0, "invalid UTF-8 in a string, byte 0xff"),
    "overlong UTF-8": (b'{"^\xc0\xaf":{}}', 0, "invalid UTF-8"),
    "UTF-8 surrogate": (b'{"^\xed\xa0\x80":{}}', 0, "invalid UTF-8"),
    "UTF-8 past the last": (b'{"^\xf4\x90\x80\x80":{}}', 0, "invalid UTF-8"),
    "cut UTF-8": (b'{"^\xe5\xa6', 0, "invalid UTF-8"),
    "two tensors of a name": ("{" + ENTRY + ",^" + ENTRY + "}", 8, 'a second tensor named "a"'),
    "name twice by escape": ("{" + ENTRY + r',^"\u0061":{}}', 8, 'a second tensor named "a"'),
    "metadata null": ('{"__metadata__":^null}', 0, "expected '{', got 'n'"),
    "metadata number": ('{"__metadata__":{"a":^1}}', 0, "expected '\"', got '1'"),
    "metadata key twice": ('{"__metadata__":{"a":"",^"a":""}}', 0, 'a second metadata key "a"'),
    "metadata twice": ('{"__metadata__":{},^"__metadata__":{}}', 0, 'a second "__metadata__"'),
    "unknown key": ('{"a":{"dtype":"F32",^"x":1}}', 0, 'unknown key "x"'),
    "key twice": ('{"a":{"dtype":"F32",^"dtype":"F32"}}', 0, 'a second "dtype"'),
    "shape twice": ('{"a":{"shape":[],^"shape":[]}}', 0, 'a second "shape"'),
    "no dtype": ('{^"a":{"shape":[2],"data_offsets":[0,8]}}', 8, '"dtype" is missing'),
    "no shape": ('{^"a":{"dtype":"F32","data_offsets":[0,8]}}', 8, '"shape" is missing'),
    "no offsets": ('{^"a":{"dtype":"F32","shape":[2]}}', 8, '"data_offsets" is missing'),
    "unknown dtype": ("{" + ENTRY.replace('"F32"', '^"F33"') + "}", 8, 'unknown dtype "F33"'),
    "dtype number": ("{" + ENTRY.replace('"F32"', "^32") + "}", 8, "expected '\"', got '3'"),
    "negative dim": ("{" + ENTRY.replace("[2]", "[^-2]") + "}", 8, "a whole number >= 0, got '-'"),
    "fraction": ("{" + ENTRY.replace("[2]", "[2^.0]") + "}", 8, "a whole number >= 0, got '.'"),
    "exponent": ("{" + ENTRY.replace("[2]", "[2^e0]") + "}", 8, "a whole number >= 0, got 'e'"),
    "leading zero": ("{" + ENTRY.replace("[2]", "[^02]") + "}", 8, "leading zero"),
    "text dim": ("{" + ENTRY.replace("[2]", '[^"2"]') + "}", 8, "a whole number >= 0, got '\"'"),
    "huge number": ("{" + ENTRY.replace("[2]", "[^9223372036854775808]") + "}", 8, "too large"),
    "shape overflow": ("{" + ENTRY.replace("[2]", "^[4294967296,4294967296]") + "}", 8, "overflows"),
    "empty overflow": ("{" + ENTRY.replace("[2]", "^[4294967296,0,4294967296]") + "}", 8, "overflows"),
    "33 dimensions": ("{" + ENTRY.replace("[2]", "^" + str([1] * 33)) + "}", 8, "at most 32 numbers"),
    "one offset": ("{" + ENTRY.replace("[0,8]", "^[8]") + "}", 8, "expected two data_offsets, got 1"),
    "three offsets": ("{" + ENTRY.replace("[0,8]", "^[0,4,8]") + "}", 8, "at most 2 numbers"),
    "reversed": ("{" + ENTRY.replace("[0,8]", "^[8,0]") + "}", 8, "end before they begin"),
    "past the end": ("{" + ENTRY.replace("[0,8]", "^[0,8]") + "}", 7, "past the end: the file holds 7 bytes"),
    "too few bytes": ("{" + ENTRY.replace("[0,8]", "^[0,4]") + "}", 8, r"hold 4 bytes, but F32 of shape [2] takes 8"),
    "too many bytes": ("{" + ENTRY.replace("[0,8]", "^[0,9]") + "}", 9, "hold 9 bytes"),
    "half a byte": ('{"a":{"dtype":"F4","shape":^[3],"data_offsets":[0,2]}}', 2, "whole bytes"),
    "overlap": ("{" + ENTRY + "," + ENTRY.replace('"a"', '^"b"').replace("[0,8]", "[4,12]") + "}", 12, '"b" overlaps'),
    "same place": ("{" + ENTRY + "," + ENTRY.replace('"a"', '^"b"') + "}", 8, '"b" overlaps'),
    "hole first": ("{" + ENTRY.replace('"a"', '^"a"').replace("[0,8]", "[1,9]") + "}", 9, '"a" leaves a hole'),
    "hole": ("{" + ENTRY + "," + ENTRY.replace('"a"', '^"b"').replace("[0,8]", "[12,20]") + "}", 20, '"b" leaves a'),
}  # fmt: skip


def assert_refused(path: Path, content: bytes, offset: int, reason: str) -> None:
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        _core.SafetensorsFile(path)
    error = caught.value
    assert error.path == str(path)
    assert reason in error.reason
    assert error.offset == offset
    assert str(path) in str(error)


@pytest.mark.parametrize("defect", DEFECTS.values(), ids=DEFECTS.keys())
def test_defect_in_the_header(tmp_path: Path, defect: tuple[str | bytes, int, str]) -> None:
    header, data_size, reason = defect
    encoded = header.encode() if isinstance(header, str) else header
    content = raw_file(encoded.replace(b"^", b""), b"\0" * data_size)
    assert_refused(tmp_path / "坏.safetensors", content, 8 + encoded.index(b"^"), reason)


@pytest.mark.parametrize(
    ("content", "offset", "reason"),
    [
        (b"", 0, "expected at least 8 bytes, got 0"),
        (b"\x02\0\0\0\0\0\0", 7, "expected at least 8 bytes, got 7"),
        (raw_file("{}", header_size=3), 0, "a header of 3 bytes reaches past the end of the 10 byte file"),
        (raw_file("{}", header_size=100_000_001), 0, "over the limit of 100000000"),
        (raw_file("{}", header_size=2**64 - 1), 0, "over the limit of 100000000"),
        (b"version https://git-lfs.github.com/spec/v1\n", 0, "is this a safetensors file?"),
        (raw_file("{}", b"abc"), 10, "3 bytes after the last tensor"),
        (raw_file("{" + ENTRY + "}", b"\0" * 10), 8 + 2 + len(ENTRY) + 8, "2 bytes after the last tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_defect_of_the_file(tmp_path: Path, content: bytes, offset: int, reason: str) -> None:
    assert_refused(tmp_path / "a", content, offset, reason)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    _core.write_safetensors(path, {"a": FLOATS[0], "b": FLOATS[1, :2]}, {"format": "pt"})
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(FormatError):
            _core.SafetensorsFile(path)


def test_unusual_but_valid(tmp_path: Path) -> None:
    path = tmp_path / "a"
    header = r""" "b" : { "data_offsets":[ 8 , 12 ] , "shape": [ 1 ],
        "dtype":"F32" } , "\u5999\ud83d\udd8c\/" :{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "e":{"dtype":"F32","shape":[0],"data_offsets":[8,8]},"t":{"dtype":"I64","shape":[],"data_offsets":[12,20]}"""
    path.write_bytes(raw_file("{" + header + "}  ", FLOATS.tobytes()[:20]))
    with _core.SafetensorsFile(path) as file:
        assert file.names() == ["b", "妙🖌/", "e", "t"]
        np.testing.assert_array_equal(file.read("妙🖌/"), FLOATS.reshape(-1)[:2])
        np.testing.assert_array_equal(file.read("b"), FLOATS.reshape(-1)[2:3])
        with pytest.raises(FormatError, match='"t" has dtype I64; only F32, F16 and BF16') as caught:
            file.read("t")
        assert caught.value.offset == path.read_bytes().index(b'"t"')
        with pytest.raises(FormatError, match='no tensor named "nope" among its 4') as caught:
            file.read("nope")
        assert caught.value.offset is None


def test_messages_stay_short_and_printable(tmp_path: Path) -> None:
    name = "\x1b[31m" + "妙" * 100_000
    path = tmp_path / "a"
    path.write_bytes(raw_file(json.dumps({name: {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}})))
    with pytest.raises(FormatError) as caught:
        _core.SafetensorsFile(path)
    assert len(caught.value.reason) < 200
    assert caught.value.reason.isprintable()


# Mutated files


def model_of(content: bytes) -> dict[str, np.ndarray]:
    """What a valid file holds, by the shortest way there is."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = content[8 + size + begin : 8 + size + end]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif entry["dtype"] in ("F32", "F16"):
            values = np.frombuffer(data, "f" + str(int(entry["dtype"][1:]) // 8)).astype(np.float32)
        else:
            continue
        assert math.prod(entry["shape"]) == values.size
        tensors[name] = values.reshape(entry["shape"])
    return tensors


SEED_FILE = raw_file(
    '{"__metadata__":{"k":"\\u5999"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},'
    '"笔":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},"c":{"dtype":"F16","shape":[0,2],"data_offsets":[14,14]},'
    '"d":{"dtype":"F16","shape":[],"data_offsets":[14,16]}} ',
    FLOATS.tobytes()[:16],
)
position = st.integers(0, len(SEED_FILE))
number = st.sampled_from(["0", "1", "2", "3", "4", "8", "14", "16", "-1", "1e3", "2147483648", str(2**62), str(2**64)])
mutation = st.one_of(
    st.tuples(st.just("flip"), position, st.integers(1, 255)),
    st.tuples(st.just("cut"), position, st.just(0)),
    st.tuples(st.just("insert"), position, st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("delete"), position, st.integers(1, 40)),
    st.tuples(st.just("size"), position, st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))),
    st.tuples(st.just("number"), st.integers(0, 20), number),
)


def mutate(content: bytes, kind: str, at: int, what: int | bytes | str) -> bytes:
    if isinstance(what, str):
        spans = [match.span() for match in re.finditer(rb"\d+", content[8:])]
        begin, end = spans[at % len(spans)] if spans else (0, 0)
        return content[: 8 + begin] + what.encode() + content[8 + end :]
    if isinstance(what, bytes):
        return content[:at] + what + content[at:]
    if kind == "size":
        return struct.pack("<Q", what) + content[8:]
    if kind == "cut":
        return content[:at]
    if kind == "delete":
        return content[:at] + content[at + what :]
    return content[:at] + bytes(b ^ what for b in content[at : at + 1]) + content[at + 1 :]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(mutation, max_size=3))
def test_a_mutated_file_reads_right_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, mutations: list[tuple[str, int, int | bytes | str]]
) -> None:
    content = SEED_FILE
    for step in mutations:
        content = mutate(content, *step)
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content)
    try:
        with _core.SafetensorsFile(path) as file:
            got = {name: file.read(name) for name in file.names() if file.info(name)[0] in ("F32", "F16", "BF16")}
    except FormatError:
        assert mutations  # the seed itself is valid
        return
    want = model_of(content)
    assert list(got) == list(want)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
