# SPDX-License-Identifier: MIT
"""miaobi (妙笔): train, run and serve small Chinese language models on an ordinary CPU."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miaobi import ops as ops
    from miaobi._core import (
        __version__,
        available_backends,
        build_info,
        get_backend,
        get_matmul_precision,
        get_num_threads,
        set_backend,
        set_matmul_precision,
        set_num_threads,
    )
    from miaobi.bigram_init import bigram_init
    from miaobi.errors import FormatError
    from miaobi.generation import GenerationConfig, GenerationResult
    from miaobi.layers import (
        FeedForward,
        FusedGELULinear,
        FusedLayerNormLinear,
        LayerNorm,
        Linear,
        SelfAttention,
        TransformerBlock,
    )
    from miaobi.llm import LLM
    from miaobi.lru_cache import get_cache_hit_rate, reset_cache_stats
    from miaobi.model import GPT, AdamW, Dropout, GPTConfig
    from miaobi.segmenter import Segmenter, segment, segment_batch
    from miaobi.tokenizer import JiebaTokenizer
    from miaobi.train_config import TrainConfig
    from miaobi.trainer import Trainer
    from miaobi.vocab import Vocab

# Where each public name lives; a module is imported when one of its names is first used.
_HOMES = {
    "_core": (
        "__version__ available_backends build_info get_backend get_matmul_precision get_num_threads set_backend "
        "set_matmul_precision set_num_threads"
    ),
    "bigram_init": "bigram_init",
    "errors": "FormatError",
    "generation": "GenerationConfig GenerationResult",
    "layers": ("FeedForward FusedGELULinear FusedLayerNormLinear LayerNorm Linear SelfAttention TransformerBlock"),
    "llm": "LLM",
    "lru_cache": "get_cache_hit_rate reset_cache_stats",
    "model": "AdamW Dropout GPT GPTConfig",
    "segmenter": "Segmenter segment segment_batch",
    "tokenizer": "JiebaTokenizer",
    "train_config": "TrainConfig",
    "trainer": "Trainer",
    "vocab": "Vocab",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "GPT",
    "LLM",
    "AdamW",
    "Dropout",
    "FeedForward",
    "FormatError",
    "FusedGELULinear",
    "FusedLayerNormLinear",
    "GPTConfig",
    "GenerationConfig",
    "GenerationResult",
    "JiebaTokenizer",
    "LayerNorm",
    "Linear",
    "Segmenter",
    "SelfAttention",
    "TrainConfig",
    "Trainer",
    "TransformerBlock",
    "Vocab",
    "__version__",
    "available_backends",
    "bigram_init",
    "build_info",
    "get_backend",
    "get_cache_hit_rate",
    "get_matmul_precision",
    "get_num_threads",
    "ops",
    "reset_cache_stats",
    "segment",
    "segment_batch",
    "set_backend",
    "set_matmul_precision",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("miaobi.ops")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'miaobi' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"miaobi.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
