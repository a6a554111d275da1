"""What a model file is, and what it takes to run it on this machine."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict
from typing import Any

from pyllama2c._ffi import cpu_features, isa_name, resolve_isa
from pyllama2c.engine.config import Config, warn_of_groups
from pyllama2c.engine.device import Survey, survey
from pyllama2c.engine.memory import Limit, limits
from pyllama2c.engine.needs import RUNQ
from pyllama2c.engine.options import Options
from pyllama2c.engine.plan import (
    Plan,
    alternatives,
    context_of,
    dtype_key,
    plan_file,
    size,
    unavailable,
)
from pyllama2c.engine.workers import available_cpus, default_threads
from pyllama2c.files.gguf import Gguf
from pyllama2c.pretrained import find_model


def describe(model: str | None, options: Options) -> dict[str, Any]:
    """Facts as JSON types, from the file's header alone. Sizes are bytes."""
    path = str(find_model(model).checkpoint)
    plan = plan_file(path, options)
    c, context, kv_dtype = plan.config, context_of(plan, options), options.kv_dtype
    warn_of_groups(c, path)
    isa = resolve_isa(options.isa)
    dtype = dtype_key(plan, options, isa, path)
    if (dtype, kv_dtype) not in plan.needs:
        raise unavailable(path, dtype)
    needs, graphics = plan.needs[dtype, kv_dtype], survey(free_memory=options.card is not None)
    against, trouble = _bounds(options.card, graphics)
    types = _tensor_types(path) if c.file == "gguf" else {}
    fits = trouble is None and needs.obstacle(against, context) is None
    others = [] if fits else list(alternatives(plan, against, dtype, kv_dtype, context))
    return {
        "model": path,
        "format": _format(c),
        "file_bytes": plan.file_bytes,
        "parameters": plan.parameters,
        "config": asdict(c) | {"dtype": needs.dtype},
        **({"tensor_types": types} if types else {}),
        "memory": {
            "weights": needs.weights,
            "weights_read_per_token": needs.sweep,
            "session_at_full_context": needs.session(context),
            "context": context,
            "kv_dtype": kv_dtype,
            "float16_file": 2 * plan.parameters,
            "plans": [
                _row(plan, against, name, kv, context) for name, kv in plan.needs if name != RUNQ
            ],
            "limits": [limit._asdict() for limit in against],
            "fits": fits,
            "recommended": None if fits else next(iter(others), None),
        },
        "device": "cpu" if options.card is None else f"cuda:{options.card}",
        "cards": graphics.cards,
        **({"trouble": trouble} if trouble else {}),
        "cpu": {"available": available_cpus(), "features": cpu_features()},
        "threads": default_threads(needs.sweep) if options.threads is None else options.threads,
        "dtype": needs.dtype,
        "kernels": isa_name(isa),
    }


def _bounds(card: int | None, graphics: Survey) -> tuple[list[Limit], str | None]:
    """What bounds the memory of the device, and why it cannot be used, where it cannot."""
    if card is None:
        return limits(), None
    facts = graphics.card(card)
    if facts is None:
        shown = f"the driver shows this process {len(graphics.cards)} cards, counted from 0"
        return [], graphics.trouble or f"there is no cuda:{card}; {shown}"
    limit = Limit("memory", f"free on {facts['name']}", facts["free"])
    return [limit], facts.get("trouble")


def _row(
    plan: Plan, against: list[Limit], dtype: str, kv_dtype: str, context: int
) -> dict[str, Any]:
    """What one choice takes. resident: after a story of the whole context; peak: that or, if more,
    while it is opened. Mapped pages of the file count, as they do for the system."""
    needs = plan.needs[dtype, kv_dtype]
    return {
        "dtype": dtype,
        "computes_with": needs.dtype,
        "kv_dtype": kv_dtype,
        "weights": needs.weights,
        "mapped": needs.mapped,
        "cache": needs.cache(context),
        "scratch": needs.scratch(context),
        "resident": needs.total(context),
        "peak": max(needs.weights + needs.opening, needs.total(context)),
        "fits": needs.obstacle(against, context) is None,
    }


_CLASSES = {
    "embedding": r"token_embd\.",
    "attention": r"blk\.\d+\.attn_(q|k|v|output)\.",
    "feed-forward": r"blk\.\d+\.ffn_(gate|up|down)\.",
    "classifier": r"output\.",
    "norms": r"(output|blk\.\d+\.(attn|ffn))_norm\.",
}


def _tensor_types(path: str) -> dict[str, list[str]]:
    """The types of each kind of tensor in a GGUF file, the most frequent first."""
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
        ("a token reads", f"{memory['weights_read_per_token']:,} bytes of weights"),
        (
            "cpu",
            f"{cpu['available']} available; {' '.join(cpu['features']) or 'no features used'}",
        ),
        (
            "computes with",
            f"{facts['dtype']}, {facts['threads']} thread(s), {facts['kernels']} kernels"
            + ("" if facts["device"] == "cpu" else f"; on {facts['device']}"),
        ),
        *_memory_rows(facts),
        *_card_rows(facts),
    ]
    return "\n".join(f"{name:<14} {value}" for name, value in rows)


def _memory_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    memory = facts["memory"]
    rows = [("memory for", f"{'weights':>10}{'cache':>10}{'scratch':>10}{'all':>10}")]
    shown = [
        plan
        for plan in memory["plans"]
        if plan["kv_dtype"] == memory["kv_dtype"]
        and (plan["dtype"] != "auto" or plan["computes_with"] == "mixed")
    ]
    for plan in shown:
        name = "the file's own" if plan["dtype"] == "auto" else plan["dtype"]
        numbers = (size(plan[part]) for part in ("weights", "cache", "scratch", "resident"))
        verdict = "fits" if plan["fits"] else "does not fit"
        rows.append((f"  {name}", "".join(f"{n:>10}" for n in numbers) + f"  {verdict}"))
    half = size(memory["float16_file"])
    rows.append(("  float16", f"{half:>10}" + " " * 30 + "  as a file; it is computed in float32"))
    rows.append(("cache", f"{memory['kv_dtype']}, {memory['context']:,} positions of one story"))
    rows += [("memory", f"{size(n['free'])} {n['name']}") for n in memory["limits"]]
    if "trouble" in facts:
        rows.append(("", f"{facts['device']} cannot be used: {facts['trouble']}"))
    elif memory["fits"]:
        rows.append(("", "it fits"))
    elif memory["recommended"] is None:
        rows.append(("", "it does not fit, nor does anything smaller"))
    else:
        options = memory["recommended"].items()
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options)
        rows.append(("", f"it does not fit; this would: {flags}"))
    return rows


def _card_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for card in facts["cards"]:
        free = f"{size(card['free'])} free of " if "free" in card else ""
        has = f"{free}{size(card['memory'])}, compute capability {card['capability']}"
        part = ", a part of a card (MIG)" if "MIG" in card["name"] else ""
        where = f"{card['pci']}, driver for CUDA {card['driver']}"
        rows.append((card["device"], f"{card['name']}{part}: {has}, {where}"))
        if "trouble" in card:
            rows.append(("", card["trouble"]))
    if facts["device"] != "cpu":
        needed = "a card needs its driver only: no CUDA toolkit, cuDNN, NCCL or PyTorch"
        rows.append(("", needed))
    return rows
