"""What the page asks: how one token was chosen, and what a token looked at.

Plain functions from a model and a decoded request to an answer that JSON can hold. ValueError,
TypeError and Llama2cError for a request that is wrong, naming the field. Random states, seeds and
fingerprints are decimal strings: JavaScript's numbers end at 2 ** 53.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyllama2c import validate
from pyllama2c._ffi import ffi
from pyllama2c.errors import ContextLengthError, UnsupportedError
from pyllama2c.generation.sampling import new_sampler
from pyllama2c.serve.json_values import token_keys, uint64
from pyllama2c.serve.nodes import Nodes

if TYPE_CHECKING:
    from pyllama2c.model import Llama
    from pyllama2c.serve.choice import Line

N_TOP = 20
_SAMPLING = {
    "temperature": 1.0,
    "top_p": 0.9,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": None,
}
"""with generate's defaults"""

_NEXT = ("node", "ids", "rng_state", "seed", "sampling", "forced", "n_prompt")


def about(llama: Llama) -> dict[str, Any]:
    """The model, for the page's head, its links and its step-by-step view."""
    config, tokenizer = llama.config, llama.tokenizer
    return {
        "name": os.path.basename(llama.path),
        "fingerprint": str(llama._engine.fingerprint),
        "device": llama.device,
        "isa": llama.isa,
        "n_parameters": llama.n_parameters,
        "attention": llama._engine.card is None,
        "bos": tokenizer.bos_id,
        "ends": sorted(tokenizer.ends),
        **{
            name: getattr(config, name)
            for name in (
                "dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "head_size",
                "vocab_size", "seq_len", "dtype",
            )
        },
    }  # fmt: skip


def tokens(llama: Llama, nodes: Nodes, request: Mapping[str, Any]) -> dict[str, Any]:
    """{text} or {ids} -> {node, tokens: [{id, text, bytes}]}: how a story begins."""
    _known(request, ("text", "ids"))
    if ("text" in request) == ("ids" in request):
        raise ValueError("one of text and ids must be given")
    if "ids" in request:
        ids = _ids(llama, request["ids"])
    else:
        if not isinstance(request["text"], str):
            raise validate.wrong("text", request["text"], "text", TypeError)
        ids = llama.tokenizer.encode_prompt(request["text"])
    llama._engine.check_length(ids)
    shown = [_shown(llama, token, ids[i - 1] if i else None) for i, token in enumerate(ids)]
    return {"node": nodes.put(ids), "tokens": shown}


def next_token(llama: Llama, nodes: Nodes, request: Mapping[str, Any]) -> dict[str, Any]:
    """{node or ids, rng_state or seed, sampling?, forced?, n_prompt?} -> the token after it, and
    why.

    `sampling` has generate's parameters. Presence and frequency are those among the tokens from
    `n_prompt` on (default: all of them are the prompt).
    `forced` takes that token by hand; it uses up the coin of its position, so that later positions
    keep theirs. `picked` is what the coin takes in any case.
    """
    from pyllama2c.serve import choice  # here, for NumPy

    _known(request, _NEXT)
    ids = _story(llama, nodes, request)
    config = llama.config
    sampler = _sampler(request, len(ids), config.vocab_size)
    forced = request.get("forced")
    if forced is not None:
        forced = validate.integer("forced", forced, 0, config.vocab_size - 1)
    before = int(sampler.rng_state)
    with llama._engine.session_with(ids[:-1]) as session:
        session.feed(ids[-1:], len(ids) - 1)
        row = session.logits(1, config.vocab_size)[0]
        logits = row.copy()
        history = ffi.new("int32_t[]", ids)
        picked = session.sample(sampler, history, len(ids))
        left = row.copy()  # what the sampler chose by
    after = int(sampler.rng_state)
    coin = choice.coin_of(after) if choice.tossed(before, after) else None
    if coin is None or left.min() < 0 or left.max() != 1:  # logits still: the largest won
        line = choice.no_line(config.vocab_size, picked)
    else:
        line = choice.draw_line(left, sums_in_turn(llama), sampler, coin)
    if line.taken != picked:
        raise RuntimeError(f"the line has token {line.taken} where the sampler took {picked}")
    token = picked if forced is None else forced
    low, high = line.interval(token)
    return {
        "token": token,
        "picked": picked,
        "ends": token in llama.tokenizer.ends,
        "node": nodes.put([*ids, token]),
        "position": len(ids),
        "coin": coin,
        "target": line.target,
        "order": line.order,
        "kept": len(line.ids),
        "low": low,
        "high": high,
        "sum": line.sum,
        "rng_before": str(before),
        "rng_after": str(after),
        "top": _top(llama, line, logits, sampler, [token, picked], ids[-1]),
        "logits": _base64(logits),
    }


def attention(llama: Llama, nodes: Nodes, request: Mapping[str, Any]) -> dict[str, Any]:
    """{node or ids, position?} -> what the token at a position (default: the last) looked at:
    float32 (layers, heads, position + 1), little-endian, base64.

    UnsupportedError for a model on a card.
    """
    _known(request, ("node", "ids", "position"))
    if llama._engine.card is not None:
        name = llama._engine.card.info.name
        raise UnsupportedError(f"{name} keeps its attention to itself; serve with --device cpu")
    ids = _story(llama, nodes, request)
    at = validate.integer("position", request.get("position", len(ids) - 1), 0, len(ids) - 1)
    config = llama.config
    with llama._engine.session_with(ids[:at]) as session:
        weights = session.attention(ids[at], at, (config.n_layers, config.n_heads, at + 1))
    return {
        "position": at,
        "layers": config.n_layers,
        "heads": config.n_heads,
        "weights": _base64(weights),
    }


def _known(request: Mapping[str, Any], names: tuple[str, ...]) -> None:
    unknown = set(request) - set(names)
    if unknown:
        raise ValueError(f"unknown field {validate.shown(sorted(map(str, unknown))[0])}")


def _ids(llama: Llama, value: Any) -> list[int]:
    ids = validate.token_ids("ids", value, llama.config.vocab_size)
    if not ids:
        raise ValueError("ids is empty; begin with BOS")
    return ids


def _story(llama: Llama, nodes: Nodes, request: Mapping[str, Any]) -> list[int]:
    """The ids that a request stands on; what fits the context, and one token after it."""
    if ("node" in request) == ("ids" in request):
        raise ValueError("one of node and ids must be given")
    if "ids" in request:
        ids = _ids(llama, request["ids"])
    else:
        if not isinstance(request["node"], str):
            raise validate.wrong("node", request["node"], "a node's name", TypeError)
        found = nodes.get(request["node"])
        if found is None:
            shown = validate.shown(request["node"])
            raise ValueError(f"node {shown} is unknown, or no longer kept: give ids")
        ids = found
    limit = llama.config.seq_len
    if len(ids) > limit:
        raise ContextLengthError(f"{len(ids)} tokens; the model's context is {limit}")
    return ids


def _sampler(request: Mapping[str, Any], n_tokens: int, vocab_size: int) -> Any:
    if ("rng_state" in request) == ("seed" in request):
        raise ValueError("one of rng_state and seed must be given")
    sampling = request.get("sampling", {})
    if not isinstance(sampling, Mapping):
        raise validate.wrong("sampling", sampling, "an object: " + ", ".join(_SAMPLING), TypeError)
    unknown = set(sampling) - set(_SAMPLING)
    if unknown:
        raise ValueError(f"unknown sampling field {validate.shown(sorted(map(str, unknown))[0])}")
    parameters = {**_SAMPLING, **sampling, "logit_bias": token_keys(sampling.get("logit_bias"))}
    n_prompt = validate.integer("n_prompt", request.get("n_prompt", n_tokens), 0, n_tokens)
    seed = uint64("seed", request["seed"]) if "seed" in request else 1
    sampler = new_sampler(**parameters, n_prompt=n_prompt, vocab_size=vocab_size, seed=seed)
    if "rng_state" in request:
        sampler.rng_state = uint64("rng_state", request["rng_state"], low=1)
    return sampler


def sums_in_turn(llama: Llama) -> bool:
    """Whether the model is computed by runq.c's kernels (llama2c.h, l2c_model_open)."""
    group = llama.config.group_size
    unpacked = group > 0 and (llama.config.hidden_dim % group or group % 4 or group > 512)
    return llama.isa == "runq" or bool(unpacked)


def _shown(llama: Llama, token: int, before: int | None) -> dict[str, Any]:
    """A token and its text, after the token before it. Bytes tell what part of a character is."""
    tokenizer = llama.tokenizer
    opens = tokenizer.adds_space and before == tokenizer.bos_id
    piece = tokenizer.opening(token) if opens else tokenizer.piece(token)
    text = piece.decode("utf-8", "replace") if piece else tokenizer.special_text(token)
    return {"id": token, "text": text, "bytes": list(piece)}


def _top(
    llama: Llama, line: Line, logits: Any, sampler: Any, always: list[int], before: int
) -> list[dict[str, Any]]:
    """The N_TOP likeliest tokens after temperature, likeliest first, and those of `always`."""
    import numpy as np

    n = min(N_TOP, len(logits))
    least = np.partition(line.p, -n)[-n]
    ids = np.flatnonzero(line.p >= least) if least > 0 else np.arange(len(logits))
    ids = ids[np.lexsort((-logits[ids], -line.p[ids]))][:n]
    missing = [token for token in dict.fromkeys(always) if token not in ids]
    ids = np.concatenate([ids[: n - len(missing)], np.array(missing, ids.dtype)])
    exact = logits.astype(np.float64)
    exps = np.exp(exact - exact.max())
    rows = []
    for token in ids.tolist():
        low, high = line.interval(token)
        rows.append(
            {
                **_shown(llama, token, before),
                "logit": float(logits[token]),
                "p_before": float(exps[token] / exps.sum()),
                "p_after": float(line.p[token]),
                "cut_by": line.cut_by(token, sampler),
                "low": low,
                "high": high,
            }
        )
    return rows


def _base64(values: Any) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()
