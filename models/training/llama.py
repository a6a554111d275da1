"""The Llama architecture in PyTorch, as small as it can be said.

Dimensions carry llama2.c's names; `csrc/forward.c` computes the same function in C.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class LlamaConfig:
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    tied: bool = True
    dropout: float = 0.0
    rope_theta: float = 10000.0


def rotary_table(config: LlamaConfig) -> Tensor:
    """(2, seq_len, head_size / 2): cosine and sine of position * theta^(-2j / head_size)."""
    head_size = config.dim // config.n_heads
    halves = torch.arange(0, head_size, 2, dtype=torch.float64)
    frequency = config.rope_theta ** (-halves / head_size)
    angle = torch.outer(torch.arange(config.seq_len, dtype=torch.float64), frequency)
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotates neighbouring pairs of x (batch, heads, time, head_size) by their position.

    table (2, time, head_size / 2): of rotary_table, the rows of these positions.
    """
    cosine, sine = table
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1)
    return turned.flatten(-2).type_as(x)


class Past(NamedTuple):
    """What a batch has read so far, in tensors that stay, so that a GPU can replay a step."""

    at: Tensor
    """int64 (time,): the positions of the tokens that are read next"""
    held: list[Tensor]
    """of each layer, keys and values (2, batch, n_kv_heads, room, head_size)"""


def attend(q: Tensor, k: Tensor, v: Tensor, at: Tensor | None = None) -> Tensor:
    """Causal attention of q (batch, n_heads, time, head_size) on k and v with n_kv_heads heads.

    `at`: the rows of k and v that are q's own, where there are others. No dropout on the attention
    weights: it rules out PyTorch's fused kernels on a GPU.
    """
    batch, n_heads, time, head_size = q.shape
    n_kv_heads, room = k.shape[1:3]
    if at is None and q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    # Written out, for PyTorch's own kernel for CPUs takes twice as long in windows so short.
    sharing = (batch, n_kv_heads, n_heads // n_kv_heads * time)
    scores = (q.reshape(*sharing, head_size) @ k.transpose(2, 3)).view(batch, n_heads, time, room)
    rows = torch.arange(room, device=q.device)
    future = torch.where(rows > (rows if at is None else at)[:, None], float("-inf"), 0.0)
    scores = scores.float() * head_size**-0.5 + future
    weights = scores.softmax(-1).type_as(v).view(*sharing, room)
    return (weights @ v).view(batch, n_heads, time, head_size)


class Attention(nn.Module):
    def __init__(self, c: LlamaConfig):
        super().__init__()
        head_size = c.dim // c.n_heads
        self.n_heads, self.n_kv_heads, self.head_size = c.n_heads, c.n_kv_heads, head_size
        self.wq = nn.Linear(c.dim, c.n_heads * head_size, bias=False)
        self.wk = nn.Linear(c.dim, c.n_kv_heads * head_size, bias=False)
        self.wv = nn.Linear(c.dim, c.n_kv_heads * head_size, bias=False)
        self.wo = nn.Linear(c.n_heads * head_size, c.dim, bias=False)

    def forward(self, x: Tensor, table: Tensor, at: Tensor | None, held: Tensor | None) -> Tensor:
        b, t, _ = x.shape
        q = self.wq(x).view(b, t, self.n_heads, self.head_size).transpose(1, 2)
        k = self.wk(x).view(b, t, self.n_kv_heads, self.head_size).transpose(1, 2)
        v = self.wv(x).view(b, t, self.n_kv_heads, self.head_size).transpose(1, 2)
        q, k = rotate(q, table), rotate(k, table)
        if at is not None and held is not None:
            k, v = held.index_copy_(3, at, torch.stack([k, v]))
        y = attend(q, k, v, at)
        return self.wo(y.transpose(1, 2).reshape(b, t, -1))


class Block(nn.Module):
    def __init__(self, c: LlamaConfig):
        super().__init__()
        self.attention_norm = nn.RMSNorm(c.dim, eps=1e-5)
        self.attention = Attention(c)
        self.ffn_norm = nn.RMSNorm(c.dim, eps=1e-5)
        self.w1 = nn.Linear(c.dim, c.hidden_dim, bias=False)
        self.w2 = nn.Linear(c.hidden_dim, c.dim, bias=False)
        self.w3 = nn.Linear(c.dim, c.hidden_dim, bias=False)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self, x: Tensor, table: Tensor, at: Tensor | None = None, held: Tensor | None = None
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), table, at, held))
        h = self.ffn_norm(x)
        return x + self.dropout(self.w2(F.silu(self.w1(h)) * self.w3(h)))


class Llama(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tied:
            self.output.weight = self.tok_embeddings.weight
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("table", rotary_table(config), persistent=False)
        # GPT-2's rule: what is added to the residual stream starts smaller, by depth.
        residual_std = 0.02 * (2 * config.n_layers) ** -0.5
        for name, p in self.named_parameters():
            if p.dim() == 2:
                small = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(p, std=residual_std if small else 0.02)

    def forward(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        """tokens (batch, time) int64 -> logits (batch, time, vocab_size).

        With a past, the tokens stand at its positions, and it holds their keys and values after.
        """
        x = self.dropout(self.tok_embeddings(tokens))
        if past is None:
            table = self.table[:, : tokens.shape[1]]
            for layer in self.layers:
                x = layer(x, table)
        else:
            table = self.table[:, past.at]
            for layer, held in zip(self.layers, past.held, strict=True):
                x = layer(x, table, past.at, held)
        return self.output(self.norm(x))


def averaged_weights(out: Path) -> dict[str, Tensor]:
    """The running average of the weights in a run's folder, which is what is exported."""
    state = torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True)
    averaged = {k.removeprefix("module."): v for k, v in state["average"].items()}
    del averaged["n_averaged"]
    return averaged


def weight_name(meta: str) -> str:
    """Of a weight in this module, from Meta's name for it."""
    return meta.replace("feed_forward.", "") + ".weight"
