# SPDX-License-Identifier: MIT
"""Dialogues as plain text: how a model reads them, and how they are recognised in training data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["ROLES", "TURN_STARTS", "parse_dialogue", "render", "validate"]

ROLES: Final = ("system", "user", "assistant")
_MARKERS: Final = {"system": "系统：", "user": "用户：", "assistant": "助手："}
TURN_STARTS: Final = tuple(
    "\n" + marker for marker in _MARKERS.values()
)  # where an answer ends and another turn begins

# One pattern for each language: a text does not mix them. The full-width and the ASCII colon are both in use.
_STYLES: Final = (
    (re.compile(r"(系统|用户|助手)\s*[：:]"), {"系统": "system", "用户": "user", "助手": "assistant"}),
    (re.compile(r"\b(System|User|Assistant)\s*[：:]"), {role.capitalize(): role for role in ROLES}),
)


def render(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> str:
    """The text of a dialogue: a line "用户：..." or "助手：..." for each message, the contents as they are.

    With `add_generation_prompt` it ends with "助手：", where the model's answer goes. Raises as `validate`.
    """
    validate(messages)
    turns = [_MARKERS[message["role"]] + message["content"] for message in messages]
    if add_generation_prompt:
        turns.append(_MARKERS["assistant"])
    return "\n".join(turns)


def validate(messages: Sequence[Mapping[str, str]]) -> None:
    """Raises ValueError unless `messages` are {"role": ..., "content": ...}, with "system" only as the first role."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(
            '[chat] expected a list of messages like [{"role": "user", "content": "你好"}], '
            f"got {type(messages).__name__}"
        )
    if not messages:
        raise ValueError("[chat] expected at least one message, got an empty list")
    for i, message in enumerate(messages):
        name = f"messages[{i}]"
        if not isinstance(message, Mapping):
            raise ValueError(f'[chat] expected {name} to be {{"role": ..., "content": ...}}, got {message!r:.80}')
        if set(message) != {"role", "content"}:
            fields = ", ".join(map(repr, message)) or "none"
            raise ValueError(f'[chat] expected {name} to have the fields "role" and "content", got {fields}')
        if message["role"] not in ROLES:
            raise ValueError(f"[chat] expected the role of {name} to be one of {ROLES}, got {message['role']!r:.80}")
        if message["role"] == "system" and i > 0:
            raise ValueError(f'[chat] expected the role "system" only in messages[0], got it in {name}')
        if not isinstance(message["content"], str):
            raise ValueError(f"[chat] expected the content of {name} to be a str, got {message['content']!r:.80}")


def parse_dialogue(text: str) -> list[dict[str, str]] | None:
    """The messages of a text like "用户：...助手：..." or "User: ... Assistant: ..."; None if it is not a dialogue.

    Turns may stand on lines of their own or follow each other on one line; if an answer begins a line, all turns do.
    A dialogue begins with "用户：" (or "系统：" before it) and has an answer. A marker that is not the next to be
    expected is ordinary text, and so is a later "用户：" inside a line unless an answer follows. Space around each
    content is dropped.
    """
    text = text.strip()
    for pattern, roles in _STYLES:
        marks = list(pattern.finditer(text))
        if marks and marks[0].start() == 0:
            return _split_turns(text, [(mark, roles[mark[1]]) for mark in marks])
    return None


def _split_turns(text: str, marks: list[tuple[re.Match[str], str]]) -> list[dict[str, str]] | None:
    """The messages between those of `marks` that begin a turn; None if there is no question with its answer."""
    starting = {id(mark) for mark, _ in marks if text[: mark.start()].rstrip(" \t\u3000")[-1:] in ("", "\n")}
    if any(role == "assistant" and id(mark) in starting for mark, role in marks):
        marks = [(mark, role) for mark, role in marks if id(mark) in starting]
    turns: list[tuple[re.Match[str], str]] = []
    for i, (mark, role) in enumerate(marks):
        last = turns[-1][1] if turns else None
        if role == "system":
            expected = last is None
        elif role == "assistant":
            expected = last == "user"
        else:
            answered = any(later == "assistant" for _, later in marks[i + 1 :])
            expected = last in (None, "system") or (last == "assistant" and (id(mark) in starting or answered))
        if expected:
            turns.append((mark, role))
    if [role for _, role in turns if role != "system"][:2] != ["user", "assistant"]:
        return None
    ends = [mark.start() for mark, _ in turns[1:]] + [len(text)]
    return [
        {"role": role, "content": text[mark.end() : end].strip()} for (mark, role), end in zip(turns, ends, strict=True)
    ]
