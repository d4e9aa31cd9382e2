# SPDX-License-Identifier: MIT
"""Beam search: the continuation with the highest probability per token among several that are followed at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from miaobi.decoding import Decoder, advance
from miaobi.generation import GenerationConfig

__all__ = ["beam_search"]


class _Beam(NamedTuple):
    """One unfinished continuation."""

    score: float  # sum of the log-probabilities of `ids`
    ids: list[int]
    decoder: Decoder  # has seen all of `ids` but the last


def beam_search(
    root: Decoder,
    prompt: NDArray[np.int32],
    config: GenerationConfig,
    *,
    eos: int,
    banned: Callable[[list[int]], NDArray[np.int32]],
    ends: Callable[[list[int]], bool],
) -> list[int]:
    """The ids of the best continuation, without `eos`, of `prompt`, which `root` has not seen yet.

    `banned` says which ids may not follow a continuation, `ends` whether it is complete. The score is the mean
    log-probability of a token, `eos` included. Equal scores go to the better beam and the lower id.
    """
    finished: list[tuple[float, list[int]]] = []
    beams = [_Beam(0.0, [], root)]
    logits = advance([root], [prompt])
    for step in range(1, config.max_new_tokens + 1):
        scores = np.stack([_log_probabilities(row, beam, config) for row, beam in zip(logits, beams, strict=True)])
        for row, beam in zip(scores, beams, strict=True):
            row[banned(beam.ids)] = -np.inf
        survivors: list[_Beam] = []
        for rank, (score, parent, token) in enumerate(_best(scores, 2 * config.num_beams)):
            ids = [*beams[parent].ids, token]
            if token == eos or ends(ids):
                if rank < config.num_beams:
                    finished.append((score / step, ids))
            elif len(survivors) < config.num_beams:
                survivors.append(_Beam(score, ids, beams[parent].decoder))
        finished.sort(key=lambda item: -item[0])
        del finished[config.num_beams :]
        if not survivors:
            break
        if step == config.max_new_tokens:
            finished += [(beam.score / step, beam.ids) for beam in survivors]
        elif len(finished) == config.num_beams and finished[-1][0] >= survivors[0].score / step:
            break
        else:
            beams = _branch(beams, survivors)
            logits = advance([beam.decoder for beam in beams], [np.asarray(beam.ids[-1:], np.int32) for beam in beams])
    ids = max(finished, key=lambda item: item[0])[1] if finished else []
    return ids[:-1] if ids[-1:] == [eos] else ids


def _log_probabilities(logits: NDArray[np.float32], beam: _Beam, config: GenerationConfig) -> NDArray[np.float64]:
    """The beam's score with each next token, after the repetition rules."""
    row = logits.astype(np.float64)
    seen = beam.decoder.tokens
    if config.repetition_penalty != 1.0:
        values = row[seen]
        row[seen] = np.where(values < 0, values * config.repetition_penalty, values / config.repetition_penalty)
    row -= row.max()
    row -= np.log(np.exp(row).sum())
    size = config.no_repeat_ngram_size
    if 0 < size <= len(seen):
        grams = np.lib.stride_tricks.sliding_window_view(seen, size)
        last = seen[len(seen) - size + 1 :]
        row[grams[(grams[:, :-1] == last).all(axis=1), -1]] = -np.inf
    return row + beam.score


def _best(scores: NDArray[np.float64], count: int) -> list[tuple[float, int, int]]:
    """The `count` highest finite scores as (score, row, column), highest first, equal ones in order of place."""
    flat = scores.ravel()
    count = min(count, len(flat))
    threshold = np.partition(flat, len(flat) - count)[len(flat) - count]
    places = np.flatnonzero((flat >= threshold) & np.isfinite(flat))
    places = places[np.argsort(-flat[places], kind="stable")][:count]
    return [(float(flat[place]), *divmod(int(place), scores.shape[1])) for place in places]


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
