# SPDX-License-Identifier: MIT
"""
The miaobi engine. Arrays must be C-contiguous and of the stated type.
"""

from __future__ import annotations

import collections.abc
import os
import typing

import numpy
import numpy.typing

__all__: list[str] = [
    "AdamW",
    "Counter",
    "Dictionary",
    "Encoder",
    "GPT",
    "IGNORE_INDEX",
    "KVCache",
    "Layer",
    "SafetensorsFile",
    "Sampler",
    "Segmenter",
    "SelfAttention",
    "allocated_bytes",
    "allocation_count",
    "attention",
    "attention_backward",
    "available_backends",
    "build_info",
    "exp",
    "feed_forward",
    "forward_cached",
    "fused_gelu_linear",
    "fused_layer_norm_linear",
    "gelu",
    "gelu_backward",
    "get_backend",
    "get_matmul_precision",
    "get_num_threads",
    "layer_norm",
    "layer_norm_layer",
    "linear",
    "matmul",
    "sample_cached",
    "sample_rows",
    "set_backend",
    "set_matmul_precision",
    "set_num_threads",
    "softmax",
    "tanh",
    "token_cross_entropy",
    "transformer_block",
    "write_safetensors",
]

class Layer:
    """
    A layer: float32 (N, in) or (B, T, in) arrays in, the same with `out` columns out.
    """
    def backward(
        self, dy: numpy.typing.NDArray[numpy.float32], lr: typing.SupportsFloat | typing.SupportsIndex | None = None
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        dx of dy for the last forward. Gradients accumulate; with lr, one step of plain gradient descent
        follows and the gradients are cleared. dx is formed with the parameters before the step.
        """
    def eval(self) -> None:
        """
        Evaluation mode.
        """
    def forward(self, x: numpy.typing.NDArray[numpy.float32]) -> numpy.typing.NDArray[numpy.float32]:
        """
        y of x; keeps what backward needs.
        """
    def gradients(self) -> dict[str, numpy.typing.NDArray[numpy.float32]]:
        """
        Name -> view of the gradient.
        """
    def parameters(self) -> dict[str, numpy.typing.NDArray[numpy.float32]]:
        """
        Name -> view; writing changes the layer.
        """
    def step(self, lr: typing.SupportsFloat | typing.SupportsIndex) -> None:
        """
        parameters -= lr * gradients
        """
    def train(self) -> None:
        """
        Training mode.
        """
    def zero_grad(self) -> None:
        """
        Clears the gradients.
        """
    @property
    def layer_type(self) -> str:
        """
        The layer's class.
        """
    @property
    def num_parameters(self) -> int:
        """
        Number of parameters.
        """
    @property
    def training(self) -> bool:
        """
        Whether the layer is in training mode.
        """

class SelfAttention(Layer):
    """
    Causal multi-head self-attention.
    """
    def __init__(
        self,
        embedding_dim: typing.SupportsInt | typing.SupportsIndex,
        num_heads: typing.SupportsInt | typing.SupportsIndex = 8,
        seed: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None: ...
    def cache_info(self) -> dict[str, int]:
        """
        capacity and used in rows, bytes of the cache; 0 when off.
        """
    def clear_kv_cache(self) -> None:
        """
        Forgets all past rows.
        """
    def disable_kv_cache(self) -> None:
        """
        Back to full recomputation, from an empty past.
        """
    def enable_kv_cache(
        self,
        capacity: typing.SupportsInt | typing.SupportsIndex | None = None,
        window: typing.SupportsInt | typing.SupportsIndex | None = None,
        dtype: str = "float32",
    ) -> None:
        """
        Keeps keys and values of up to `capacity` tokens (default: the window, or 2048); `window` bounds how
        many past rows a row attends to: when it is full, its newer half is run again.
        """
    def forward_with_kv_cache(self, x: numpy.typing.NDArray[numpy.float32]) -> numpy.typing.NDArray[numpy.float32]:
        """
        Outputs (n, C) of new rows x (n, C), one or many, after those of earlier calls; without the cache
        all rows are computed again, with equal results.
        """
    @property
    def kv_cache_enabled(self) -> bool:
        """
        Whether the cache is on.
        """
    @property
    def kv_cache_length(self) -> int:
        """
        Past rows that count.
        """

class GPT:
    """
    A GPT-2 decoder on flat ids with offsets.
    """
    def __init__(
        self,
        *,
        vocab_size: typing.SupportsInt | typing.SupportsIndex,
        n_positions: typing.SupportsInt | typing.SupportsIndex,
        n_embd: typing.SupportsInt | typing.SupportsIndex,
        n_layer: typing.SupportsInt | typing.SupportsIndex,
        n_head: typing.SupportsInt | typing.SupportsIndex,
        n_inner: typing.SupportsInt | typing.SupportsIndex,
        activation_function: str,
        layer_norm_epsilon: typing.SupportsFloat | typing.SupportsIndex,
        tie_word_embeddings: bool,
        seed: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def attention_weights(self, ids: numpy.typing.NDArray[numpy.int32]) -> numpy.typing.NDArray[numpy.float32]:
        """
        Weights (L, H, T, T) of every head for one sequence of ids (T,).
        """
    def backward(self) -> None:
        """
        Gradients of the mean of the last token_losses accumulate.
        """
    def forward(
        self, ids: numpy.typing.NDArray[numpy.int32], offsets: numpy.typing.NDArray[numpy.int64]
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        Logits (N, V) of int32 ids (N,) in sequences at int64 offsets (S+1,).
        """
    def gradients(self) -> dict[str, numpy.typing.NDArray[numpy.float32]]:
        """
        Name -> view of the gradient.
        """
    def loss_backward(
        self,
        ids: numpy.typing.NDArray[numpy.int32],
        targets: numpy.typing.NDArray[numpy.int32],
        offsets: numpy.typing.NDArray[numpy.int64],
        normalizer: typing.SupportsInt | typing.SupportsIndex | None = None,
        label_smoothing: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        z_loss: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        precision: str | None = None,
        dropout: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        dropout_seed: typing.SupportsInt | typing.SupportsIndex = 0,
        dropout_step: typing.SupportsInt | typing.SupportsIndex = 0,
        first_row: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> tuple[float, int]:
        """
        Forward and backward in one pass: gradients of sum / normalizer accumulate; (sum, count).
        """
    def pack(self, dtype: str) -> None:
        """
        Copies the matrices, as "float32" or "bf16", into the form that decoding reads fastest.
        """
    def parameters(self) -> dict[str, numpy.typing.NDArray[numpy.float32]]:
        """
        Name -> view.
        """
    def score_tokens(
        self,
        ids: numpy.typing.NDArray[numpy.int32],
        targets: numpy.typing.NDArray[numpy.int32],
        offsets: numpy.typing.NDArray[numpy.int64],
    ) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.int32]]:
        """
        token_losses and the likeliest token at each target (N,), -100 where the target is -100.
        """
    def token_losses(
        self,
        ids: numpy.typing.NDArray[numpy.int32],
        targets: numpy.typing.NDArray[numpy.int32],
        offsets: numpy.typing.NDArray[numpy.int64],
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        Losses in nats (N,), 0 where the target is -100.
        """
    def unpack(self) -> None:
        """
        Drops that copy.
        """
    def zero_grad(self) -> None:
        """
        Clears the gradients.
        """
    @property
    def arena(self) -> numpy.typing.NDArray[numpy.float32]:
        """
        All parameters as one flat view, gaps for alignment included.
        """
    @property
    def gradient_arena(self) -> numpy.typing.NDArray[numpy.float32]:
        """
        All gradients as one flat view of the same layout.
        """
    @property
    def num_parameters(self) -> int:
        """
        Number of parameters.
        """
    @property
    def packed_as(self) -> str | None:
        """
        The dtype of that copy, if there is one.
        """

class AdamW:
    """
    AdamW over the arena of a GPT.
    """
    def __init__(
        self,
        model: GPT,
        lr: typing.SupportsFloat | typing.SupportsIndex,
        betas: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex],
        eps: typing.SupportsFloat | typing.SupportsIndex,
        weight_decay: typing.SupportsFloat | typing.SupportsIndex,
    ) -> None: ...
    def freeze(self, names: collections.abc.Sequence[str]) -> None:
        """
        No later step changes these parameters.
        """
    def step(
        self,
        lr: typing.SupportsFloat | typing.SupportsIndex | None = None,
        max_grad_norm: typing.SupportsFloat | typing.SupportsIndex | None = None,
    ) -> float:
        """
        One update; gives the gradient's norm before clipping. Nothing changes where that is not finite.
        """
    @property
    def m(self) -> numpy.typing.NDArray[numpy.float32]:
        """
        First moments, in the arena's layout.
        """
    @property
    def step_count(self) -> int:
        """
        Updates made so far.
        """
    @step_count.setter
    def step_count(self, arg1: typing.SupportsInt | typing.SupportsIndex) -> None: ...
    @property
    def v(self) -> numpy.typing.NDArray[numpy.float32]:
        """
        Second moments, in the arena's layout.
        """

class KVCache:
    """
    A pool of token blocks for the keys and values of a model's sequences.
    """
    def __init__(self, model: GPT, capacity: typing.SupportsInt | typing.SupportsIndex, dtype: str = "float32") -> None:
        """
        Room for `capacity` tokens over all sequences, rounded up to blocks of 32, as "float32" or "bf16".
        """
    def add_sequence(self) -> int:
        """
        An empty sequence's number.
        """
    def clear(self) -> None:
        """
        Frees every sequence.
        """
    def fork(self, sequence: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        A new sequence with the same tokens; blocks are shared until one of the two writes.
        """
    def free_sequence(self, sequence: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Gives its blocks back; the number may be given out again.
        """
    def info(self) -> dict[str, int]:
        """
        capacity and used in tokens, bytes of the pool.
        """
    def length(self, sequence: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        Tokens in a sequence.
        """
    def truncate(
        self, sequence: typing.SupportsInt | typing.SupportsIndex, length: typing.SupportsInt | typing.SupportsIndex
    ) -> None:
        """
        Drops tokens from the end.
        """

class Sampler:
    """
    Chooses the tokens of one text; the n-th draw is a function of seed and n.
    """
    def __init__(
        self,
        do_sample: bool = True,
        temperature: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        top_k: typing.SupportsInt | typing.SupportsIndex = 0,
        top_p: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        min_p: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        typical_p: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        repetition_penalty: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        presence_penalty: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        frequency_penalty: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        penalty_window: typing.SupportsInt | typing.SupportsIndex = 0,
        no_repeat_ngram_size: typing.SupportsInt | typing.SupportsIndex = 0,
        history: typing.SupportsInt | typing.SupportsIndex = 1024,
        bias: collections.abc.Sequence[
            tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex]
        ] = [],
        seed: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None:
        """
        bias: (id, value) pairs that are added to the logits; history: tokens that are remembered.
        """
    def accept(self, ids: numpy.typing.NDArray[numpy.int32], written: bool = True) -> None:
        """
        Appends int32 ids to the text, as written or of the prompt.
        """
    def fork(self) -> Sampler:
        """
        An independent copy.
        """
    def log_probabilities(
        self, logits: numpy.typing.NDArray[numpy.float32], banned: numpy.typing.NDArray[numpy.int32] = ...
    ) -> numpy.typing.NDArray[numpy.float32]:
        """
        log(softmax) (V,) after penalties and bans; no token is accepted.
        """
    def sample(
        self, logits: numpy.typing.NDArray[numpy.float32], banned: numpy.typing.NDArray[numpy.int32] = ...
    ) -> int:
        """
        The next token for float32 logits (V,), accepted as written; banned int32 ids are never chosen.
        """
    @property
    def looping(self) -> bool:
        """
        Whether the end of what was written says the same at least three times.
        """

class SafetensorsFile:
    """
    A safetensors file, verified completely when opened (miaobi.FormatError if anything is wrong). Usable in a with-statement. The file must not be cut shorter while it is open.
    """
    def __enter__(self) -> typing.Any: ...
    def __exit__(self, *args: object) -> None: ...
    def __init__(self, path: os.PathLike[str] | str | bytes) -> None: ...
    def close(self) -> None:
        """
        Gives the mapping back; every other method then raises ValueError.
        """
    def info(self, name: str) -> tuple[str, tuple[int, ...]]:
        """
        (dtype, shape) of a tensor, dtype as the format spells it: 'F32', 'BF16', ...
        """
    def metadata(self) -> dict[str, str]:
        """
        The file's own key-value pairs, a dict of str to str.
        """
    def names(self) -> list[str]:
        """
        Names of the tensors, a list of str in the order of the file.
        """
    def read(self, name: str) -> numpy.typing.NDArray[numpy.float32]:
        """
        A copy of the tensor as a float32 array of its shape; F16 and BF16 are converted exactly.
        """

class Dictionary:
    """
    jieba's dictionary and HMM tables, immutable; segmenters share it.
    """
    def __init__(self, folder: os.PathLike[str] | str | bytes) -> None:
        """
        Reads dict.txt and finalseg/prob_*.py in the folder of the package jieba. OSError, FormatError.
        """

class Segmenter:
    """
    Cuts text as jieba does; safe to share between threads.
    """
    def __init__(self, dictionary: Dictionary) -> None: ...
    def add_word(self, word: str, frequency: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        As jieba.add_word(word, frequency).
        """
    def cut_all(self, text: str) -> list[str]:
        """
        As jieba.lcut(text, cut_all=True).
        """
    def cut_batch(self, texts: list[str], hmm: bool) -> list[list[str]]:
        """
        The words of each text, on all threads.
        """
    def cut_for_search(self, text: str, hmm: bool) -> list[str]:
        """
        As jieba.lcut_for_search(text, HMM=hmm).
        """
    def cutter(self) -> collections.abc.Callable[[str, bool], list[str]]:
        """
        cut(text, hmm), as jieba.lcut(text, HMM=hmm); it keeps the segmenter alive.
        """
    def frequency(self, word: str) -> int:
        """
        Frequency of a word; 0 for a mere beginning of words or a deleted word, -1 if it is not there.
        """
    def keep_whole(self, words: list[str]) -> None:
        """
        Words that are never cut from now on.
        """
    def suggest_frequency(self, word: str) -> int:
        """
        As jieba.suggest_freq(word).
        """
    def suggest_split(self, parts: list[str]) -> int:
        """
        As jieba.suggest_freq(tuple(parts)).
        """

class Encoder:
    """
    Text to token ids in one pass; safe to share between threads.
    """
    def __init__(
        self,
        segmenter: Segmenter,
        hmm: bool,
        words: list[str],
        first_byte: typing.SupportsInt | typing.SupportsIndex,
        first_word: typing.SupportsInt | typing.SupportsIndex,
    ) -> None:
        """
        words[i] has the id first_word + i, byte b the id first_byte + b.
        """
    def encode(self, text: str) -> list[int]:
        """
        The ids; ValueError for half of a surrogate pair.
        """
    def encode_arrays(
        self, texts: list[str]
    ) -> tuple[numpy.typing.NDArray[numpy.int32], numpy.typing.NDArray[numpy.int64]]:
        """
        The ids of all texts one after the other, int32, and where each text's begin, int64, the end behind them.
        """
    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """
        The ids of each text, on all threads.
        """
    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """
        The ids, and for each the characters [begin, end) that it stands for.
        """

class Counter:
    """
    Counts characters, and the words of two or more characters.
    """
    def __init__(self, segmenter: Segmenter, hmm: bool, max_word: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Words of more than max_word characters are not counted.
        """
    def add_characters(self, text: str) -> None:
        """
        Adds every character.
        """
    def add_words(
        self, texts: list[str], times: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> None:
        """
        Cuts on all threads; text i counts times[i] times.
        """
    def characters(self) -> dict[str, int]:
        """
        Each character with its count.
        """
    def words(self) -> dict[str, int]:
        """
        Each word with its count.
        """

def allocated_bytes() -> int:
    """
    Bytes that the engine's buffers hold now.
    """

def allocation_count() -> int:
    """
    Buffers that the engine has allocated so far.
    """

def attention(
    q: numpy.typing.NDArray[numpy.float32],
    k: numpy.typing.NDArray[numpy.float32],
    v: numpy.typing.NDArray[numpy.float32],
    offsets: numpy.typing.NDArray[numpy.int64],
    heads: typing.SupportsInt | typing.SupportsIndex,
    causal: bool,
) -> tuple[numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]]:
    """
    Attention over a ragged batch: q, k, v (N, H*D), int64 offsets (S+1,) -> o (N, H*D),
    lse (N, H).
    """

def attention_backward(
    d_o: numpy.typing.NDArray[numpy.float32],
    q: numpy.typing.NDArray[numpy.float32],
    k: numpy.typing.NDArray[numpy.float32],
    v: numpy.typing.NDArray[numpy.float32],
    o: numpy.typing.NDArray[numpy.float32],
    lse: numpy.typing.NDArray[numpy.float32],
    offsets: numpy.typing.NDArray[numpy.int64],
    heads: typing.SupportsInt | typing.SupportsIndex,
    causal: bool,
) -> tuple[
    numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32], numpy.typing.NDArray[numpy.float32]
]:
    """
    The gradients (dq, dk, dv) of attention, from d_o and what attention() took and gave.
    """

def available_backends() -> list[str]:
    """
    Backends of this build.
    """

def build_info() -> dict[str, typing.Any]:
    """
    Facts of this build and machine: version, compiler, isa in force, isas supported, backend, backends,
    threads, matmul_precision, cpu, processors, caches (bytes).
    """

def exp(x: numpy.typing.NDArray[numpy.float32]) -> numpy.typing.NDArray[numpy.float32]:
    """
    exp of any shape, within 2 ulp.
    """

def feed_forward(
    dim: typing.SupportsInt | typing.SupportsIndex,
    hidden_dim: typing.SupportsInt | typing.SupportsIndex,
    activation: str = "gelu",
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> Layer:
    """
    Y = activation(X W1 + b1) W2 + b2.
    """

def forward_cached(
    model: GPT,
    cache: KVCache,
    sequences: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    ids: numpy.typing.NDArray[numpy.int32],
    offsets: numpy.typing.NDArray[numpy.int64],
) -> numpy.typing.NDArray[numpy.float32]:
    """
    Appends flat int32 ids (N,), cut by int64 offsets (S+1,), to S cached sequences; logits (S, V) after the
    last id of each.
    """

def fused_gelu_linear(
    in_dim: typing.SupportsInt | typing.SupportsIndex,
    out_dim: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> Layer:
    """
    Y = GELU(X) W + b.
    """

def fused_layer_norm_linear(
    in_dim: typing.SupportsInt | typing.SupportsIndex,
    out_dim: typing.SupportsInt | typing.SupportsIndex,
    eps: typing.SupportsFloat | typing.SupportsIndex = 9.999999747378752e-06,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> Layer:
    """
    Y = LayerNorm(X) W + b.
    """

def gelu(x: numpy.typing.NDArray[numpy.float32]) -> numpy.typing.NDArray[numpy.float32]:
    """
    GELU, tanh form, of any shape.
    """

def gelu_backward(
    dy: numpy.typing.NDArray[numpy.float32], x: numpy.typing.NDArray[numpy.float32]
) -> numpy.typing.NDArray[numpy.float32]:
    """
    dy gelu'(x), of any shape.
    """

def get_backend() -> str:
    """
    The backend in force.
    """

def get_matmul_precision() -> str:
    """
    The precision in force.
    """

def get_num_threads() -> int:
    """
    Threads that the engine uses.
    """

def layer_norm(
    x: numpy.typing.NDArray[numpy.float32],
    gamma: numpy.typing.NDArray[numpy.float32],
    beta: numpy.typing.NDArray[numpy.float32],
    eps: typing.SupportsFloat | typing.SupportsIndex,
) -> numpy.typing.NDArray[numpy.float32]:
    """
    LayerNorm of the rows of x (M, C).
    """

def layer_norm_layer(
    dim: typing.SupportsInt | typing.SupportsIndex,
    eps: typing.SupportsFloat | typing.SupportsIndex = 9.999999747378752e-06,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> Layer:
    """
    LayerNorm of the rows.
    """

def linear(
    in_dim: typing.SupportsInt | typing.SupportsIndex,
    out_dim: typing.SupportsInt | typing.SupportsIndex,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> Layer:
    """
    Y = X W + b.
    """

def matmul(
    a: numpy.typing.NDArray[numpy.float32],
    b: numpy.typing.NDArray[numpy.float32],
    transpose_a: bool = False,
    transpose_b: bool = False,
    out: numpy.typing.NDArray[numpy.float32] | None = None,
) -> numpy.typing.NDArray[numpy.float32]:
    """
    op(a) op(b): float32 (M, K) x (K, N) -> (M, N), in `out` where it is given.
    """

def sample_cached(
    model: GPT,
    cache: KVCache,
    sequences: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    samplers: collections.abc.Sequence[Sampler],
    banned: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.int32]],
) -> list[int]:
    """
    Appends one id to each of S cached sequences and gives what their samplers choose next, as sample_rows does.
    """

def sample_rows(
    samplers: collections.abc.Sequence[Sampler],
    logits: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.float32]],
    banned: collections.abc.Sequence[typing.Annotated[numpy.typing.ArrayLike, numpy.int32]],
) -> list[int]:
    """
    Sampler.sample of several texts, each with float32 logits (V,) and banned int32 ids, on all threads. No
    sampler may be there twice.
    """

def set_backend(name: str) -> None:
    """
    Who computes matrix products: "builtin", or "openblas" where the build has it. ValueError otherwise.
    """

def set_matmul_precision(name: str) -> None:
    """
    "highest" (float32 throughout) or "bf16" (operands rounded to bfloat16, float32 sums). ValueError
    otherwise.
    """

def set_num_threads(n: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Threads that the engine uses, the caller included. ValueError unless 1 <= n <= 256.
    """

def softmax(x: numpy.typing.NDArray[numpy.float32]) -> numpy.typing.NDArray[numpy.float32]:
    """
    Softmax of the rows of x (M, N).
    """

def tanh(x: numpy.typing.NDArray[numpy.float32]) -> numpy.typing.NDArray[numpy.float32]:
    """
    tanh of any shape, within 1e-6.
    """

def token_cross_entropy(
    logits: numpy.typing.NDArray[numpy.float32], targets: numpy.typing.NDArray[numpy.int32]
) -> numpy.typing.NDArray[numpy.float32]:
    """
    Losses in nats (M,) of logits (M, V) at int32 targets (M,); 0 where the target is -100.
    """

def transformer_block(
    dim: typing.SupportsInt | typing.SupportsIndex,
    hidden_dim: typing.SupportsInt | typing.SupportsIndex,
    num_heads: typing.SupportsInt | typing.SupportsIndex = 8,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> Layer:
    """
    Pre-LN block of GPT-2.
    """

def write_safetensors(
    path: os.PathLike[str] | str | bytes, tensors: dict[str, numpy.ndarray], metadata: dict[str, str] = {}
) -> None:
    """
    Writes a dict of str to C-contiguous float32 arrays of any shape as F32 tensors in the dict's order, with metadata (dict of str to str). Atomic: after an error the path holds what it held before.
    """

IGNORE_INDEX: int = -100
__version__: str
