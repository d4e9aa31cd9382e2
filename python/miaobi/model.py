# SPDX-License-Identifier: MIT
"""The GPT model, its optimizer and its files."""

from __future__ import annotations

import fnmatch
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from miaobi import _core
from miaobi._arrays import as_ids, as_offsets
from miaobi.errors import FormatError
from miaobi.files import write_atomic

__all__ = ["CONFIG_FILE", "GPT", "WEIGHTS_FILE", "AdamW", "Dropout", "GPTConfig", "KVCache", "read_config"]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_CACHE_BLOCK = 32  # tokens by which a cache hands out room
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "relu")

Array = npt.NDArray[np.float32]
KVCache = _core.KVCache


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model, in the field names of Hugging Face's GPT-2. ValueError names a field out of range.

    ``dropout`` is the rate that a `Trainer` trains with. In ``config.json`` it is ``resid_pdrop`` and ``embd_pdrop``;
    where a file has two, the first counts. ``attn_pdrop`` is 0, whatever a file says (see `Dropout`).
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
            value = getattr(self, name)
            if name == "n_inner" and value is None:
                continue
            largest = 2**16 if name == "n_layer" else 2**31 - 1
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
                raise ValueError(f"expected {name} to be a whole number from 1 to {largest}, got {value!r}")
        if self.n_embd % self.n_head != 0:
            raise ValueError(f"expected n_embd to be a multiple of n_head, got {self.n_embd} and {self.n_head}")
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(f"expected activation_function in {ACTIVATIONS}, got {self.activation_function!r}")
        epsilon = self.layer_norm_epsilon
        if not isinstance(epsilon, (int, float)) or not 0 < epsilon < math.inf:
            raise ValueError(f"expected layer_norm_epsilon > 0, got {epsilon!r}")
        if not isinstance(self.tie_word_embeddings, bool):
            raise ValueError(f"expected tie_word_embeddings to be true or false, got {self.tie_word_embeddings!r}")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"expected dropout to be a number from 0 to under 1, got {self.dropout!r}")

    @property
    def inner_size(self) -> int:
        """Width of the feed-forward layer: n_inner, or 4 n_embd."""
        return self.n_inner if self.n_inner is not None else 4 * self.n_embd

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GPTConfig:
        """A config from the fields of a GPT-2 ``config.json``; others are left alone. ValueError if one is missing."""
        known = {f.name for f in fields(cls)} - {"dropout"}
        values = {name: value for name, value in data.items() if name in known}
        missing = [name for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head") if name not in values]
        if missing:
            raise ValueError(f"expected the fields of a GPT-2 config, {', '.join(missing)} missing")
        return cls(**values, dropout=data.get("resid_pdrop", 0.0))


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """What one training step drops (Srivastava et al. 2014): about `rate` of the elements, the others scaled up.

    As in GPT-2, it is on the sum of the embeddings and on what each attention and feed-forward layer adds to the
    residual stream. Not on attention's probabilities: that mask would be the largest by far, T numbers for each token
    and head. The mask follows from `seed`, `step`, place, row of the batch and channel, so the number of threads does
    not matter, and a step that is made again drops the same. The same text at another row is dropped otherwise.
    `first_row`: rows of the batch in calls before this one, where a batch is computed in parts.
    """

    rate: float
    seed: int
    step: int
    first_row: int = 0


class GPT:
    """A GPT-2 decoder (Radford et al. 2019): pre-LN blocks, learned positions, tied embeddings by default.

    A batch is either ``ids`` (B, T), or flat ``ids`` (N,) with ``offsets`` (S+1,): S sequences of any lengths that do
    not see each other. Positions start at 0 in each. Targets of -100 are not scored. ValueError for ids outside the
    vocabulary, sequences longer than ``n_positions`` and shapes that do not fit.
    """

    def __init__(self, config: GPTConfig, seed: int = 0) -> None:
        self.config = config
        self._core = _core.GPT(
            vocab_size=config.vocab_size,
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_inner=config.inner_size,
            activation_function=config.activation_function,
            layer_norm_epsilon=config.layer_norm_epsilon,
            tie_word_embeddings=config.tie_word_embeddings,
            seed=seed,
        )

    # --- batches --------------------------------------------------------------------------------------------------

    @staticmethod
    def _flatten(
        ids: npt.ArrayLike, offsets: npt.ArrayLike | None
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], tuple[int, ...]]:
        array = as_ids(ids, "ids")
        if offsets is not None:
            if array.ndim != 1:
                raise ValueError(f"expected flat ids beside offsets, got shape {array.shape}")
            return array, as_offsets(offsets), array.shape
        if array.ndim != 2:
            raise ValueError(f"expected ids (B, T), or (N,) with offsets, got shape {array.shape}")
        batch, length = array.shape
        return array.reshape(-1), np.arange(batch + 1, dtype=np.int64) * length, array.shape

    @staticmethod
    def _flatten_targets(targets: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
        array = as_ids(targets, "targets")
        if array.shape != shape:
            raise ValueError(f"expected targets of the shape of ids, {shape}, got {array.shape}")
        return array.reshape(-1)

    def forward(self, ids: npt.ArrayLike, offsets: npt.ArrayLike | None = None) -> Array:
        """Logits (B, T, V) of ids (B, T), or (N, V) of flat ids."""
        flat, bounds, shape = self._flatten(ids, offsets)
        return self._core.forward(flat, bounds).reshape(*shape, self.config.vocab_size)

    __call__ = forward

    def token_losses(self, ids: npt.ArrayLike, targets: npt.ArrayLike, offsets: npt.ArrayLike | None = None) -> Array:
        """Losses in nats, in the shape of ids; 0 where the target is -100."""
        flat, bounds, shape = self._flatten(ids, offsets)
        return self._core.token_losses(flat, self._flatten_targets(targets, shape), bounds).reshape(shape)

    def score_tokens(
        self, ids: npt.ArrayLike, targets: npt.ArrayLike, offsets: npt.ArrayLike | None = None
    ) -> tuple[Array, npt.NDArray[np.int32]]:
        """``token_losses``, and the likeliest token at each target, -100 where the target is -100."""
        flat, bounds, shape = self._flatten(ids, offsets)
        losses, predicted = self._core.score_tokens(flat, self._flatten_targets(targets, shape), bounds)
        return losses.reshape(shape), predicted.reshape(shape)

    def attention_weights(self, ids: npt.ArrayLike) -> Array:
        """What each position of one sequence (T,) looks at: softmax(QK^T/sqrt(D)), (L, H, T, T).

        Row i is over the keys 0 to i. It forms whole matrices, and is for looking at. ValueError for more than
        ``n_positions`` ids.
        """
        return self._core.attention_weights(as_ids(ids, "ids"))

    def loss(self, ids: npt.ArrayLike, targets: npt.ArrayLike, offsets: npt.ArrayLike | None = None) -> float:
        """Mean loss in nats over the targets that count. ValueError where none does."""
        losses = self.token_losses(ids, targets, offsets)
        count = int(np.count_nonzero(np.asarray(targets) != _core.IGNORE_INDEX))
        if count == 0:
            raise ValueError("expected at least one target that counts, got none")
        return float(losses.sum(dtype=np.float64)) / count

    def backward(self) -> None:
        """Accumulate the gradients of the last ``loss``. ValueError without one."""
        self._core.backward()

    def loss_backward(
        self,
        ids: npt.ArrayLike,
        targets: npt.ArrayLike,
        offsets: npt.ArrayLike | None = None,
        normalizer: int | None = None,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        precision: str | None = None,
        dropout: Dropout | None = None,
    ) -> tuple[float, int]:
        """Forward and backward in one pass, cheaper than ``loss`` then ``backward``: (sum of losses, count).

        The gradients of sum / normalizer accumulate; the default normalizer is count. To spread a big batch over
        several calls, give each the count of all of them. Label smoothing (Szegedy et al. 2016) and z-loss (Chowdhery
        et al. 2022) are in the gradients alone: the sum stays that of the text. `precision` is that of the matrix
        products, "float32" or "bf16"; by default what `set_matmul_precision` says. Elements are dropped if
        `dropout` is given, whatever the config says; in no other method.
        """
        flat, bounds, shape = self._flatten(ids, offsets)
        drop = (
            {}
            if dropout is None
            else {
                "dropout": dropout.rate,
                "dropout_seed": dropout.seed,
                "dropout_step": dropout.step,
                "first_row": dropout.first_row,
            }
        )
        return self._core.loss_backward(
            flat, self._flatten_targets(targets, shape), bounds, normalizer, label_smoothing, z_loss, precision, **drop
        )

    # --- parameters -----------------------------------------------------------------------------------------------

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self._core.zero_grad()

    def parameters(self) -> dict[str, Array]:
        """HF GPT-2 name -> view; writing changes the model."""
        return self._core.parameters()

    def gradients(self) -> dict[str, Array]:
        """HF GPT-2 name -> view of the gradient."""
        return self._core.gradients()

    @property
    def num_parameters(self) -> int:
        """Number of parameters; tied embeddings count once."""
        return self._core.num_parameters

    @property
    def arena(self) -> Array:
        """All parameters as one flat view; the gaps between tensors are zero."""
        return self._core.arena

    @property
    def gradient_arena(self) -> Array:
        """All gradients as one flat view of the same layout."""
        return self._core.gradient_arena

    # --- decoding -------------------------------------------------------------------------------------------------

    def pack(self, dtype: str = "float32") -> None:
        """Copy the weights, as ``"float32"`` or ``"bf16"``, into the form that ``forward_cached`` reads fastest.

        bf16 halves what a step reads, and rounds each weight to 8 bits of precision. Training drops the copy; after
        writing to ``parameters()``, call this again. Takes the memory of the matrices, or half of it.
        """
        self._core.pack(dtype)

    def unpack(self) -> None:
        """Drop the copy that ``pack`` made."""
        self._core.unpack()

    @property
    def packed_as(self) -> str | None:
        """What ``forward_cached`` reads the weights as, if it reads a packed copy."""
        return self._core.packed_as

    def new_cache(self, capacity: int, dtype: str = "float32") -> KVCache:
        """A KV cache with room for `capacity` tokens over all its sequences, kept as ``"float32"`` or ``"bf16"``."""
        return _core.KVCache(self._core, capacity, dtype)

    def forward_cached(
        self, cache: KVCache, sequences: Sequence[int], ids: npt.ArrayLike, offsets: npt.ArrayLike
    ) -> Array:
        """Append flat ids, cut by offsets (S+1,), to S cached sequences; logits (S, V) after the last id of each.

        ValueError past ``n_positions`` and where the pool is exhausted; the cache is then as it was.
        """
        return _core.forward_cached(self._core, cache, list(sequences), as_ids(ids, "ids"), as_offsets(offsets))

    def sample_cached(
        self,
        cache: KVCache,
        sequences: Sequence[int],
        ids: Sequence[int],
        samplers: Sequence[_core.Sampler],
        banned: Sequence[npt.NDArray[np.int32]],
    ) -> list[int]:
        """Append one id to each of S cached sequences; what their samplers choose next, none of the banned ids.

        ``forward_cached`` and ``Sampler.sample`` in one call, which makes no array. Raises as they do.
        """
        return _core.sample_cached(self._core, cache, sequences, ids, samplers, banned)

    def forward_last(self, ids: npt.ArrayLike, offsets: npt.ArrayLike) -> Array:
        """Logits (S, V) after the last of flat ids, cut by offsets (S+1,), with nothing kept from before or for later.

        They have the bits of ``forward_cached`` for the same texts, however those were cut into steps.
        """
        bounds = as_offsets(offsets)
        lengths = np.diff(bounds)
        cache = self.new_cache(max(int(lengths.sum()) + _CACHE_BLOCK * len(lengths), 1))
        return self.forward_cached(cache, [cache.add_sequence() for _ in lengths], ids, bounds)

    # --- files ----------------------------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | os.PathLike[str], extra_config: Mapping[str, Any] | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors`` as Hugging Face's GPT-2 has them; each appears whole or not.

        OSError where the folder cannot be made or written.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        _core.write_safetensors(str(folder / WEIGHTS_FILE), self.parameters(), {"format": "pt"})
        values = {name: value for name, value in asdict(self.config).items() if name != "dropout"}
        config = {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            **values,
            "attn_pdrop": 0.0,
            "embd_pdrop": self.config.dropout,
            "resid_pdrop": self.config.dropout,
            "torch_dtype": "float32",
            **(extra_config or {}),
        }
        write_atomic(folder / CONFIG_FILE, (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode())

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str]) -> GPT:
        """Load a folder that ``save_pretrained`` or Hugging Face's GPT-2 wrote.

        FileNotFoundError without a model in it, FormatError where a file is not what it should be.
        """
        folder = Path(directory)
        config_path, data = read_config(folder)
        _check_architecture(config_path, data)
        try:
            config = GPTConfig.from_dict(data)
        except (TypeError, ValueError) as error:
            raise FormatError(str(config_path), str(error)) from error
        model = cls(config)
        _load_weights(model, folder / WEIGHTS_FILE)
        return model


def read_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The path and content of a folder's config. FileNotFoundError, FormatError."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a model folder with {CONFIG_FILE} and {WEIGHTS_FILE}, found no {CONFIG_FILE} in {folder}"
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FormatError(str(path), f"is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise FormatError(str(path), f"expected a JSON object, got {type(data).__name__}")
    return path, data


def _check_architecture(path: Path, data: Mapping[str, Any]) -> None:
    """Refuse variants of GPT-2 that would load and then compute something else."""
    if data.get("model_type", "gpt2") != "gpt2":
        raise FormatError(str(path), f"expected model_type 'gpt2', got {data['model_type']!r}")
    required = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    for name, value in required.items():
        if data.get(name, value) != value:
            raise FormatError(str(path), f"expected {name} {value}, got {data[name]!r}")


def _load_weights(model: GPT, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"expected the weights in {path}, found no such file")
    parameters = model.parameters()
    with _core.SafetensorsFile(str(path)) as file:
        # Saved from GPT2Model, names lack their first part; masks of old versions are not parameters.
        stored = {}
        for name in file.names():
            if name.endswith((".attn.bias", ".attn.masked_bias")):
                continue
            full = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
            if full == "lm_head.weight" and full not in parameters:
                continue  # tied: the same tensor stored twice
            stored[full] = name
        missing, unknown = parameters.keys() - stored.keys(), stored.keys() - parameters.keys()
        if missing or unknown:
            raise FormatError(
                str(path),
                f"expected the tensors that {CONFIG_FILE} describes; missing {sorted(missing)[:3]}, "
                f"unknown {sorted(unknown)[:3]}",
            )
        for full, name in stored.items():
            shape = tuple(file.info(name)[1])
            if shape != parameters[full].shape:
                raise FormatError(
                    str(path), f"expected {name} of shape {parameters[full].shape} as {CONFIG_FILE} says, got {shape}"
                )
            parameters[full][...] = file.read(name)


class AdamW:
    """AdamW with decoupled weight decay on matrices (Loshchilov and Hutter 2019), over the model's arena."""

    def __init__(
        self,
        model: GPT,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        freeze: Sequence[str] = (),
    ) -> None:
        """`freeze`: names of parameters, or patterns such as "transformer.h.0.*", that no step changes.

        ValueError for a pattern that no parameter fits, and for options out of range.
        """
        self._core = _core.AdamW(model._core, lr, betas, eps, weight_decay)
        names = list(model.parameters())
        for pattern in freeze:
            fitting = fnmatch.filter(names, pattern)
            if not fitting:
                raise ValueError(f"expected freeze to name parameters such as {names[2]!r}, got {pattern!r}")
            self._core.freeze(fitting)

    def step(self, lr: float | None = None, max_grad_norm: float | None = None) -> float:
        """One update with the gradients as they are; gives their norm over all parameters, before clipping.

        Where the norm is not finite nothing changes.
        """
        return self._core.step(lr, max_grad_norm)

    @property
    def step_count(self) -> int:
        """Updates made so far."""
        return self._core.step_count

    @step_count.setter
    def step_count(self, steps: int) -> None:
        self._core.step_count = steps

    @property
    def m(self) -> Array:
        """First moments, a view in the arena's layout."""
        return self._core.m

    @property
    def v(self) -> Array:
        """Second moments, a view in the arena's layout."""
        return self._core.v
