"""A story's prompt and parameters, checked before anything runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllama2c import dialects, validate
from pyllama2c.dialects import in_our_words
from pyllama2c.errors import ContextLengthError
from pyllama2c.generation.logprobs import MAX_TOP
from pyllama2c.generation.sampling import fresh_seed, new_sampler, seed_or_none

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllama2c.generation.constraint import Grammar, Grammars
    from pyllama2c.generation.parameters import BatchParameters, LogitsProcessor
    from pyllama2c.tokenizers.base import BaseTokenizer


class Request(NamedTuple):
    prompt_tokens: list[int]
    max_tokens: int
    """new tokens at most; no more than the context has room for"""
    sampler: Any
    """l2c_sampler *, of this story alone"""
    seed: int
    stop: list[str]
    stop_tokens: frozenset[int] | None
    logits_processor: LogitsProcessor | None
    logprobs: int | None
    """how many of the likeliest tokens are reported for each; None: no log-probabilities"""
    grammar: Grammar | None = None
    """what the story must match"""

    @property
    def context(self) -> int:
        """positions that the whole story needs; its last token is not fed"""
        return max(1, len(self.prompt_tokens) + self.max_tokens - 1)

    def ends(self, tokenizer: BaseTokenizer) -> frozenset[int]:
        """Tokens that end the story."""
        if self.stop_tokens is None:
            return tokenizer.ends
        # A grammar that is matched ends with the tokenizer's ends.
        return self.stop_tokens if self.grammar is None else self.stop_tokens | tokenizer.ends


def make_request(
    prompt_tokens: list[int],
    context: int,
    vocab_size: int = 2**31,
    grammars: Grammars | None = None,
    *,
    max_tokens: int | None = None,
    temperature: float = 1.0,
    top_p: float = 0.9,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    seed: int | None = None,
    stop: str | Iterable[str] | None = (),
    stop_tokens: Iterable[int] | None = None,
    logits_processor: LogitsProcessor | None = None,
    logprobs: int | None = None,
    json_schema: Any = None,
    regex: str | None = None,
    grammar: str | None = None,
) -> Request:
    """Checks the parameters of Llama.generate; TypeError, ValueError or ContextLengthError.
    `grammars` compiles what `json_schema`, `regex` and `grammar` say; nothing else needs it."""
    if not prompt_tokens:
        raise ValueError("the prompt has no tokens; begin with BOS")
    room = context - len(prompt_tokens) + 1  # the last token is sampled, but not fed
    if room < 1:
        raise ContextLengthError(
            f"the prompt has {len(prompt_tokens)} tokens; the model's context is {context}"
        )
    if max_tokens is not None:
        max_tokens = validate.integer("max_tokens", max_tokens, 0, sys.maxsize, "0 or more")
    if logits_processor is not None and not callable(logits_processor):
        raise validate.wrong("logits_processor", logits_processor, "a function", TypeError)
    if logprobs is not None:
        logprobs = validate.integer("logprobs", logprobs, 0, MAX_TOP)
    drawn = seed_or_none("seed", seed)
    seed = fresh_seed() if drawn is None else drawn
    sampler = new_sampler(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=logit_bias,
        n_prompt=len(prompt_tokens),
        vocab_size=vocab_size,
        seed=seed,
    )
    return Request(
        prompt_tokens=prompt_tokens,
        max_tokens=room if max_tokens is None else min(max_tokens, room),
        sampler=sampler,
        seed=seed,
        stop=_stop_strings(stop),
        stop_tokens=None if stop_tokens is None else _stop_tokens(stop_tokens),
        logits_processor=logits_processor,
        logprobs=logprobs,
        grammar=None
        if grammars is None
        else grammars.compile(prompt_tokens, json_schema=json_schema, regex=regex, grammar=grammar),
    )


def _stop_strings(stop: str | Iterable[str] | None) -> list[str]:
    if stop is None:
        return []
    needed = "a string, or a list of strings"
    strings = [stop] if isinstance(stop, str) else list(validate.values("stop", stop, needed))
    for string in strings:
        if not isinstance(string, str):
            raise validate.wrong("stop", stop, needed, TypeError)
        if not string:
            raise ValueError("a stop string is empty")
    return strings


def _stop_tokens(tokens: Iterable[int]) -> frozenset[int]:
    listed = validate.values("stop_tokens", tokens, "a list of integers: token ids")
    return frozenset(
        validate.integer("stop_tokens", token, 0, 2**31 - 1, "token ids, 0 or more")
        for token in listed
    )


def process_logits(
    processor: LogitsProcessor, tokens: list[int], logits: NDArray[np.float32]
) -> None:
    """Lets a logits processor change `logits` (vocab_size) or replace them."""
    import numpy as np

    try:
        changed = processor(tokens, logits)
    except (StopIteration, StopAsyncIteration) as error:  # which would be the end of the story
        raise RuntimeError(f"logits_processor raised {type(error).__name__}") from error
    if changed is None or changed is logits:
        return
    changed = np.asarray(changed)
    if changed.dtype.kind not in "fiu":
        raise TypeError(
            f"logits_processor returned {changed.dtype} values; it must return None or numbers"
        )
    if changed.shape != logits.shape:
        raise ValueError(
            f"logits_processor returned an array of shape {changed.shape}; it must return None or "
            f"{logits.shape}"
        )
    with np.errstate(over="ignore"):  # beyond float32: infinite, as in the engine
        logits[:] = changed


def batch_requests(
    prompts: Iterable[Any],
    n: int,
    given: BatchParameters,
    tokenize: Callable[[Any], list[int]],
    context: int,
    vocab_size: int = 2**31,
    grammars: Grammars | None = None,
) -> Iterator[tuple[int, int, Request | Exception]]:
    """(index of the prompt, of the choice, request or what is wrong with it) of every story of a
    batch. Prompts are taken one by one, as their requests are; what is wrong with all of them
    raises at once."""
    validate.texts("prompts", prompts, "a list of prompts: texts, or lists of token ids")
    n = validate.integer("n", n, 1, sys.maxsize, "1 or more")
    parameters: dict[str, Any] = {**given}
    unknown = set(parameters) - set(make_request.__kwdefaults__ or {})
    if unknown:
        ours = in_our_words(min(unknown), dialects.STORY_ARGUMENTS)
        raise TypeError(f"generate_batch has no parameter {', '.join(sorted(unknown))}{ours}")
    for name in parameters.keys() & {"stop", "stop_tokens"}:
        parameters[name] = _kept(parameters[name])
    listed = {name for name, value in parameters.items() if _one_a_prompt(name, value)}
    for name in sorted(listed):
        if not isinstance(prompts, Sized):
            raise ValueError(f"{name} has a value for each prompt; prompts must be a list then")
        if len(parameters[name]) != len(prompts):
            count = len(parameters[name])
            raise ValueError(f"{name} has {count} values for {len(prompts)} prompts")
    _check_parameters(parameters, listed, vocab_size, grammars)
    make = partial(make_request, context=context, grammars=grammars)
    return _each_request(prompts, n, parameters, listed, tokenize, make)


def _each_request(
    prompts: Iterable[Any],
    n: int,
    parameters: dict[str, Any],
    listed: set[str],
    tokenize: Callable[[Any], list[int]],
    make: Callable[..., Request],
) -> Iterator[tuple[int, int, Request | Exception]]:
    for i, prompt in enumerate(prompts):
        own = {name: v[i] if name in listed else v for name, v in parameters.items()}
        seed = seed_or_none("seed", own.pop("seed", None))
        try:
            tokens: list[int] | Exception = tokenize(prompt)
        except Exception as error:
            tokens = error
        for j in range(n):
            if isinstance(tokens, Exception):
                yield i, j, tokens
                continue
            nth = j if "seed" in listed else i * n + j
            try:
                story_seed = None if seed is None else (seed + nth) % 2**64
                yield i, j, make(tokens, seed=story_seed, **own)
            except (ValueError, TypeError) as error:
                yield i, j, error


def _check_parameters(
    parameters: dict[str, Any], listed: set[str], vocab_size: int, grammars: Grammars | None
) -> None:
    """A wrong parameter, of all prompts or of one, raises before any story begins."""
    shared = {name: value for name, value in parameters.items() if name not in listed}
    make_request([0], 1, vocab_size, grammars, **shared)
    for name in listed:
        for i, value in enumerate(parameters[name]):
            try:
                make_request([0], 1, vocab_size, grammars, **{name: value})
            except (TypeError, ValueError) as error:
                raise type(error)(f"prompt {i}: {error}") from None


def _kept(value: Any) -> Any:
    """What can be iterated only once, or a list of such, as what many stories can use."""
    if isinstance(value, Iterator):
        return list(value)
    return [_kept(each) for each in value] if isinstance(value, list | tuple) else value


def _one_a_prompt(name: str, value: Any) -> bool:
    """Whether a parameter has a value for each prompt; a list of stop strings or tokens is one."""
    if name in ("stop", "stop_tokens"):
        lists = (list, tuple, set, frozenset)
        return isinstance(value, Sequence) and any(v is None or isinstance(v, lists) for v in value)
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
