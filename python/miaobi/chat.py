# SPDX-License-Identifier: MIT
"""Dialogues as plain text: how a model reads them, and how they are recognised in training data."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final, NamedTuple

from miaobi.errors import FormatError
from miaobi.files import write_atomic

__all__ = [
    "ROLES",
    "TEMPLATE_FILE",
    "TURN_STARTS",
    "ChatTemplate",
    "Segment",
    "parse_dialogue",
    "render",
    "validate",
]

ROLES: Final = ("system", "user", "assistant")
TEMPLATE_FILE: Final = "miaobi_chat_template.json"
_FORMAT: Final = "miaobi-chat-template"
_VERSION: Final = 1


class Segment(NamedTuple):
    """A part of a dialogue's text, and whether a model that is to answer learns to write it."""

    text: str
    learned: bool


@dataclass(frozen=True)
class ChatTemplate:
    """How a dialogue becomes text: what begins a turn of each role, and what stands between two turns.

    The one renderer for training and for chatting; it is saved with a model, so that both agree.
    """

    system: str = "系统："
    user: str = "用户："
    assistant: str = "助手："
    separator: str = "\n"

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, str) or not value:
                raise ValueError(f"[chat] expected the {name} of a template to be a text, got {value!r:.80}")

    @property
    def turn_starts(self) -> tuple[str, ...]:
        """Where an answer ends and another turn begins."""
        return tuple(self.separator + getattr(self, role) for role in ROLES)

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> str:
        """The text of a dialogue: each message after the marker of its role, the contents as they are.

        With `add_generation_prompt` it ends with the assistant's marker, where the model's answer goes. Raises as
        `validate`.
        """
        validate(messages)
        turns = [getattr(self, message["role"]) + message["content"] for message in messages]
        if add_generation_prompt:
            turns.append(self.assistant)
        return self.separator.join(turns)

    def segments(self, messages: Sequence[Mapping[str, str]]) -> list[Segment]:
        """`render(messages)` in parts: what the model learns to write, and what it only reads.

        It learns the answers, and that another turn follows: the separator and the next marker, where `turn_starts`
        ends an answer. After a last answer comes the end token. Raises as `validate`.
        """
        validate(messages)
        parts: list[Segment] = []
        for i, message in enumerate(messages):
            after_answer = i > 0 and messages[i - 1]["role"] == "assistant"
            marker = (self.separator if i else "") + getattr(self, message["role"])
            parts += [Segment(marker, after_answer), Segment(message["content"], message["role"] == "assistant")]
        joined: list[Segment] = []
        for part in parts:  # neighbours of one kind are cut into tokens together, as in a prompt
            if joined and joined[-1].learned == part.learned:
                joined[-1] = Segment(joined[-1].text + part.text, part.learned)
            elif part.text:
                joined.append(part)
        return joined

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes `miaobi_chat_template.json` into `directory`. Raises OSError."""
        content = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        data = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        write_atomic(Path(directory) / TEMPLATE_FILE, data.encode())

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> ChatTemplate | None:
        """The template that `save` wrote into `directory`, or None if there is none. Raises FormatError."""
        path = Path(directory) / TEMPLATE_FILE
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            raise FormatError(path, "expected the JSON of a chat template") from None
        names = {field.name for field in fields(cls)}
        head = {"format": _FORMAT, "version": _VERSION}
        if not isinstance(content, dict) or {key: content.get(key) for key in head} != head:
            raise FormatError(path, f'expected the format "{_FORMAT}", version {_VERSION}')
        if set(content) != {*head, *names}:
            raise FormatError(path, f"expected the fields {sorted(names)}, got {sorted(set(content) - set(head))[:20]}")
        try:
            return cls(**{name: content[name] for name in names})
        except ValueError as error:
            raise FormatError(path, str(error)) from None


_DEFAULT: Final = ChatTemplate()
TURN_STARTS: Final = _DEFAULT.turn_starts

# One pattern for each language: a text does not mix them. The full-width and the ASCII colon are both in use.
_STYLES: Final = (
    (re.compile(r"(系统|用户|助手)\s*[：:]"), {"系统": "system", "用户": "user", "助手": "assistant"}),
    (re.compile(r"\b(System|User|Assistant)\s*[：:]"), {role.capitalize(): role for role in ROLES}),
)


def render(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = False) -> str:
    """The text of a dialogue by the default template: a line "用户：..." or "助手：..." for each message."""
    return _DEFAULT.render(messages, add_generation_prompt)


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
