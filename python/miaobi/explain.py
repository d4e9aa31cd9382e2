# SPDX-License-Identifier: MIT
"""What a model makes of one text: how likely each token was, what else it thought of, and what each head looks at."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from miaobi.html import escape, heat_map, page, table
from miaobi.llm import LLM

__all__ = ["Explanation", "TokenView", "explain", "explanation_page"]

_ALTERNATIVES: Final = 5


class TokenView(NamedTuple):
    """A token, the probability that it had before it was read, and the likeliest ones there with theirs."""

    text: str
    probability: float
    alternatives: list[tuple[str, float]]

    @property
    def percent(self) -> str:
        """The probability as it is shown."""
        return f"{self.probability:.2%}" if self.probability >= 5e-5 else "<0.01%"


class Explanation(NamedTuple):
    """The tokens after bos, the end token last, and attention weights (L, H, T, T) over bos and the text."""

    tokens: list[TokenView]
    attention: NDArray[np.float32]
    labels: list[str]

    @property
    def bits(self) -> float:
        """What the text cost, the end token included."""
        return -sum(math.log2(max(token.probability, 1e-300)) for token in self.tokens)


def explain(llm: LLM, text: str) -> Explanation:
    """Reads `text` once. Raises ValueError if it is empty or longer than the model's context."""
    tokenizer, model = llm.tokenizer, llm.model
    ids = [tokenizer.bos_token_id, *tokenizer.encode(text)]
    if len(ids) < 2:
        raise ValueError("[explain] expected a text, got nothing")
    if len(ids) > model.config.n_positions:
        raise ValueError(
            f"[explain] expected at most {model.config.n_positions - 1} tokens, the context of the model, got "
            f"{len(ids) - 1}; give a shorter text"
        )
    logits = model.forward([ids])[0].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(-1, keepdims=True)
    tokens = []
    for row, target in zip(probabilities, [*ids[1:], tokenizer.eos_token_id], strict=True):
        likeliest = np.argsort(-row, kind="stable")[:_ALTERNATIVES].tolist()
        alternatives = [(_label(llm, token), float(row[token])) for token in likeliest]
        tokens.append(TokenView(_label(llm, target), float(row[target]), alternatives))
    return Explanation(tokens, model.attention_weights(ids), [_label(llm, token) for token in ids])


def explanation_page(name: str, text: str, found: Explanation) -> str:
    """The explanation as a page that needs no network."""
    layers, heads = found.attention.shape[:2]
    body = f"<h1>{escape(text)}</h1>"
    body += (
        f'<p class="sub">{escape(name)} · {len(found.tokens):,} tokens with the end · {found.bits:.1f} bits, '
        f"{found.bits / len(text):.2f} a character</p>"
    )
    body += '<h2>How likely each token was · 每个词元的概率</h2><div class="card tokens">'
    for token in found.tokens:
        surprise = min(-math.log2(max(token.probability, 1e-300)) / 12, 1.0)
        body += (
            f'<span style="background:rgba(214,69,50,{0.75 * surprise:.2f})" title="{escape(token.percent)}">'
            f"{escape(token.text)}</span>"
        )
    body += "</div><p class='sub'>The redder, the less expected; &lt;/s&gt; is the end. 越红越出乎意料。</p>"
    rows = [
        [
            escape(token.percent),
            escape(token.text),
            " · ".join(f"{escape(other)} {share:.1%}" for other, share in token.alternatives if share >= 0.0005),
        ]
        for token in found.tokens
    ]
    body += table(("probability", "token", "what it thought likeliest there"), rows, 1)
    body += "<h2>What it looks at · 注意力</h2>"
    body += (
        "<p class='sub'>Each row is a token, each column one that it can look back at, named on the diagonal; "
        "the bluer, the more of its attention. 每行是一个词元，每列是它可回看的词元，越蓝注意越多。</p>"
    )
    for layer in range(layers):
        body += f'<h2>Layer {layer + 1} · 第 {layer + 1} 层</h2><div class="grid">'
        for head in range(heads):
            picture = heat_map(found.attention[layer, head], found.labels, f"head {head + 1}")
            body += f'<div class="card">{picture}</div>'
        body += "</div>"
    return page(f"{text} · miaobi", body)


def _label(llm: LLM, token: int) -> str:
    """A token as a person can see it."""
    name = llm.tokenizer.tokens[token] if token < 263 else llm.tokenizer.decode([token])
    return name.replace("\n", "↵").replace(" ", "␣").replace("\t", "⇥")
