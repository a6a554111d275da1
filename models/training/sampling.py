"""Stories from a Llama in PyTorch, thousands at once: what a GPU is for.

On a processor the engine's `generate_batch` is the faster way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lessons import BOS, K
from llama import Llama, Past
from torch import Tensor

CHOICES = 128  # the likeliest next tokens: nearly always more than top-p leaves
STRETCH = 64  # tokens between two looks at which stories have ended


@dataclass
class Told:
    tokens: Tensor
    """int64 (stories, max_tokens): from BOS on; what follows the BOS at the end means nothing"""
    lengths: Tensor
    """int64 (stories,): with the BOS at the end"""
    ended: Tensor
    """bool (stories,): whether there is one"""
    ids: Tensor
    """int16 (stories, max_tokens, K): the likeliest tokens after each one that was told on from"""
    probabilities: Tensor
    """float16 (stories, max_tokens, K): at temperature 1"""


def in_bfloat16(model: Llama) -> Llama:
    """A copy to tell with; the angles of its rotations stay float32."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


def shares(some: Tensor, logits: Tensor) -> Tensor:
    """The probabilities, as float16, of those of `logits` (..., vocab_size) that are in `some`."""
    return (some - logits.logsumexp(-1, keepdim=True)).exp().half()


def choose(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """logits (stories, choices), the likeliest first -> (stories, 1): which of them comes next."""
    p = torch.softmax(logits / temperature, -1)
    inside = p.cumsum(-1) - p < (top_p or 1)  # 0 and 1 leave all in, as in the engine
    # Of exponential waiting times with these rates, each is the shortest as often as it is likely.
    return (p * inside / torch.empty_like(p).exponential_()).argmax(-1, keepdim=True)


def replayed(step: Callable[[], None], device: torch.device) -> Callable[[], object]:
    """`step` without the time that its hundreds of small launches take on a GPU."""
    if device.type != "cuda":
        return step
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.no_grad()
def tell(
    model: Llama, begun: Tensor, max_tokens: int, temperature: float, top_p: float, seed: int
) -> Told:
    """Goes on from begun (stories, tokens), from BOS on, until the next BOS or max_tokens."""
    torch.manual_seed(seed)
    (count, read), device, config = begun.shape, begun.device, model.config
    tokens = begun.new_full((count, max_tokens), BOS)
    tokens[:, :read] = begun
    shape = (count, max_tokens, K)
    ids = torch.zeros(shape, dtype=torch.int16, device=device)
    probabilities = torch.zeros(shape, dtype=torch.float16, device=device)
    rows = torch.arange(count, device=device)  # in `tokens`, of those still told
    going = torch.ones_like(rows, dtype=torch.bool)
    empty = (2, count, config.n_kv_heads, 0, config.dim // config.n_heads)
    held = [model.table.new_zeros(empty, dtype=model.norm.weight.dtype) for _ in model.layers]

    def tell_on(reading: Tensor, past: Past) -> Tensor:
        """The next token (stories, 1) of each."""
        logits = model(reading, past)[:, -1].float()
        best, candidates = logits.topk(min(CHOICES, logits.shape[1]))
        chosen = candidates.gather(1, choose(best, temperature, top_p))
        last = past.at[-1:]  # of no dimension it would be read as a number, which waits for the GPU
        tokens[rows, last + 1] = chosen[:, 0]
        ids[rows, last] = candidates[:, :K].short()
        probabilities[rows, last] = shares(best[:, :K], logits)
        going.logical_and_(chosen[:, 0] != BOS)
        return chosen

    reading, at, kept = begun, torch.arange(read, device=device), rows
    for begin in range(read, max_tokens, STRETCH):
        room = min(begin + STRETCH, max_tokens)
        for i in range(len(held)):  # one at a time: on a GPU they fill the memory
            held[i] = F.pad(held[i][:, kept], (0, 0, 0, room - held[i].shape[3]))
        reading = tell_on(reading, Past(at, held))  # the first time, all of the opening
        at = at[-1:] + 1

        def step(reading: Tensor = reading, past: Past = Past(at, held)) -> None:  # noqa: B008
            reading.copy_(tell_on(reading, past))
            past.at.add_(1)

        replay = replayed(step, device)
        for _ in range(begin + 1, room):
            replay()
        del replay
        kept = going.nonzero()[:, 0]
        if len(kept) == 0:
            break
        rows, going, reading = rows[kept], going[kept], reading[kept]
    ends = tokens == BOS
    ends[:, :read] = False
    ended = ends.any(1)
    lengths = torch.where(ended, ends.int().argmax(1) + 1, max_tokens)
    return Told(tokens, lengths, ended, ids, probabilities)
