# SPDX-License-Identifier: MIT
"""The peer of the decoding comparison: llama.cpp with the weights of one of our models, through its own C interface.

Needs llama-cpp-python, which builds llama.cpp for this machine when it is installed from source, and gguf.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import miaobi

try:
    import gguf
    import llama_cpp
except ImportError as error:
    raise SystemExit(
        f"{error}: this comparison needs llama-cpp-python and gguf: pip install '.[llama]' (llama.cpp is then built "
        "for this machine, which takes some minutes)"
    ) from None

_NAMES = {  # ours, which are those of Hugging Face, to those of GGUF
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def write_gguf(model: miaobi.GPT, path: Path, dtype: str) -> None:
    """The model as GGUF, its matrices as "float32" or "bf16", with a vocabulary of numbers only."""
    config = model.config
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.inner_size)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    for name, value in model.parameters().items():
        stem, kind = name.rsplit(".", 1)
        block = ""
        if stem.startswith("transformer.h."):
            number, stem = stem.removeprefix("transformer.h.").split(".", 1)
            block = f"blk.{number}."
            if value.ndim == 2:
                value = np.ascontiguousarray(value.T)  # GGUF has (out, in)
        full_name = f"{block}{_NAMES[stem]}.{kind}"
        if dtype == "bf16" and value.ndim == 2:
            kind_of = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(full_name, gguf.quants.quantize(value, kind_of), raw_dtype=kind_of)
        else:
            writer.add_tensor(full_name, np.array(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _silent(level: int, text: bytes, data: object) -> None:
    """llama.cpp tells a lot about every model."""


class LlamaCpp:
    """A model of a GGUF file and one sequence of its KV cache, of 16 bits, as by default: 32 are slower."""

    def __init__(self, path: Path, positions: int) -> None:
        llama_cpp.llama_log_set(_silent, None)
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = positions
        context.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, context) if self._model else None
        if self._context is None:
            raise SystemExit(f"llama.cpp does not load {path}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def use_threads(self, threads: int) -> None:
        llama_cpp.llama_set_n_threads(self._context, threads, threads)

    def batch(self, ids: Sequence[int], start: int) -> object:
        """Ids at positions from `start` on, of which the last asks for logits: to be made once and decoded often."""
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
            batch.logits[i] = i == len(ids) - 1
        return batch

    def truncate(self, length: int) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, 0, length, -1)

    def decode(self, batch: object) -> None:
        if llama_cpp.llama_decode(self._context, batch) != 0:
            raise SystemExit("llama.cpp could not decode a batch")

    def logits(self) -> NDArray[np.float32]:
        """Of the last batch, (V,)."""
        pointer = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (self._vocabulary,)).copy()

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)
