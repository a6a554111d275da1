"""What a model file is, and what this machine makes of it."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from pyllama2c._ffi import cpu_features, lib
from pyllama2c.config import Config
from pyllama2c.gguf import Gguf
from pyllama2c.workers import available_cpus

if TYPE_CHECKING:
    from pyllama2c.model import Llama


def describe(llama: Llama) -> dict[str, Any]:
    """Facts as JSON types; sizes are bytes."""
    c = llama.config
    types = _tensor_types(llama.path) if c.file == "gguf" else {}
    return {
        "model": llama.path,
        "format": _format(c),
        "file_bytes": os.path.getsize(llama.path),
        "parameters": llama.n_parameters,
        "config": c._asdict(),
        **({"tensor_types": types} if types else {}),
        "memory": {
            "weights": int(lib.l2c_model_bytes(llama._engine.model)),
            "weights_read_per_token": llama.sweep_bytes,
            "session_at_full_context": int(lib.l2c_session_bytes(llama._engine.model, 1, 0)),
        },
        "cpu": {"available": available_cpus(), "features": cpu_features()},
        "threads": llama.threads,
        "dtype": c.dtype,
        "kernels": llama.isa,
    }


_CLASSES = {
    "embedding": r"token_embd\.",
    "attention": r"blk\.\d+\.attn_(q|k|v|output)\.",
    "feed-forward": r"blk\.\d+\.ffn_(gate|up|down)\.",
    "classifier": r"output\.",
    "norms": r"(output|blk\.\d+\.(attn|ffn))_norm\.",
}


def _tensor_types(path: str) -> dict[str, list[str]]:
    """What kinds of tensors a GGUF file has, and their types, the most frequent first."""
    with Gguf(path) as file:
        tensors = list(file.tensors.values())
    found = {
        kind: Counter(t.type for t in tensors if re.match(pattern, t.name))
        for kind, pattern in _CLASSES.items()
    }
    return {
        kind: [name for name, _ in types.most_common()] for kind, types in found.items() if types
    }


def _format(c: Config) -> str:
    if c.file == "gguf":
        return f"GGUF v{c.version}"
    weights = f"int8 in groups of {c.group_size}" if c.group_size else "float32"
    return f"llama2.c v{c.version}, {weights}"


def to_json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=2)


def to_text(facts: dict[str, Any]) -> str:
    c, memory, cpu = facts["config"], facts["memory"], facts["cpu"]
    tied = "tied to the embedding" if c["shared_classifier"] else "of its own"
    scaled = ", its frequencies divided by the file's factors" if c["rope_scaled"] else ""
    types = (f"{kind} {'+'.join(names)}" for kind, names in facts.get("tensor_types", {}).items())
    rows = [
        ("model", facts["model"]),
        ("format", f"{facts['format']}, {facts['file_bytes']:,} bytes"),
        *([("tensors", ", ".join(types))] if "tensor_types" in facts else []),
        ("parameters", f"{facts['parameters']:,}"),
        ("shape", f"dim {c['dim']}, hidden_dim {c['hidden_dim']}, {c['n_layers']} layers"),
        (
            "attention",
            f"{c['n_heads']} heads of {c['head_size']}, {c['n_kv_heads']} for keys and values",
        ),
        ("RoPE", f"base {c['rope_theta']:g}{scaled}; RMSNorm's epsilon {c['norm_eps']:.6g}"),
        ("vocabulary", f"{c['vocab_size']:,}, classifier {tied}"),
        ("context", f"{c['seq_len']:,} positions"),
        ("memory", f"{memory['weights']:,} bytes of weights;"),
        ("", f"{memory['session_at_full_context']:,} bytes a story at full context"),
        ("a token reads", f"{memory['weights_read_per_token']:,} bytes of weights"),
        (
            "cpu",
            f"{cpu['available']} available; {' '.join(cpu['features']) or 'nothing to use'}",
        ),
        (
            "computes with",
            f"{facts['dtype']}, {facts['threads']} thread(s), {facts['kernels']} kernels",
        ),
    ]
    return "\n".join(f"{name:<14} {value}" for name, value in rows)
