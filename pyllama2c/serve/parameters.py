"""From a request's fields to stories: prompts as token ids, and generate's parameters."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pyllama2c.errors import Llama2cError
from pyllama2c.generation.request import make_request
from pyllama2c.generation.sampling import fresh_seed
from pyllama2c.serve.decoding import unsupported, wrong
from pyllama2c.serve.errors import ApiError, too_long
from pyllama2c.serve.job import Story
from pyllama2c.serve.own_thread import in_own_thread
from pyllama2c.serve.schema import ChatRequest, Common, CompletionRequest
from pyllama2c.validate import shown, token_ids

if TYPE_CHECKING:
    from pyllama2c.generation.request import Request as GenerationRequest
    from pyllama2c.serve.service import Limits, Service

_SLOW = 1 << 14
"""characters of text that take so long to become tokens that the event loop should not wait"""

DEFAULTS: dict[str, Any] = {
    name: value
    for name, value in (make_request.__kwdefaults__ or {}).items()
    if name not in ("seed", "logits_processor")
} | {"top_p": 1.0}
"""generate's parameters, and what they are where a request names none: OpenAI's top_p"""

_CONSTRAINTS = ("json_schema", "regex", "grammar")
_MAX_SEED = 2**64 - 1


def seed_of(seed: int | str | None) -> int:
    """A request's seed, which may be decimal text; a fresh one for None and -1."""
    if isinstance(seed, str):
        text = seed.removeprefix("-")
        if not (text.isascii() and text.isdecimal()):
            raise wrong("seed", f"seed is {shown(seed)}; as text it must be a decimal number")
        seed = int(seed) if len(seed) <= 20 else _MAX_SEED + 1
    if seed is None or seed == -1:
        return fresh_seed()
    if not 0 <= seed <= _MAX_SEED:
        raise wrong("seed", f"seed is {seed}; it must be 0 to 2**64 - 1, or -1 for a fresh one")
    return seed


def check_stop(stop: str | list[str] | None, limits: Limits) -> list[str]:
    strings = [stop] if isinstance(stop, str) else stop or []
    if len(strings) > limits.stop_strings:
        most = limits.stop_strings
        raise wrong("stop", f"stop has {len(strings)} strings; the limit is {most}")
    for string in strings:
        if not 1 <= len(string) <= limits.stop_characters:
            most = limits.stop_characters
            raise wrong("stop", f"a stop string has {len(string)} characters; 1 to {most} may be")
    return strings


def biases(given: dict[str, float] | None, ignore_eos: bool, service: Service) -> Any:
    """`logit_bias`; `ignore_eos` forbids what would end the story, as llama.cpp does."""
    out = _bias_of(given or {}, service.limits, service.tokenizer.vocab_size)
    if ignore_eos:
        out |= dict.fromkeys(sorted(service.tokenizer.ends), -math.inf)
    return out or None


def _bias_of(bias: dict[str, float], limits: Limits, vocab_size: int) -> dict[int, float]:
    if len(bias) > limits.logit_bias:
        most = limits.logit_bias
        raise wrong("logit_bias", f"logit_bias has {len(bias)} entries; the limit is {most}")
    for key in bias:
        if not (key.isascii() and key.isdecimal() and len(key) < 11 and int(key) < vocab_size):
            needed = f"keys must be token ids below {vocab_size}"
            raise wrong("logit_bias", f"logit_bias has the key {shown(key)}; {needed}")
    return {int(key): value for key, value in bias.items()}


def _more_ends(ids: list[int] | None, service: Service) -> list[int]:
    try:
        return token_ids("stop_token_ids", ids or [], service.tokenizer.vocab_size)
    except ValueError as error:
        raise wrong("stop_token_ids", f"stop_token_ids: {error}") from None


def nucleus(top_p: float, top_k: int) -> dict[str, Any]:
    """OpenAI's top_p of 0 keeps the likeliest token; generate's 0 is off."""
    return {"top_p": 1.0, "top_k": 1} if top_p == 0 else {"top_p": top_p, "top_k": max(0, top_k)}


def generation(request: Common, service: Service) -> dict[str, Any]:
    """generate's parameters that a completion and a chat have in common."""
    given: dict[str, Any] = {
        "temperature": request.temperature,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "logit_bias": biases(request.logit_bias, request.ignore_eos, service),
        "regex": request.regex,
        "grammar": request.grammar,
        "json_schema": request.json_schema,
    }
    top_p = 1.0 if request.top_p is None else request.top_p
    return {
        **{name: value for name, value in given.items() if value is not None},
        **nucleus(top_p, request.top_k or 0),
        "more_ends": _more_ends(request.stop_token_ids, service),
        "stop": check_stop(request.stop, service.limits),
    }


def for_completion(request: CompletionRequest, service: Service) -> dict[str, Any]:
    out = generation(request, service)
    out["max_tokens"] = request.max_tokens
    return out if request.logprobs is None else out | {"logprobs": request.logprobs}


def for_chat(request: ChatRequest, service: Service) -> dict[str, Any]:
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        why = "max_tokens is the old name of max_completion_tokens; give one of them"
        raise wrong("max_tokens", why)
    if request.top_logprobs is not None and not request.logprobs:
        raise wrong("top_logprobs", "top_logprobs needs logprobs: true")
    out = generation(request, service)
    most = request.max_completion_tokens
    out["max_tokens"] = request.max_tokens if most is None else most
    if request.logprobs:
        out["logprobs"] = request.top_logprobs or 0
    form = request.response_format
    if form is not None and form.type != "text":
        if any(name in out for name in _CONSTRAINTS):
            why = "response_format is one constraint more: give one of them"
            raise wrong("response_format", why)
        if form.json_schema is not None:
            out["json_schema"] = form.json_schema.schema
        elif form.type == "json_schema" and form.schema is None:
            raise wrong("response_format.json_schema", "response_format.json_schema is required")
        else:
            out["json_schema"] = {"type": "object"} if form.schema is None else form.schema
    return out


async def tokenized(
    service: Service, prompt: str | list[Any], special: bool = False
) -> list[list[int]]:
    """A request's prompts: a text, a list of texts, ids, or a list of ids. `special`: control
    tokens that texts spell are read as such."""
    if isinstance(prompt, str):
        prompts: list[Any] = [prompt]
    elif prompt and all(type(item) is int for item in prompt):
        prompts = [prompt]
    else:
        prompts = prompt
    if not prompts or any(type(item) is int for item in prompts):
        needed = "a text, a list of texts, a list of token ids, or a list of such lists"
        raise wrong("prompt", f"prompt is {shown(prompt)}; it must be {needed}")
    if len(prompts) > service.limits.prompts:
        most = service.limits.prompts
        raise wrong("prompt", f"prompt has {len(prompts)} prompts; the limit is {most}")
    return [await _ids(service, each, special) for each in prompts]


async def _ids(service: Service, prompt: str | list[int], special: bool) -> list[int]:
    tokenizer = service.tokenizer
    encode: Callable[[str], list[int]] = tokenizer.encode_prompt
    if special:
        encode = partial(service.names.encode, bos=tokenizer.add_bos)
    try:
        if not isinstance(prompt, str):
            ids = token_ids("prompt", prompt, tokenizer.vocab_size)
        elif len(prompt) < _SLOW:
            ids = encode(prompt)
        else:
            ids = await asyncio.to_thread(encode, prompt)
    except ValueError as error:
        raise wrong("prompt", f"prompt: {error}") from None
    if not ids:
        raise wrong("prompt", "prompt has no tokens; begin with BOS")
    return ids


async def make_stories(
    service: Service,
    prompts: Sequence[list[int]],
    parameters: dict[str, Any],
    *,
    seed: int | str | None,
    n: int,
    param: str = "prompt",
) -> list[Story]:
    """`n` choices of each prompt; ApiError (400) names what is wrong."""
    if n > service.limits.n:
        raise wrong("n", f"n is {n}; the limit is {service.limits.n}")
    context = service.llama.config.seq_len
    for tokens in prompts:
        if len(tokens) > context:
            raise too_long(len(tokens), context, param)
    parameters, first = _complete(parameters, service), seed_of(seed)

    def stories() -> list[Story]:
        made = []
        for i, tokens in enumerate(prompts):
            for j in range(n):
                seed_of_story = (first + i * n + j) & _MAX_SEED
                request = _make(service, tokens, seed_of_story, parameters)
                named = parameters | {"max_tokens": request.max_tokens}
                made.append(Story(request, named, prompt=i, choice=j, index=i * n + j))
        return made

    if all(parameters.get(name) is None for name in _CONSTRAINTS):
        return stories()
    try:  # compiling a constraint, or waiting while one of somebody else's is compiled
        return await asyncio.wait_for(in_own_thread(stories), service.limits.wait)
    except asyncio.TimeoutError:
        why = f"the constraint was not compiled within {service.limits.wait:g} seconds"
        headers = {"x-should-retry": "false"}
        raise ApiError(503, why, code="request_timeout", headers=headers) from None


def _complete(parameters: dict[str, Any], service: Service) -> dict[str, Any]:
    """All of generate's parameters, so that a receipt depends on no default. `more_ends` are ids
    that end a story besides the model's own."""
    more = parameters.pop("more_ends", ())
    ids = sorted({*service.tokenizer.ends, *more})
    out = {**DEFAULTS, "stop_tokens": ids, **parameters}
    for name in out.keys() - DEFAULTS.keys():
        raise unsupported(name, out[name])
    return out


def _make(
    service: Service, tokens: list[int], seed: int, parameters: dict[str, Any]
) -> GenerationRequest:
    llama = service.llama
    shape = llama.config.seq_len, llama.config.vocab_size, llama._grammars
    try:
        return make_request(tokens, *shape, seed=seed, **parameters)
    except (Llama2cError, TypeError, ValueError) as error:
        name = next((w for w in re.findall(r"\w+", str(error)) if w in parameters), None)
        raise ApiError(400, str(error), param=name, code="invalid_value") from None
