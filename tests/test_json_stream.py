# SPDX-License-Identifier: MIT
"""JSON lists that are read item by item: what they are does not depend on where the text is cut."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from miaobi import json_stream
from miaobi.json_stream import JsonError, list_items

VALUES: list[Any] = [
    "春眠不觉晓",
    {"text": 'a "quoted" \\ one\n', "n": [1, -2.5e10, None, True, False]},
    "",
    "😀\u2028",
    123456,
    [],
    {},
    [[["深"]]],
    -1.5,
]


def pieces(text: str, size: int) -> Iterator[str]:
    return (text[i : i + size] for i in range(0, len(text), size))


def fault_of(text: str) -> json.JSONDecodeError | None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error
    return None


@pytest.mark.parametrize("options", [{}, {"ensure_ascii": False}, {"indent": 3}, {"separators": (",", ":")}], ids=str)
def test_wherever_it_is_cut(options: dict[str, Any]) -> None:
    text = json.dumps(VALUES, **options)
    for size in (*range(1, 24), len(text)):
        assert list(list_items(pieces(text, size))) == [(True, value) for value in VALUES], size
    for value in VALUES[:2]:
        assert list(list_items(pieces(" \n" + json.dumps(value, **options) + "\n", 3))) == [(False, value)]
    assert list(list_items(pieces("\n[ \n]\t", 1))) == []


def test_damage_is_told_where_json_tells_it() -> None:
    rng = random.Random(4)
    text = json.dumps(VALUES, indent=1)
    told = 0
    for _ in range(400):
        at = rng.randrange(len(text))
        damaged = text[:at] + rng.choice(["", ",", "]", '"', "x", "\n", "1", "\\"]) + text[at + rng.randrange(3) :]
        if not damaged.lstrip().startswith("["):
            continue
        fault = fault_of(damaged)
        if fault is not None:
            places = set()
            for size in (1, 7, len(damaged)):
                with pytest.raises(JsonError) as caught:
                    list(list_items(pieces(damaged, size)))
                places.add((caught.value.line, caught.value.column))
            assert len(places) == 1, damaged
            if "trailing comma" not in fault.msg:  # Python 3.13 points at the comma, we and others behind it
                assert places == {(fault.lineno, fault.colno)}, damaged
                told += 1
        else:
            assert [value for _, value in list_items(pieces(damaged, 5))] == json.loads(damaged)
    assert told > 100


def test_what_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JsonError, match="too deep"):
        list(list_items(iter(["[" * 100_000])))
    with pytest.raises(JsonError, match=r"too long.* \(line 2, column 2\)"):
        list(list_items(iter(["[1,\n ", "9" * 5000, "]"])))
    monkeypatch.setattr(json_stream, "_MAX_VALUE_CHARS", 1000)
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        yield '["begun '
        while True:
            taken += 1
            yield "长" * 100

    with pytest.raises(JsonError, match="a value of more than 1,000 characters"):
        list(list_items(endless()))
    assert taken < 50
