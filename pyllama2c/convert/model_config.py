"""A Llama's configuration, from Hugging Face's config.json or Meta's params.json."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllama2c.convert.json_files import Fields
from pyllama2c.errors import CheckpointError, CheckpointWarning, UnsupportedError, warn


class RopeScaling(NamedTuple):
    """Llama 3.1's: low frequencies are divided by `factor`, high ones are kept."""

    factor: float
    low: float = 1.0
    high: float = 4.0
    context: int = 8192
    """the model's before it was extended"""


class ModelConfig(NamedTuple):
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    vocab_size: int
    context_length: int
    norm_eps: float
    rope_theta: float
    rope_linear: float | None
    """positions are divided by it"""
    rope_llama3: RopeScaling | None

    @property
    def q_dim(self) -> int:
        return self.n_heads * self.head_size

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_size

    def rope_divisors(self) -> NDArray[np.float32] | None:
        """(head_size / 2): what Llama 3's scaling divides the angle of each pair by.

        With more than `high` wavelengths in the original context it is 1, with fewer than `low`
        `factor`; in between, the reciprocals are interpolated.
        """
        s = self.rope_llama3
        if s is None:
            return None
        frequency = self.rope_theta ** (-np.arange(0, self.head_size, 2) / self.head_size)
        waves = s.context * frequency / (2 * math.pi)
        smooth = np.clip((waves - s.low) / (s.high - s.low), 0.0, 1.0)
        return (1.0 / ((1.0 - smooth) / s.factor + smooth)).astype(np.float32)


def _checked(config: ModelConfig, source: Fields) -> ModelConfig:
    if config.n_heads % config.n_kv_heads:
        raise CheckpointError(
            f"{source.path}: {config.n_heads} heads are not a multiple of the "
            f"{config.n_kv_heads} key and value heads"
        )
    if config.head_size % 2:
        raise CheckpointError(
            f"{source.path}: head size {config.head_size} is odd; RoPE needs pairs"
        )
    if config.vocab_size < 1 or config.hidden_dim < 1:
        raise CheckpointError(f"{source.path.parent}: its embedding or its feed-forward is empty")
    scaling = config.rope_llama3
    if scaling is not None and not scaling.low < scaling.high:
        raise CheckpointError(
            f"{source.path}: low_freq_factor is {scaling.low}; it must be below "
            f"high_freq_factor, {scaling.high}"
        )
    return config


def _head_size(source: Fields, dim: int, n_heads: int, name: str) -> int:
    if dim % n_heads:
        raise source.fail(name, f"a multiple of the {n_heads} heads")
    return dim // n_heads


_FAMILIES = {
    "llama": ("LlamaForCausalLM", "LLaMAForCausalLM"),
    "mistral": ("MistralForCausalLM",),
}
"""model types that compute the same as a Llama, with their architectures"""


def _family(source: Fields) -> str:
    """The model type. UnsupportedError for what the engine does not compute."""
    architectures = source.table("architectures")
    if source.get("model_type") is None and architectures == ["MistralForCausalLM"]:
        family = "mistral"
    else:
        family = source.text("model_type", "llama")
    known = _FAMILIES.get(family, ())
    if not known or len(architectures) > 1 or not {*map(str, architectures)} <= {*known}:
        raise UnsupportedError(
            f"{source.path}: architecture {', '.join(map(str, architectures))[:100]} "
            f"({source.get('model_type')}); only LlamaForCausalLM (llama) and MistralForCausalLM "
            "(mistral) are converted"
        )
    for name in ("attention_bias", "mlp_bias"):
        if source.boolean(name, False):
            raise UnsupportedError(f"{source.path}: {name} is true; biases are not supported")
    if source.get("quantization_config") is not None:
        raise UnsupportedError(f"{source.path}: quantization_config is set, which is not supported")
    if source.text("hidden_act", "silu") not in ("silu", "swish"):
        raise UnsupportedError(f"{source.path}: hidden_act is {source.get('hidden_act')}, not silu")
    return family


def _rope(source: Fields, context: int) -> tuple[float, float | None, RopeScaling | None]:
    """theta, linear factor and Llama 3's scaling, wherever transformers 4 or 5 put them."""
    # An empty object counts as none; if both are present, transformers uses the older name.
    name = "rope_scaling" if source.get("rope_scaling") else "rope_parameters"
    theta = source.positive("rope_theta", 10000.0)
    rope = source.object(name) if source.get(name) is not None else Fields(source.path, {}, name)
    theta = rope.positive("rope_theta", theta)
    kind = rope.text("rope_type", rope.text("type", "default"))
    partial = rope.positive("partial_rotary_factor", source.positive("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise UnsupportedError(f"{source.path}: partial_rotary_factor is {partial}, not 1")
    if kind == "default":
        return theta, None, None
    if kind == "linear":
        return theta, rope.positive("factor"), None
    if kind == "llama3":
        name = "original_max_position_embeddings"
        before = source.integer(name, rope.integer(name, context))
        low, high = rope.positive("low_freq_factor"), rope.positive("high_freq_factor")
        return theta, None, RopeScaling(rope.positive("factor"), low, high, before)
    raise UnsupportedError(
        f"{source.path}: {name} has type {kind[:100]!r}; known: default, linear, llama3"
    )


def _within_window(source: Fields, context: int, default: int | None) -> int:
    """The context, limited to the sliding window, within which that changes nothing; `default` is
    the window of a file that does not mention one."""
    if source.get("sliding_window") is None and (default is None or "sliding_window" in source):
        return context
    window = source.integer("sliding_window", default)
    if window < context:
        warn(
            f"{source.path}: sliding-window attention is not supported; the context is limited to "
            f"the window, {window} positions of {context}",
            CheckpointWarning,
        )
    return min(context, window)


def from_hugging_face(source: Fields) -> ModelConfig:
    """A config.json of transformers 4 or 5; defaults are those of LlamaConfig and MistralConfig."""
    mistral = _family(source) == "mistral"
    dim, n_heads = source.integer("hidden_size"), source.integer("num_attention_heads")
    context = source.integer("max_position_embeddings", 131072 if mistral else 2048)
    theta, linear, llama3 = _rope(source, context)
    if source.get("head_dim") is None:
        head_size = _head_size(source, dim, n_heads, "hidden_size")
    else:
        head_size = source.integer("head_dim")
    n_kv_heads = n_heads  # also of a Mistral where the field is null
    if mistral and "num_key_value_heads" not in source:
        n_kv_heads = 8
    config = ModelConfig(
        dim=dim,
        hidden_dim=source.integer("intermediate_size"),
        n_layers=source.integer("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=source.integer("num_key_value_heads", n_kv_heads),
        head_size=head_size,
        vocab_size=source.integer("vocab_size"),
        context_length=_within_window(source, context, 4096 if mistral else None),
        norm_eps=source.positive("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_linear=linear,
        rope_llama3=llama3,
    )
    return _checked(config, source)


def _meta_context(source: Fields, theta: float, eps: float, scaled: bool) -> int:
    """Meta's files do not state the context of a model; their other numbers imply it."""
    if scaled:
        return 131072  # Llama 3.1 and newer
    if theta == 500000.0:
        return 8192  # Llama 3
    if theta == 1000000.0:
        return 16384  # Code Llama
    return 4096 if eps == 1e-5 else 2048  # Llama 2, Llama


def from_meta(source: Fields, hidden_dim: int, vocab_size: int) -> ModelConfig:
    """A params.json; widths that it gives only by rules, or not at all (-1), are the weights'."""
    dim, n_heads = source.integer("dim"), source.integer("n_heads")
    theta, eps = source.positive("rope_theta", 10000.0), source.positive("norm_eps", 1e-5)
    scaled = source.boolean("use_scaled_rope", False)
    if source.integer("vocab_size", -1, least=-1) not in (-1, vocab_size):
        raise source.fail("vocab_size", f"-1 or {vocab_size}, the rows of tok_embeddings")
    context = _within_window(source, _meta_context(source, theta, eps, scaled), None)
    if source.get("head_dim") is None:  # Mistral's params.json has it, Meta's do not
        head_size = _head_size(source, dim, n_heads, "dim")
    else:
        head_size = source.integer("head_dim")
    llama3 = None
    if scaled:
        # Llama 3.2's 1B and 3B were trained with 32, which their params.json does not say.
        factor = source.positive("rope_scaling_factor", 32.0 if dim <= 3072 else 8.0)
        llama3 = RopeScaling(factor)
    config = ModelConfig(
        dim=dim,
        hidden_dim=hidden_dim,
        n_layers=source.integer("n_layers"),
        n_heads=n_heads,
        n_kv_heads=source.integer("n_kv_heads", n_heads),
        head_size=head_size,
        vocab_size=vocab_size,
        context_length=context,
        norm_eps=eps,
        rope_theta=theta,
        rope_linear=None,
        rope_llama3=llama3,
    )
    return _checked(config, source)
