"""config.json and params.json: what is read, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import LLAMA3_SCALING, Model, write_meta

pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")

from pyllama2c import CheckpointError, CheckpointWarning, UnsupportedError
from pyllama2c.convert import convert
from pyllama2c.convert.json_files import read_json
from pyllama2c.convert.model_config import ModelConfig, from_hugging_face, from_meta

MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}


def read(tmp_path: Path, changes: dict[str, Any], *absent: str) -> ModelConfig:
    config = Model().config() | changes
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in absent}))
    return from_hugging_face(read_json(path))


def test_defaults_of_transformers(tmp_path: Path) -> None:
    absent = ["head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta", "rope_scaling"]
    absent += ["max_position_embeddings", "architectures", "model_type", "hidden_act"]
    config = read(tmp_path, dict.fromkeys(absent))
    assert (config.head_size, config.n_kv_heads, config.norm_eps) == (16, 4, 1e-6)
    assert (config.rope_theta, config.context_length) == (10000.0, 2048)


OPTIONAL = (
    *("head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta", "rope_scaling"),
    *("max_position_embeddings", "hidden_act", "tie_word_embeddings"),
)
ROPES: tuple[dict[str, Any], ...] = (
    {},
    {"rope_theta": 5e5},
    {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 3e4},
    {"rope_scaling": {"rope_type": "linear", "type": "llama3", "factor": 2.0}},
    {"rope_scaling": {}, "rope_parameters": {"rope_theta": 7e4}},
    {"rope_parameters": {"rope_theta": 7e4}, "rope_theta": 5e4},
    {
        "rope_scaling": {"type": "linear", "factor": 3.0},
        "rope_parameters": {"rope_type": "linear", "factor": 5.0, "rope_theta": 7e4},
    },
    {"rope_scaling": LLAMA3_SCALING},
    {"rope_scaling": {k: v for k, v in LLAMA3_SCALING.items() if not k.startswith("original")}},
    {"rope_scaling": LLAMA3_SCALING, "original_max_position_embeddings": 32},
)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize(
    ("rope", "absent"),
    [*((rope, ()) for rope in ROPES), *(({}, (name,)) for name in OPTIONAL), ({}, OPTIONAL)],
)
def test_absent_fields_as_in_transformers(
    family: str, rope: dict[str, Any], absent: tuple[str, ...], tmp_path: Path
) -> None:
    """The same config.json gives the same shapes, the same eps and the same angles."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    changes: dict[str, Any] = MISTRAL | {"sliding_window": None} if family == "mistral" else {}
    changes = {"num_attention_heads": 8, "hidden_size": 128} | changes
    ours = read(tmp_path, changes | rope, *absent)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert ours.head_size == theirs.head_dim and ours.n_kv_heads == theirs.num_key_value_heads
    assert ours.norm_eps == theirs.rms_norm_eps and theirs.hidden_act == "silu"
    assert ours.context_length == theirs.max_position_embeddings
    assert theirs.tie_word_embeddings is False
    with torch.no_grad():
        expected = LlamaRotaryEmbedding(theirs).inv_freq.double().numpy()
    divisors = ours.rope_divisors()
    angles = ours.rope_theta ** (-np.arange(0, ours.head_size, 2) / ours.head_size)
    angles = angles / (1.0 if divisors is None else divisors) / (ours.rope_linear or 1.0)
    np.testing.assert_allclose(angles, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "absent", "context"),
    [
        ({"sliding_window": None}, (), 256),
        ({"sliding_window": 256}, (), 256),
        ({}, (), 256),
        ({"max_position_embeddings": 4096}, (), 4096),
        ({"max_position_embeddings": 4097, "sliding_window": 4097}, (), 4097),
        ({"sliding_window": None}, ("max_position_embeddings",), 131072),
        ({"sliding_window": None}, ("architectures",), 256),
        ({"sliding_window": None}, ("model_type",), 256),
    ],
)
def test_mistral_is_a_llama(
    changes: dict[str, Any], absent: tuple[str, ...], context: int, tmp_path: Path
) -> None:
    """null is no window; nothing said is MistralConfig's window of 4,096 positions."""
    llama = read(tmp_path, {"max_position_embeddings": context})
    assert read(tmp_path, MISTRAL | changes, *absent) == llama


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        (MISTRAL | {"sliding_window": 100}, 100),
        (MISTRAL | {"max_position_embeddings": 32768}, 4096),
        ({"sliding_window": 100}, 100),
    ],
    ids=["said", "MistralConfig's default", "of a Llama"],
)
def test_a_window_limits_the_context(changes: dict[str, Any], window: int, tmp_path: Path) -> None:
    """Positions within the window see all before them, so up to there it changes nothing."""
    with pytest.warns(CheckpointWarning, match=f"limited to the window, {window} positions"):
        assert read(tmp_path, changes).context_length == window


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"architectures": ["LlamaForCausalLM", "MistralForCausalLM"]}, "only LlamaForCausalLM"),
        ({"model_type": "mistral"}, "architecture LlamaForCausalLM .mistral"),
        ({"model_type": "ministral", "architectures": ["MistralForCausalLM"]}, "ministral"),
        ({"architectures": ["LlamaModel"]}, "LlamaModel"),
        ({"rope_scaling": None, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "only LlamaForCausalLM"),
        ({"model_type": "qwen2"}, "qwen2"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial"),
    ],
)
def test_features_that_are_not_there(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read(tmp_path, changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size is null; it must be an integer of 1"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"hidden_size": "64"}, 'hidden_size is "64"'),
        ({"hidden_size": True}, "hidden_size is true"),
        ({"hidden_size": 1 << 31}, "of 1 to 2147483647"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0"),
        ({"vocab_size": []}, r"vocab_size is \[\]"),
        ({"num_key_value_heads": 3}, "4 heads are not a multiple of the 3"),
        ({"head_dim": 15}, "head size 15 is odd"),
        ({"head_dim": None, "hidden_size": 66}, "a multiple of the 4 heads"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is NaN"),
        ({"rope_theta": float("inf")}, "rope_theta is Infinity"),
        ({"rope_theta": 10**400}, "rope_theta is 1000"),
        ({"rope_scaling": "linear"}, "rope_scaling is not a JSON object"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is null"),
        ({"sliding_window": 0}, "sliding_window is 0; it must be an integer of 1"),
        ({"sliding_window": "4096"}, "sliding_window is"),
        (MISTRAL | {"num_key_value_heads": 3}, "4 heads are not a multiple of the 3"),
        ({"rope_scaling": LLAMA3_SCALING | {"high_freq_factor": 1.0}}, "must be below"),
        ({"tie_word_embeddings": 1}, None),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"mlp_bias": "no"}, 'mlp_bias is "no"; it must be true or false'),
    ],
)
def test_wrong_fields(changes: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    if message is None:
        (tmp_path / "config.json").write_text(json.dumps(Model().config() | changes))
        with pytest.raises(CheckpointError, match="tie_word_embeddings is 1"):
            convert(tmp_path, tmp_path / "x.gguf")
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        read(tmp_path, changes)
    assert "config.json" in str(caught.value)


def test_not_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            convert(tmp_path, tmp_path / "x.gguf")


def test_llama_3_divisors(tmp_path: Path) -> None:
    """Llama 3.1's own: short waves as they were, long ones 8 times as long, between in between."""
    scaling = LLAMA3_SCALING | {"original_max_position_embeddings": 8192}
    changes = {"rope_scaling": scaling, "rope_theta": 500000.0, "head_dim": 128}
    divisors = read(tmp_path, changes).rope_divisors()
    assert divisors is not None and divisors.shape == (64,) and divisors.dtype == np.float32
    lengths = 2 * np.pi * 500000.0 ** (np.arange(64) / 64)
    assert (divisors[lengths < 8192 / 4] == 1).all() and (divisors[lengths > 8192] == 8).all()
    between = divisors[(lengths > 8192 / 4) & (lengths < 8192)]
    assert len(between) > 3 and (np.diff(between) > 0).all() and 1 < between[0] < between[-1] < 8


@pytest.mark.parametrize(
    ("changes", "context", "factor"),
    [
        ({"norm_eps": 1e-6}, 2048, None),
        ({}, 4096, None),
        ({"rope_theta": 1e6}, 16384, None),
        ({"rope_theta": 5e5}, 8192, None),
        ({"rope_theta": 5e5, "use_scaled_rope": True, "dim": 4096}, 131072, 8.0),
        ({"rope_theta": 5e5, "use_scaled_rope": True, "dim": 2048}, 131072, 32.0),
        ({"rope_theta": 5e5, "use_scaled_rope": True, "rope_scaling_factor": 16}, 131072, 16.0),
    ],
    ids=["Llama", "Llama 2", "Code Llama", "Llama 3", "Llama 3.1", "Llama 3.2", "said"],
)
def test_params_json(
    changes: dict[str, Any], context: int, factor: float | None, tmp_path: Path
) -> None:
    path = tmp_path / "params.json"
    params = {"dim": 64, "n_layers": 2, "n_heads": 4, "norm_eps": 1e-5, "vocab_size": -1}
    path.write_text(json.dumps(params | changes))
    config = from_meta(read_json(path), hidden_dim=176, vocab_size=300)
    assert (config.context_length, config.n_kv_heads, config.hidden_dim) == (context, 4, 176)
    assert (config.rope_llama3.factor if config.rope_llama3 else None) == factor
    path.write_text(json.dumps(params | {"vocab_size": 301}))
    with pytest.raises(CheckpointError, match="vocab_size is 301; it must be -1 or 300"):
        from_meta(read_json(path), hidden_dim=176, vocab_size=300)


def test_params_of_a_mistral(tmp_path: Path) -> None:
    """Its own release has Meta's layout, and says two things more."""
    path = tmp_path / "params.json"
    params = {"dim": 64, "n_layers": 2, "n_heads": 4, "norm_eps": 1e-5, "vocab_size": 300}
    path.write_text(json.dumps(params | {"head_dim": 32, "sliding_window": 4096}))
    config = from_meta(read_json(path), hidden_dim=176, vocab_size=300)
    assert (config.head_size, config.context_length) == (32, 4096)
    path.write_text(json.dumps(params | {"sliding_window": 100}))
    with pytest.warns(CheckpointWarning, match="the window, 100 positions"):
        assert from_meta(read_json(path), 176, 300).context_length == 100


def test_llama_by_its_first_name(tmp_path: Path) -> None:
    changes = {"architectures": ["LLaMAForCausalLM"]}
    assert read(tmp_path, changes) == read(tmp_path, {})


def test_params_that_do_not_fit_the_weights(tmp_path: Path) -> None:
    folder = write_meta(tmp_path / "m", Model(), shards=2)
    params = json.loads((folder / "params.json").read_text())
    for changes, message in (
        ({"n_layers": 3}, "no file has the weight layers.2.attention_norm"),
        ({"n_layers": 2**31 - 1}, "has the weight layers.2.attention_norm"),
        ({"n_layers": 1}, "not a weight of a Llama"),
        ({"n_kv_heads": 4}, r"wk.weight has shape \(32, 64\); the configuration implies \(64, 64"),
        ({"dim": 128}, "has shape"),
    ):
        (folder / "params.json").write_text(json.dumps(params | changes))
        with pytest.raises((CheckpointError, UnsupportedError), match=message):
            convert(folder, tmp_path / "x.gguf", tokenizer=False)
