"""What a model file is, and what this machine makes of it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from pyllama2c._ffi import cpu_features, lib
from pyllama2c.workers import available_cpus

if TYPE_CHECKING:
    from pyllama2c.model import Llama


def describe(llama: Llama) -> dict[str, Any]:
    """Facts as JSON types; sizes are bytes."""
    c = llama.config
    return {
        "model": llama.path,
        "format": f"llama2.c v{c.version}, "
        + (f"int8 in groups of {c.group_size}" if c.group_size else "float32"),
        "file_bytes": os.path.getsize(llama.path),
        "parameters": llama.n_parameters,
        "config": c._asdict(),
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


def to_json(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=2)


def to_text(facts: dict[str, Any]) -> str:
    c, memory, cpu = facts["config"], facts["memory"], facts["cpu"]
    tied = "tied to the embedding" if c["shared_classifier"] else "of its own"
    rows = [
        ("model", facts["model"]),
        ("format", f"{facts['format']}, {facts['file_bytes']:,} bytes"),
        ("parameters", f"{facts['parameters']:,}"),
        ("shape", f"dim {c['dim']}, hidden_dim {c['hidden_dim']}, {c['n_layers']} layers"),
        (
            "attention",
            f"{c['n_heads']} heads of {c['head_size']}, {c['n_kv_heads']} for keys and values",
        ),
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
