# SPDX-License-Identifier: MIT
"""Dialogues as text: what is rendered, what is recognised, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miaobi import chat

USER = {"role": "user", "content": "你好"}
ASSISTANT = {"role": "assistant", "content": "你好！\n有什么事？"}
SYSTEM = {"role": "system", "content": "说话要短。"}


def test_render_is_one_marked_turn_after_another() -> None:
    assert chat.render([USER, ASSISTANT]) == "用户：你好\n助手：你好！\n有什么事？"
    assert chat.render([SYSTEM, USER], add_generation_prompt=True) == "系统：说话要短。\n用户：你好\n助手："


def messages(*pairs: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(pairs)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("用户：你好\n助手：好", messages("你好", "好")),
        ("用户：你好助手：好", messages("你好", "好")),
        ("  用户: 你好 助手: 好\n", messages("你好", "好")),
        ("User: 什么是雨？ Assistant: 水滴", messages("什么是雨？", "水滴")),
        ("User：a\nAssistant：b\nUser：c\nAssistant：d", messages("a", "b", "c", "d")),
        ("用户：一助手：二用户：三助手：四", messages("一", "二", "三", "四")),
        ("用户：一\n助手：二\n用户：三", messages("一", "二", "三")),
        ("用户：一\n助手：第一行\n\n第二行", messages("一", "第一行\n\n第二行")),
        (
            "用户：怎么写“用户：”？\n助手：就写“用户：”和“助手：”。",
            messages("怎么写“用户：”？", "就写“用户：”和“助手：”。"),
        ),
        ("系统：短\n用户：一\n助手：二", [{"role": "system", "content": "短"}, *messages("一", "二")]),
        ("用户：\n助手：", messages("", "")),
        ("春眠不觉晓", None),
        ("", None),
        ("助手：没有问题", None),
        ("用户：没有答案", None),
        ("系统：短\n助手：二", None),
        ("有人说：用户：一\n助手：二", None),
        ("User: 一\n助手：二", None),
    ],
)
def test_parse_dialogue(text: str, expected: list[dict[str, str]] | None) -> None:
    assert chat.parse_dialogue(text) == expected


@settings(derandomize=True, deadline=None)
@given(st.lists(st.text("春风 a:：\n").map(str.strip), min_size=2, max_size=6))
def test_what_is_rendered_is_recognised(contents: list[str]) -> None:
    dialogue = messages(*contents)
    assert chat.parse_dialogue(chat.render(dialogue)) == dialogue


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ([], "at least one message"),
        ("你好", "list of messages"),
        (USER, "list of messages"),
        (["你好"], r"messages\[0\]"),
        ([{"role": "user"}], '"content"'),
        ([{**USER, "name": "x"}], "'name'"),
        ([USER, {"role": "bot", "content": ""}], r"messages\[1\].*'bot'"),
        ([USER, SYSTEM], r'"system" only in messages\[0\]'),
        ([{"role": "user", "content": None}], r"content of messages\[0\]"),
    ],
)
def test_wrong_messages_are_named(wrong: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        chat.validate(wrong)
    with pytest.raises(ValueError, match=reason):
        chat.render(wrong)
