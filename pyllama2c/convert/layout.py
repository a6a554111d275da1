"""The weights of a Llama: what Hugging Face, Meta and GGUF call each, and its shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pyllama2c.convert.model_config import ModelConfig
from pyllama2c.convert.tensors import Tensor, check
from pyllama2c.errors import CheckpointError, UnsupportedError


class Weight(NamedTuple):
    gguf: str
    hugging_face: str
    meta: str
    shape: tuple[str, ...]
    """fields of ModelConfig"""


_FIRST = Weight("token_embd", "model.embed_tokens", "tok_embeddings", ("vocab_size", "dim"))
_LAYER = (
    Weight("attn_norm", "input_layernorm", "attention_norm", ("dim",)),
    Weight("attn_q", "self_attn.q_proj", "attention.wq", ("q_dim", "dim")),
    Weight("attn_k", "self_attn.k_proj", "attention.wk", ("kv_dim", "dim")),
    Weight("attn_v", "self_attn.v_proj", "attention.wv", ("kv_dim", "dim")),
    Weight("attn_output", "self_attn.o_proj", "attention.wo", ("dim", "q_dim")),
    Weight("ffn_norm", "post_attention_layernorm", "ffn_norm", ("dim",)),
    Weight("ffn_gate", "mlp.gate_proj", "feed_forward.w1", ("hidden_dim", "dim")),
    Weight("ffn_up", "mlp.up_proj", "feed_forward.w3", ("hidden_dim", "dim")),
    Weight("ffn_down", "mlp.down_proj", "feed_forward.w2", ("dim", "hidden_dim")),
)
_NORM = Weight("output_norm", "model.norm", "norm", ("dim",))
_CLASSIFIER = Weight("output", "lm_head", "output", ("vocab_size", "dim"))


def weights(n_layers: int, tied: bool) -> Iterator[Weight]:
    """All weights of a model in the order of a GGUF file; tied: the classifier is the embedding."""
    yield _FIRST
    for i in range(n_layers):
        for w in _LAYER:
            hugging_face = f"model.layers.{i}.{w.hugging_face}"
            yield Weight(f"blk.{i}.{w.gguf}", hugging_face, f"layers.{i}.{w.meta}", w.shape)
    yield _NORM
    if not tied:
        yield _CLASSIFIER


def collect(
    config: ModelConfig,
    tied: bool,
    found: dict[str, Tensor],
    name_of: Callable[[Weight], str],
    folder: str,
) -> dict[str, Tensor]:
    """The weights under GGUF's names, all present and of the shape that the configuration implies.

    UnsupportedError for a weight in `found` that no Llama has: leaving it out would change results.
    """
    left, out = dict(found), {}
    for weight in weights(config.n_layers, tied):
        name = f"{name_of(weight)}.weight"
        tensor = left.pop(name, None)
        if tensor is None:
            raise CheckpointError(f"{folder}: no file has the weight {name}")
        check(tensor, tuple(getattr(config, field) for field in weight.shape))
        out[f"{weight.gguf}.weight"] = tensor
    if left:
        raise UnsupportedError(f"{next(iter(left.values())).name} is not a weight of a Llama")
    return out
