# SPDX-License-Identifier: MIT
"""The check that a str is Unicode text, which Python does not promise."""

from __future__ import annotations

__all__ = ["encode_utf8"]


def encode_utf8(text: str, name: str = "the text") -> bytes:
    """The UTF-8 of `text`; raises ValueError for half a surrogate pair, which has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"[tokenizer] expected valid Unicode, got half a surrogate pair (U+{ord(text[error.start]):04X}) at "
            f"character {error.start} of {name}; read it as UTF-8, or repair it with "
            f"text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ) from None
