"""What a story is asked to be: a prompt and parameters, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, NamedTuple

from pyllama2c.errors import ContextLengthError
from pyllama2c.sampling import fresh_seed, new_sampler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllama2c.tokenizer import BaseTokenizer

    LogitsProcessor = Callable[[list[int], NDArray[np.float32]], NDArray[np.float32] | None]


class Request(NamedTuple):
    prompt_tokens: list[int]
    max_tokens: int
    """new tokens at most, no more than the context has room for"""
    sampler: Any
    """l2c_sampler, of this story alone"""
    seed: int
    stop: list[str]
    stop_tokens: frozenset[int] | None
    logits_processor: LogitsProcessor | None

    @property
    def n_ctx(self) -> int:
        """positions of the context that the whole story needs; its last token is not fed"""
        return max(1, len(self.prompt_tokens) + self.max_tokens - 1)

    def ends(self, tokenizer: BaseTokenizer) -> frozenset[int]:
        """Tokens that end the story."""
        if self.stop_tokens is not None:
            return self.stop_tokens
        return tokenizer.ends


def make_request(
    prompt_tokens: list[int],
    seq_len: int,
    *,
    max_tokens: int | None = None,
    temperature: float = 1.0,
    top_p: float = 0.9,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: str | Iterable[str] = (),
    stop_tokens: Iterable[int] | None = None,
    logits_processor: LogitsProcessor | None = None,
) -> Request:
    """Checks the parameters of Llama.generate; ValueError or ContextLengthError."""
    if not prompt_tokens:
        raise ValueError("the prompt has no tokens; begin with BOS")
    room = seq_len - len(prompt_tokens) + 1  # the last token is sampled, but not fed
    if room < 1:
        raise ContextLengthError(
            f"the prompt has {len(prompt_tokens)} tokens; the model's context is {seq_len}"
        )
    if max_tokens is not None and max_tokens < 0:
        raise ValueError(f"max_tokens is {max_tokens}; it must be 0 or more")
    stops = [stop] if isinstance(stop, str) else list(stop)
    if not all(stops):
        raise ValueError("a stop string is empty")
    seed = fresh_seed() if seed is None else seed
    sampler = new_sampler(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    return Request(
        prompt_tokens=prompt_tokens,
        max_tokens=room if max_tokens is None else min(max_tokens, room),
        sampler=sampler,
        seed=seed,
        stop=stops,
        stop_tokens=None if stop_tokens is None else frozenset(stop_tokens),
        logits_processor=logits_processor,
    )


def batch_requests(
    prompts: Iterable[Any],
    n: int,
    parameters: dict[str, Any],
    tokenize: Callable[[Any], list[int]],
    seq_len: int,
) -> Iterator[tuple[int, Request | Exception]]:
    """The request of every story of a batch, by number, or what is wrong with it. Prompts are taken
    one by one, as their requests are; what is wrong with all of them raises at once."""
    if isinstance(prompts, (str, bytes)):
        raise ValueError("prompts is one text; give a list of prompts")
    if n < 1:
        raise ValueError(f"n is {n}; it must be 1 or more")
    unknown = set(parameters) - set(make_request.__kwdefaults__ or {})
    if unknown:
        raise TypeError(f"generate_batch has no parameter {', '.join(sorted(unknown))}")
    listed = {name for name, value in parameters.items() if _one_a_prompt(name, value)}
    for name in sorted(listed):
        if not isinstance(prompts, Sized):
            raise ValueError(f"{name} has a value for each prompt; prompts must be a list then")
        if len(parameters[name]) != len(prompts):
            count = len(parameters[name])
            raise ValueError(f"{name} has {count} values for {len(prompts)} prompts")
    return _each_request(prompts, n, parameters, listed, tokenize, seq_len)


def _each_request(
    prompts: Iterable[Any],
    n: int,
    parameters: dict[str, Any],
    listed: set[str],
    tokenize: Callable[[Any], list[int]],
    seq_len: int,
) -> Iterator[tuple[int, Request | Exception]]:
    for i, prompt in enumerate(prompts):
        own = {name: v[i] if name in listed else v for name, v in parameters.items()}
        seed = own.pop("seed", None)
        try:
            tokens: list[int] | Exception = tokenize(prompt)
        except Exception as error:
            tokens = error
        for j in range(n):
            number = i * n + j
            if isinstance(tokens, Exception):
                yield number, tokens
                continue
            nth = j if "seed" in listed else number
            try:
                story_seed = None if seed is None else (seed + nth) % 2**64
                yield number, make_request(tokens, seq_len, seed=story_seed, **own)
            except (ValueError, TypeError) as error:
                yield number, error


def _one_a_prompt(name: str, value: Any) -> bool:
    """Whether a parameter has a value for each prompt; a list of stop strings or tokens is one."""
    if name == "stop":
        return isinstance(value, list) and any(not isinstance(v, str) for v in value)
    if name == "stop_tokens":
        return isinstance(value, list) and any(not isinstance(v, int) for v in value)
    return isinstance(value, (list, tuple))
