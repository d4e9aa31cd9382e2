# SPDX-License-Identifier: MIT
"""What each part of the recipe of `miaobi train` is worth: validation after so many tokens, one change at a time.

    python bench/ablate_training.py TEXT [--val TEXT] [--preset nano] [--tokens 300000] [--seeds 1]
                                    [--recipes random:16:2e-3 bigrams:16:2e-3 ...] [--json FILE]

A recipe is INIT:BATCH:RATE: the weights to begin with (random or bigrams), contexts in a batch, highest learning rate.
Each run has the warm-up and the cosine of `TrainConfig` over its own length. Tokens count here, not seconds: it may run
on a busy machine, and stays comparable. Keeps the results as they come.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import side_by_side as bench
from compare_quality import EVAL_TOKENS, our_step

import miaobi
from miaobi.batches import TokenData
from miaobi.bigram_init import bigram_init
from miaobi.corpus import read_corpus
from miaobi.files import write_atomic
from miaobi.model import GPT
from miaobi.presets import INITS, PRESETS
from miaobi.scoring import Score, score_documents
from miaobi.train_config import TrainConfig

POINTS = 3  # of each curve
RECIPES = ("random:16:2e-3", "random:4:1e-3", "random:4:2e-3", "bigrams:16:2e-3", "bigrams:4:1e-3", "bigrams:4:2e-3")


class Recipe(NamedTuple):
    init: str
    batch: int
    rate: float

    @classmethod
    def parse(cls, text: str) -> Recipe:
        init, batch, rate = text.split(":")
        if init not in INITS:
            raise argparse.ArgumentTypeError(f"expected {' or '.join(INITS)}, got {init!r}")
        return cls(init, int(batch), float(rate))


def bits(model: GPT, validation: TokenData) -> float:
    score = sum(score_documents(model, validation.documents()), Score(0.0, 0, 0))
    return round(score.bits_per_character, 4)


def curve_of(model: GPT, recipe: Recipe, data: TokenData, validation: TokenData, tokens: int, seed: int) -> Any:
    """(tokens, bits per character) before the first step and at equal distances from there on."""
    if recipe.init == "bigrams":
        bigram_init(model, data)
    step = our_step(model, data, recipe.batch, seed)
    settings = TrainConfig(learning_rate=recipe.rate)
    curve = [(0, bits(model, validation))]
    done = steps = 0
    while done < tokens:
        share = min((done + recipe.batch * model.config.n_positions) / tokens, 1.0)
        done += step(steps, settings.learning_rate_at(share))
        steps += 1
        if done >= tokens * len(curve) / POINTS:
            curve.append((done, bits(model, validation)))
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--val", type=Path)
    parser.add_argument("--preset", choices=list(PRESETS), default="nano")
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--recipes", type=Recipe.parse, nargs="+", default=[Recipe.parse(text) for text in RECIPES])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    corpus = read_corpus(args.text)
    train, held_out = (corpus, read_corpus(args.val)) if args.val else corpus.hold_out(seed=1)
    tokenizer = miaobi.JiebaTokenizer.train((str(text) for text in train), args.vocab_size, shrink=True)
    data = TokenData.from_texts(train, tokenizer)
    validation = TokenData.from_texts(held_out, tokenizer).spread(EVAL_TOKENS)
    rows: list[dict[str, Any]] = []
    result = {
        "script": "ablate_training",
        "head": bench.head(),
        "text": args.text.name,
        "preset": args.preset,
        "vocabulary": tokenizer.vocab_size,
        "tokens": args.tokens,
        "cases": rows,
    }
    for recipe in args.recipes:
        for seed in args.seeds:
            model = GPT(PRESETS[args.preset].model_config(tokenizer.vocab_size), seed=seed)
            curve = curve_of(model, recipe, data, validation, args.tokens, seed)
            rows.append({**recipe._asdict(), "seed": seed, "curve": curve})
            values = "  ".join(f"{value:6.3f} after {done:,}" for done, value in curve)
            print(f"{recipe.init:<8} batch {recipe.batch:>2}  rate {recipe.rate:g}  seed {seed}   {values}", flush=True)
            if args.json:
                write_atomic(args.json, (json.dumps(result, ensure_ascii=False, indent=1) + "\n").encode())
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
