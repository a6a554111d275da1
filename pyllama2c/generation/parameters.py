"""The keyword arguments of `Llama.generate` as types, for those that hand them on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypedDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class LogitsProcessor(Protocol):
    """A function of the token ids so far, the prompt's included, and the logits of what may follow:
    float32 (vocab_size), to change in place or to replace by the array that it returns."""

    def __call__(
        self, tokens: list[int], logits: NDArray[np.float32], /
    ) -> NDArray[np.float32] | None: ...


class Parameters(TypedDict, total=False):
    """Keyword arguments of `Llama.generate`, which says what they mean and has their defaults.

    For functions that pass them on: `def tell(**parameters: Unpack[Parameters])`.
    """

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Iterable[str] | None
    stop_tokens: Iterable[int] | None
    logits_processor: LogitsProcessor | None
    logprobs: int | None


class BatchParameters(TypedDict, total=False):
    """Those of `Llama.generate_batch`: one value for all prompts, or a sequence with one a prompt
    (for stop and stop_tokens a list of lists)."""

    max_tokens: int | Sequence[int | None] | None
    temperature: float | Sequence[float]
    top_p: float | Sequence[float]
    top_k: int | Sequence[int]
    min_p: float | Sequence[float]
    repetition_penalty: float | Sequence[float]
    presence_penalty: float | Sequence[float]
    frequency_penalty: float | Sequence[float]
    logit_bias: Mapping[int, float] | Sequence[Mapping[int, float] | None] | None
    seed: int | Sequence[int | None] | None
    stop: str | Iterable[str] | Sequence[Iterable[str] | None] | None
    stop_tokens: Iterable[int] | Sequence[Iterable[int] | None] | None
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor | None] | None
    logprobs: int | Sequence[int | None] | None
