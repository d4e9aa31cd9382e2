# SPDX-License-Identifier: MIT
"""Beam search: the continuations with the best score among several that are followed at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from miaobi.decoding import Cancelled, Decoder, advance
from miaobi.generation import FinishReason
from miaobi.writing import Continuation, Style, log_probability

__all__ = ["Found", "beam_search"]


class Found(NamedTuple):
    """A complete continuation."""

    score: float  # sum of the log-probabilities, the end token's among them, by a power of the length
    ids: list[int]  # without the end token
    logprobs: list[float]  # of each id, as the model gave them
    finish_reason: FinishReason


class _Beam(NamedTuple):
    """An unfinished continuation."""

    total: float  # sum of the log-probabilities after penalties
    ids: list[int]
    logprobs: list[float]
    continuation: Continuation
    decoder: Decoder  # has seen all of `ids` but the last


def beam_search(
    root: Decoder, new: NDArray[np.int32], style: Style, prompt: Sequence[int], check: Callable[[], None]
) -> list[Found]:
    """The `num_return_sequences` best continuations of a prompt, best first; `root` has seen all of it but `new`.

    All beams are one batch. The score is the sum of the log-probabilities after penalties over length **
    length_penalty. Equal scores go to the better beam and the lower id. When `check` raises Cancelled the best beams
    so far are the result.
    """
    config = style.config
    width = config.num_beams
    finished: list[Found] = []
    beams = [_Beam(0.0, [], [], Continuation(style, prompt), root)]
    try:
        logits = advance([root], [new], check)
        for step in range(1, style.max_new_tokens + 1):
            norm = float(step) ** config.length_penalty
            survivors: list[_Beam] = []
            totals = np.stack([_totals(row, beam) for row, beam in zip(logits, beams, strict=True)])
            for rank, (total, parent, token) in enumerate(_best(totals, 2 * width)):
                beam = beams[parent]
                if token in style.ends:
                    if rank < width:
                        finished.append(Found(total / norm, beam.ids, beam.logprobs, "stop"))
                elif len(survivors) < width:
                    child = _extended(beam, total, token, log_probability(logits[parent], token))
                    reason = _ending(child, style)
                    if reason is None:
                        survivors.append(child)
                    elif rank < width:
                        finished.append(Found(total / norm, child.ids, child.logprobs, reason))
            finished.sort(key=lambda found: -found.score)
            del finished[width:]
            if not survivors:
                break
            if step == style.max_new_tokens:
                finished += [Found(beam.total / norm, beam.ids, beam.logprobs, "length") for beam in survivors]
            elif len(finished) == width and finished[-1].score >= survivors[0].total / norm:
                break
            else:
                beams = _branch(beams, survivors)
                new_ids = [np.asarray(beam.ids[-1:], np.int32) for beam in beams]
                logits = advance([beam.decoder for beam in beams], new_ids, check)
    except Cancelled:
        finished += [Found(b.total / max(len(b.ids), 1), b.ids, b.logprobs, "cancelled") for b in beams]
    return sorted(finished, key=lambda found: -found.score)[: config.num_return_sequences]


def _totals(logits: NDArray[np.float32], beam: _Beam) -> NDArray[np.float64]:
    """The beam's total with each next token."""
    continuation = beam.continuation
    adjusted, banned = continuation.candidates(logits)
    forced = continuation.forced()
    if forced is not None:
        totals = np.full(len(logits), -np.inf)
        totals[forced] = beam.total + log_probability(logits, forced)
        return totals
    return continuation.sampler.log_probabilities(adjusted, banned).astype(np.float64) + beam.total


def _extended(beam: _Beam, total: float, token: int, logprob: float) -> _Beam:
    """The beam with one more token, and what a constraint puts before it."""
    continuation = beam.continuation.fork()
    aside = continuation.aside()
    for unseen in aside:
        continuation.append(unseen, seen=False)
    continuation.sampler.accept(np.asarray([token], np.int32))
    continuation.append(token)
    continuation.opening = False
    ids = [*beam.ids, *aside, token]
    return _Beam(total, ids, [*beam.logprobs, *[0.0] * len(aside), logprob], continuation, beam.decoder)


def _ending(beam: _Beam, style: Style) -> FinishReason | None:
    """Why the beam is complete, or None."""
    continuation = beam.continuation
    if style.stops:
        text = style.table.tokenizer.decode(beam.ids)
        if any(stop in text for stop in style.stops):
            return "stop"
    if continuation.done:
        return "stop"
    return "loop" if style.config.stop_on_loop and continuation.sampler.looping and continuation.may_end else None


def _best(totals: NDArray[np.float64], count: int) -> list[tuple[float, int, int]]:
    """The `count` highest finite totals as (total, row, column), highest first, equal ones in order of place."""
    flat = totals.ravel()
    count = min(count, len(flat))
    threshold = np.partition(flat, len(flat) - count)[len(flat) - count]
    places = np.flatnonzero((flat >= threshold) & np.isfinite(flat))
    places = places[np.argsort(-flat[places], kind="stable")][:count]
    return [(float(flat[place]), *divmod(int(place), totals.shape[1])) for place in places]


def _branch(beams: list[_Beam], survivors: list[_Beam]) -> list[_Beam]:
    """Gives each survivor a decoder of its own: its parent's for the first child, a fork for the others."""
    parents = {id(beam.decoder) for beam in survivors}
    for beam in beams:
        if id(beam.decoder) not in parents:
            beam.decoder.free()
    branched = []
    for beam in survivors:
        first = id(beam.decoder) in parents
        parents.discard(id(beam.decoder))
        branched.append(beam if first else beam._replace(decoder=beam.decoder.fork()))
    return branched
