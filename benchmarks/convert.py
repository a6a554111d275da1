"""A llama2.c v0 checkpoint in the formats of other engines, for peers.py; made once, then kept.

Token ids stay as they are. The text of pieces plays no role here, so every format gets a made-up
vocabulary of the right size: peers.py passes ids (CTranslate2 wants strings: `PIECE % id`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllama2c import Llama
from pyllama2c.convert.quantize import stored_tensors
from pyllama2c.engine.config import Config

PIECE = "w%d"
RMS_EPS, ROPE_THETA = 1e-5, 10000.0  # run.c's constants
Array = NDArray[np.float32]


def _read(model: Path) -> tuple[Config, dict[str, Array]]:
    with Llama(model, speculative=False) as llama:
        c = llama.config
    stored = stored_tensors(c).items()
    return c, {
        name: np.memmap(model, np.float32, "r", at, (n_layers, size))
        for name, (at, n_layers, size) in stored
    }


def _pieces(c: Config) -> list[str]:
    return ["<unk>", "<s>", "</s>", *(PIECE % i for i in range(3, c.vocab_size))]


def _weights(c: Config, tensors: dict[str, Array]) -> Iterator[tuple[str, int | None, Array]]:
    """Each weight with llama2.c's name, its layer (None: of the whole model) and its shape."""
    kv = c.n_kv_heads * c.head_size
    shapes: dict[str, tuple[int, ...]] = {
        "attention_norm": (c.dim,),
        "wq": (c.dim, c.dim),
        "wk": (kv, c.dim),
        "wv": (kv, c.dim),
        "wo": (c.dim, c.dim),
        "ffn_norm": (c.dim,),
        "w1": (c.hidden_dim, c.dim),
        "w2": (c.dim, c.hidden_dim),
        "w3": (c.hidden_dim, c.dim),
    }
    for name in ("embedding", "final_norm", "classifier"):
        if name in tensors:  # a tied model has no classifier of its own
            shape = (c.dim,) if name == "final_norm" else (c.vocab_size, c.dim)
            yield name, None, np.asarray(tensors[name]).reshape(shape)
    for name, shape in shapes.items():
        for i, part in enumerate(tensors[name]):
            yield name, i, np.asarray(part).reshape(shape)


def _halves(w: Array, head_size: int) -> Array:
    """Rows of wq or wk in Hugging Face's order, which rotates (i, i + head_size/2), where run.c
    rotates (2i, 2i + 1)."""
    rows, dim = w.shape
    heads = w.reshape(rows // head_size, head_size // 2, 2, dim)
    return np.ascontiguousarray(heads.transpose(0, 2, 1, 3)).reshape(rows, dim)


def hugging_face(model: Path, folder: Path) -> Path:
    """A folder for transformers' LlamaForCausalLM, with a tokenizer of made-up words."""
    target = folder / "hf"
    if target.exists():
        return target
    from safetensors.numpy import save_file

    c, tensors = _read(model)
    whole = {
        "embedding": "model.embed_tokens.weight",
        "final_norm": "model.norm.weight",
        "classifier": "lm_head.weight",
    }
    layer = {
        "attention_norm": "input_layernorm",
        "wq": "self_attn.q_proj",
        "wk": "self_attn.k_proj",
        "wv": "self_attn.v_proj",
        "wo": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "w1": "mlp.gate_proj",
        "w2": "mlp.down_proj",
        "w3": "mlp.up_proj",
    }
    state = {}
    for name, i, w in _weights(c, tensors):
        if name in ("wq", "wk"):
            w = _halves(w, c.head_size)
        state[whole[name] if i is None else f"model.layers.{i}.{layer[name]}.weight"] = w
    partial = folder / "hf.part"
    partial.mkdir(exist_ok=True)
    save_file(state, partial / "model.safetensors", metadata={"format": "pt"})

    def write(name: str, content: dict[str, Any]) -> None:
        (partial / name).write_text(json.dumps(content), encoding="utf-8")

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": c.dim,
        "intermediate_size": c.hidden_dim,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": RMS_EPS,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": c.shared_classifier,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    write("config.json", config)
    words = {"type": "WordLevel", "vocab": dict(zip(_pieces(c), range(c.vocab_size), strict=True))}
    parts = dict.fromkeys(["truncation", "padding", "normalizer", "post_processor", "decoder"])
    parts |= {"pre_tokenizer": {"type": "WhitespaceSplit"}, "added_tokens": []}
    words |= {"unk_token": "<unk>"}
    write("tokenizer.json", {"version": "1.0", **parts, "model": words})
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write("tokenizer_config.json", names | {"tokenizer_class": "PreTrainedTokenizerFast"})
    partial.rename(target)
    return target


def gguf(model: Path, folder: Path, kind: str) -> Path:
    """A GGUF file, every matrix of the kind "F32", "Q8_0" or "Q4_0". (llama-quantize would keep a
    tied classifier at 6 bits in a Q4_0 file; all 4 bits is the faster of the two.)"""
    target = folder / f"{kind}.gguf"
    if target.exists():
        return target
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

    c, tensors = _read(model)
    partial = folder / f"{kind}.gguf.part"
    writer = GGUFWriter(partial, "llama")
    writer.add_context_length(c.seq_len)
    writer.add_embedding_length(c.dim)
    writer.add_block_count(c.n_layers)
    writer.add_feed_forward_length(c.hidden_dim)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_layer_norm_rms_eps(RMS_EPS)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_rope_dimension_count(c.head_size)
    writer.add_vocab_size(c.vocab_size)
    # The loader of this tokenizer looks up a byte piece for the newline, hence real byte pieces.
    pieces = _pieces(c)
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    types += [TokenType.NORMAL] * (c.vocab_size - 3)
    for i in range(3, min(259, c.vocab_size)):
        pieces[i], types[i] = f"<0x{i - 3:02X}>", TokenType.BYTE
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(i) for i in range(c.vocab_size)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    # q and k keep run.c's order: llama.cpp's llama models rotate neighbouring pairs too.
    whole = {"embedding": "token_embd", "final_norm": "output_norm", "classifier": "output"}
    layer = {
        "attention_norm": "attn_norm",
        "wq": "attn_q",
        "wk": "attn_k",
        "wv": "attn_v",
        "wo": "attn_output",
        "ffn_norm": "ffn_norm",
        "w1": "ffn_gate",
        "w2": "ffn_down",
        "w3": "ffn_up",
    }
    for name, i, w in _weights(c, tensors):
        to = f"{whole[name]}.weight" if i is None else f"blk.{i}.{layer[name]}.weight"
        if w.ndim == 1 or kind == "F32":
            writer.add_tensor(to, w)
        else:
            number = GGMLQuantizationType[kind]
            writer.add_tensor(to, quants.quantize(w, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)
    return target


def openvino(model: Path, folder: Path, kind: str) -> Path:
    """optimum-intel's export: an openvino_model.xml with "float32" or "int8" weights."""
    target = folder / f"openvino-{kind}"
    if not target.exists():
        source = hugging_face(model, folder)
        from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

        config = OVWeightQuantizationConfig(bits=8) if kind == "int8" else None
        exported = OVModelForCausalLM.from_pretrained(
            source, export=True, compile=False, load_in_8bit=False, quantization_config=config
        )
        partial = folder / f"openvino-{kind}.part"
        exported.save_pretrained(partial)
        partial.rename(target)
    return target / "openvino_model.xml"


def ctranslate2(model: Path, folder: Path) -> Path:
    """A CTranslate2 model in float32: it is quantized when it is loaded."""
    target = folder / "ctranslate2"
    if not target.exists():
        source = hugging_face(model, folder)
        from ctranslate2.converters import TransformersConverter

        partial = folder / "ctranslate2.part"
        TransformersConverter(str(source)).convert(str(partial), force=True)
        partial.rename(target)
    return target
