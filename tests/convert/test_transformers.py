"""Models that transformers and PyTorch saved give transformers' logits after conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import LLAMA3_SCALING, meta_shard, meta_weights

from pyllama2c import CheckpointWarning, Llama
from pyllama2c.convert import convert

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")

TOKENS = [(7 * i + 1) % 320 for i in range(100)]
HEADS = [
    (4, 4, 16),
    (8, 2, 12),
    (9, 3, 16),
    (32, 4, 4),
    (6, 1, 16),
    (2, 2, 100),
    (4, 2, 48),
    (2, 1, 64),
]
ROPES = (1e4, 1e5, 5e5)


def random_model(
    heads: tuple[int, int, int], tied: bool, theta: float, eps: float, scaled: bool
) -> Any:
    n_heads, n_kv_heads, head_size = heads
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    config = transformers.LlamaConfig(
        hidden_size=n_heads * head_size,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        vocab_size=320,
        max_position_embeddings=256,
        rms_norm_eps=eps,
        tie_word_embeddings=tied,
        rope_parameters=rope | LLAMA3_SCALING if scaled else rope,
    )
    torch.manual_seed(n_heads)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if values.ndim == 1:
                values.uniform_(0.5, 1.5)
            elif not (tied and "lm_head" in name):
                values.normal_(0, values.shape[1] ** -0.5)
    return model


def mistral(window: int | None) -> Any:
    config = transformers.MistralConfig(
        hidden_size=96,
        intermediate_size=172,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=320,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        sliding_window=window,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        attn_implementation="eager",
    )
    torch.manual_seed(1)
    model = transformers.MistralForCausalLM(config).eval()
    with torch.no_grad():
        for values in model.parameters():
            if values.ndim == 1:
                values.uniform_(0.5, 1.5)
            else:
                values.normal_(0, values.shape[1] ** -0.5)
    return model


def expected(model: Any) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        logits: np.ndarray[Any, Any] = model.double()(torch.tensor([TOKENS])).logits[0].numpy()
    model.float()
    return logits


def difference(folder: Path, logits: np.ndarray[Any, Any]) -> float:
    target = folder / "converted.gguf"
    convert(folder, target, dtype="float32", tokenizer=False)
    with Llama(target, speculative=False) as llama:
        return float(np.abs(llama.logits(TOKENS) - logits).max())


def test_a_tied_classifier_that_is_another(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    random_model(HEADS[0], True, 1e5, 1e-6, False).save_pretrained(tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(weights, path, {"format": "pt"})
    with pytest.warns(CheckpointWarning, match=r"lm_head.weight differs from the embedding"):
        convert(tmp_path / "hf", tmp_path / "m.gguf", dtype="float32", tokenizer=False)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad(), Llama(tmp_path / "m.gguf", dtype="float32") as llama:
        expected = theirs(torch.tensor([TOKENS])).logits[0].numpy()
        assert np.abs(llama.logits(TOKENS) - expected).max() < 1e-3


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "llama3"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_logits(heads: tuple[int, int, int], tied: bool, scaled: bool, tmp_path: Path) -> None:
    """Each shape with each kind of head; thetas and eps in turn; safetensors, whole and sharded."""
    turn = HEADS.index(heads) + tied
    model = random_model(heads, tied, ROPES[turn % 3], (1e-5, 1e-6)[turn % 2], scaled)
    logits = expected(model)
    size = "40KB" if tied else "5GB"
    model.save_pretrained(tmp_path / "hf", max_shard_size=size)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1 or not tied
    assert difference(tmp_path / "hf", logits) < 1e-4


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("heads", [(8, 2, 12), (6, 1, 16), (2, 2, 100)], ids=str)
def test_pytorch_bin(heads: tuple[int, int, int], tied: bool, tmp_path: Path) -> None:
    model = random_model(heads, tied, 1e5, 1e-6, False)
    logits = expected(model)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert difference(tmp_path, logits) < 1e-4


def test_bfloat16(tmp_path: Path) -> None:
    model = random_model((4, 2, 48), False, 1e4, 1e-5, False)
    with torch.no_grad():
        for values in model.parameters():  # not RoPE's frequencies, which are no weights
            values.copy_(values.bfloat16())
    logits = expected(model)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert difference(tmp_path, logits) < 1e-4


def test_mistral(tmp_path: Path) -> None:
    model = mistral(None)
    logits = expected(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["sliding_window"] is None
    assert difference(tmp_path, logits) < 1e-4


def test_mistral_within_its_window(tmp_path: Path) -> None:
    """As far as the window reaches it is a Llama; the next position it is none, and not there."""
    window = 60
    model = mistral(window)
    logits = expected(model)
    model.save_pretrained(tmp_path)
    target = tmp_path / "converted.gguf"
    with pytest.warns(CheckpointWarning, match="the window, 60 positions"):
        convert(tmp_path, target, dtype="float32", tokenizer=False)
    with Llama(target, speculative=False) as llama:
        assert llama.config.seq_len == window
        ours = llama.logits(TOKENS[:window])
    assert np.abs(ours - logits[:window]).max() < 1e-4
    whole = expected(mistral(None))
    assert np.abs(whole[:window] - logits[:window]).max() < 1e-6
    assert np.abs(whole[window] - logits[window]).max() > 1e-3


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("axis", [0, 1], ids=["Llama 3", "Llama 2"])
def test_meta_shards_of_torch_save(shards: int, axis: int, tmp_path: Path) -> None:
    """Meta's folder of the same weights, through torch.save; its shards are views."""
    model = random_model((8, 4, 16), False, 1e4, 1e-5, False)
    logits = expected(model)
    arrays = {name: values.numpy() for name, values in model.state_dict().items()}
    weights = meta_weights(arrays, 16)
    params = {"dim": 128, "n_layers": 2, "n_heads": 8, "n_kv_heads": 4, "norm_eps": 1e-5}
    (tmp_path / "params.json").write_text(json.dumps(params | {"vocab_size": 320}))
    for i in range(shards):
        part = {n: torch.from_numpy(v) for n, v in meta_shard(weights, i, shards, axis).items()}
        torch.save(part, tmp_path / f"consolidated.{i:02d}.pth")
    assert difference(tmp_path, logits) < 1e-4
