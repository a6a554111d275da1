"""Meta's tokenizer.model of Llama 3: byte-level BPE in tiktoken's format."""

from __future__ import annotations

import base64
from itertools import pairwise
from pathlib import Path

from pyllama2c.convert.vocabulary import CONTROL, NORMAL, Vocabulary
from pyllama2c.errors import TokenizerError, UnsupportedError
from pyllama2c.tokenizers.byte_level import CHARACTERS

LLAMA3 = "llama-bpe"
_N_SPECIAL = 256
_SPECIAL = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}


def as_text(piece: bytes) -> str:
    """The bytes of a piece as a byte-level vocabulary writes them."""
    return "".join(CHARACTERS[byte] for byte in piece)


def _halves(piece: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two pieces that merge into `piece`: what BPE makes of it without that merge."""
    rank, parts = ranks[piece], [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 2:
        merged = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
        best = min(merged)
        if best >= rank:
            return None
        i = merged.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None


def _special_names() -> list[str]:
    """Llama 3's special tokens in order; reserved ones are numbered without gaps."""
    names, reserved = [], 0
    for i in range(_N_SPECIAL):
        names.append(_SPECIAL.get(i, f"<|reserved_special_token_{reserved}|>"))
        reserved += i not in _SPECIAL
    return names


def read_tiktoken(path: Path, vocab_size: int) -> Vocabulary:
    """Meta's Llama 3 tokenizer.model: each line has a piece in base64 and its rank, its id.

    The file lists neither merges, which follow from the ranks, nor Llama 3's special tokens.
    """
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().splitlines():
            encoded, number = line.split()
            ranks[base64.b64decode(encoded, validate=True)] = int(number)
    except ValueError as error:
        raise TokenizerError(f"{path} is not a tiktoken file, or is damaged: {error}") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError(f"{path}: its ranks are not 0 to {len(ranks) - 1}, each once")
    if len(ranks) + _N_SPECIAL != vocab_size:
        raise UnsupportedError(
            f"{path} has {len(ranks)} pieces; with Llama 3's {_N_SPECIAL} special tokens they are "
            f"not the model's {vocab_size}"
        )
    v = Vocabulary(path, "gpt2", vocab_size, pre=LLAMA3)
    for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
        v.put(rank, as_text(piece), NORMAL)
        halves = _halves(piece, ranks)
        if halves is not None:
            v.merges.append(f"{as_text(halves[0])} {as_text(halves[1])}")
    for i, name in enumerate(_special_names()):
        v.put(len(ranks) + i, name, CONTROL)
    v.bos, v.eos = v.find("<|begin_of_text|>"), v.find("<|end_of_text|>")
    v.eot = v.find("<|eot_id|>")
    return v
