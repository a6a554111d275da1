"""Receipts: all that decides a story, and the story, so that anybody can tell it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyllama2c
from pyllama2c import validate
from pyllama2c.generation.sampling import rng_state_after
from pyllama2c.serve.json_values import token_keys, uint64
from pyllama2c.serve.parameters import DEFAULTS
from pyllama2c.serve.token_texts import ended_by_token
from pyllama2c.tokenizers.base import BaseTokenizer
from pyllama2c.tokenizers.digest import tokenizer_digest

if TYPE_CHECKING:
    from pyllama2c.model import Llama
    from pyllama2c.serve.job import Story

_EXACT = 2**53
"""the largest integer that every JSON parser keeps"""


def big(number: int) -> int | str:
    """A seed or rng state: above 2**53 as decimal text."""
    return number if number <= _EXACT else str(number)


@dataclass(frozen=True)
class Identity:
    """What computes: the same everywhere where the bits are the same."""

    pyllama2c: str
    model: str
    weights: str
    """l2c_model_fingerprint, in hexadecimal"""
    tokenizer: str
    """a hash of the pieces and the end tokens"""
    dtype: str
    kv_dtype: str
    isa: str | None = None
    """ "runq", whose results differ; all other kernels give the same bits"""


def identify(llama: Llama, name: str) -> Identity:
    """Reads all weights when a model is first identified."""
    engine = llama._engine
    return Identity(
        pyllama2c=pyllama2c.__version__,
        model=name,
        weights=f"{engine.fingerprint:016x}",
        tokenizer=_tokenizer_hash(llama.tokenizer),
        dtype=llama.config.dtype,
        kv_dtype=engine.session_options.kv_dtype,
        isa="runq" if llama.isa == "runq" else None,
    )


def _tokenizer_hash(tokenizer: BaseTokenizer) -> str:
    """Of what turns ids into text, and of the ids that end a story."""
    about = (sorted(tokenizer.ends), tokenizer.adds_space, tokenizer.bos_id)
    return tokenizer_digest(tokenizer, about, 16)


def make_receipt(identity: Identity, story: Story, tokenizer: BaseTokenizer) -> dict[str, Any]:
    """Of a finished story."""
    done, request = story.completion, story.request
    assert done is not None
    parameters = dict(story.parameters)
    coins = len(done.tokens) + ended_by_token(story, tokenizer)
    if request.sampler.temperature == 0:  # in float32: 1e-50 is 0, too
        coins = 0
    if parameters.get("logit_bias"):  # JSON's keys are texts
        parameters["logit_bias"] = {str(k): v for k, v in parameters["logit_bias"].items()}
    return {
        **asdict(identity),
        "prompt_tokens": request.prompt_tokens,
        "parameters": parameters,
        "seed": big(request.seed),
        "tokens": done.tokens,
        "text": done.text,
        "finish_reason": done.finish_reason,
        "rng_state": big(rng_state_after(request.seed, coins)),
    }


@dataclass(frozen=True)
class Receipt:
    """A receipt, checked."""

    identity: Identity
    prompt_tokens: list[int]
    parameters: dict[str, Any]
    seed: int
    tokens: list[int]
    text: str
    finish_reason: str
    rng_state: int


def read_receipt(value: Any, vocab_size: int) -> Receipt:
    """ValueError or TypeError, naming the field, for what is no receipt."""
    if not isinstance(value, Mapping):
        raise validate.wrong("the receipt", value, "a JSON object", TypeError)
    identity = {name: _text(value, name) for name in Identity.__annotations__ if name != "isa"}
    isa = value.get("isa")
    if isa not in (None, "runq"):
        raise validate.wrong("isa", isa, 'null or "runq"')
    parameters = value.get("parameters")
    if not isinstance(parameters, Mapping):
        raise validate.wrong("parameters", parameters, "a JSON object", TypeError)
    unknown = [str(name) for name in parameters if name not in DEFAULTS]
    if unknown:
        raise ValueError(f"parameters has {', '.join(sorted(unknown))}, which generate lacks")
    parameters = dict(parameters)
    if "logit_bias" in parameters:
        parameters["logit_bias"] = token_keys(parameters["logit_bias"])
    return Receipt(
        identity=Identity(**identity, isa=isa),
        prompt_tokens=validate.token_ids("prompt_tokens", value.get("prompt_tokens"), vocab_size),
        parameters=parameters,
        seed=uint64("seed", value.get("seed")),
        tokens=validate.token_ids("tokens", value.get("tokens"), vocab_size),
        text=_text(value, "text"),
        finish_reason=_text(value, "finish_reason"),
        rng_state=uint64("rng_state", value.get("rng_state")),
    )


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str):
        raise validate.wrong(name, found, "text", TypeError)
    return found


def other_identity(receipt: Receipt, ours: Identity) -> list[str]:
    """What differs before anything is computed. The name is not the model, nor is the version the
    engine: another version has to give the same story."""
    theirs, own = asdict(receipt.identity), asdict(ours)
    names = [name for name in own if name not in ("model", "pyllama2c")]
    return [f"{n} is {theirs[n]} there and {own[n]} here" for n in names if theirs[n] != own[n]]


def first_difference(receipt: Receipt, told: Mapping[str, Any]) -> list[str]:
    """Where a story told again parts from the receipt; `told` is a receipt's own fields."""
    for i, (theirs, ours) in enumerate(zip(receipt.tokens, told["tokens"], strict=False)):
        if theirs != ours:
            return [f"token {i} is {theirs} there and {ours} here"]
    n, m = len(receipt.tokens), len(told["tokens"])
    if n != m:
        return [f"the first {min(n, m)} tokens are the same; there are {n} there and {m} here"]
    names = ("text", "finish_reason", "rng_state")
    return [
        f"{name} is {getattr(receipt, name)!r} there and {told[name]!r} here"
        for name in names
        if getattr(receipt, name) != told[name]
    ]


def verdict(differences: list[str]) -> dict[str, Any]:
    """What /api/verify answers."""
    return {"identical": not differences, "differences": differences}


def verify(llama: Llama, value: Any) -> dict[str, Any]:
    """Tells a receipt's story again and compares."""
    receipt = read_receipt(value, llama.tokenizer.vocab_size)
    differences = other_identity(receipt, identify(llama, ""))
    if differences:
        return verdict(differences)
    story = llama.generate(receipt.prompt_tokens, seed=receipt.seed, **receipt.parameters)
    text = story.read()
    told = {"tokens": story.tokens, "text": text, "finish_reason": story.finish_reason}
    return verdict(first_difference(receipt, told | {"rng_state": story.rng_state}))


def load_receipt(path: str) -> Any:
    """ValueError for a file that is not JSON."""
    with open(path, "rb") as file:
        data = file.read(1 << 26)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
