"""Writes seeds for the fuzzers into FOLDER/checkpoint and FOLDER/tokenizer, always the same."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

TEXTS = [" ", "a", "b", "e", "h", "t", "aa", "th", " th", "the", " the", "aaaa", "é", "<s>"]


def floats(rng: random.Random, count: int, center: float = 0.0) -> bytes:
    return struct.pack(f"<{count}f", *(center + rng.uniform(-0.5, 0.5) for _ in range(count)))


def checkpoint(
    version: int, dim: int, hidden: int, layers: int, heads: int, kv_heads: int, vocab: int,
    seq_len: int, tied: bool = True, group: int = 0,
) -> bytes:  # fmt: skip
    rng = random.Random(version)
    kv_dim = dim // heads * kv_heads

    def matrix(rows: int, cols: int) -> bytes:
        if version < 2:
            return floats(rng, rows * cols)
        return rng.randbytes(rows * cols) + floats(rng, rows * cols // group, 1.0)

    def per_layer(rows: int, cols: int) -> bytes:
        return b"".join(matrix(rows, cols) for _ in range(layers))

    norms = floats(rng, layers * dim, 1.0)
    signed_vocab = -vocab if version == 0 and not tied else vocab
    fields = struct.pack("<7i", dim, hidden, layers, heads, kv_heads, signed_vocab, seq_len)
    attention = per_layer(dim, dim) + 2 * per_layer(kv_dim, dim) + per_layer(dim, dim)
    network = per_layer(hidden, dim) + per_layer(dim, hidden) + per_layer(hidden, dim)
    final_norm = floats(rng, dim, 1.0)
    classifier = b"" if tied else matrix(vocab, dim)
    if version == 0:
        angles = floats(rng, seq_len * (dim // heads))
        body = matrix(vocab, dim) + norms + attention + norms + network
        return fields + body + final_norm + angles + classifier
    header = struct.pack("<2i", 0x616B3432, version) + fields + bytes([tied])
    header += struct.pack("<i", group) if version == 2 else b""
    body = 2 * norms + final_norm + matrix(vocab, dim) + attention + network
    return header.ljust(256, b"\0") + body + classifier


def tokenizer(text: bytes) -> bytes:
    """As fuzz_tokenizer.c takes it: length of the text, tokenizer.bin, text."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    pieces += [piece.encode() for piece in TEXTS]
    image = struct.pack("<i", 16)
    for i, piece in enumerate(pieces):
        image += struct.pack("<fi", -max(0.0, i - 259), len(piece)) + piece
    return struct.pack("<H", len(text)) + image + text


def main() -> None:
    folder = Path(sys.argv[1])
    seeds = {
        "checkpoint/v0-tied": checkpoint(0, 4, 6, 1, 2, 1, 7, 4),
        "checkpoint/v0-untied": checkpoint(0, 12, 5, 2, 2, 1, 5, 3, tied=False),
        "checkpoint/v1": checkpoint(1, 12, 20, 1, 6, 3, 19, 9),
        "checkpoint/v1-untied": checkpoint(1, 6, 3, 1, 1, 1, 3, 2, tied=False),
        "checkpoint/v2": checkpoint(2, 8, 16, 2, 2, 1, 9, 6, group=4),
        "checkpoint/v2-uneven": checkpoint(2, 6, 7, 1, 1, 1, 5, 4, tied=False, group=3),
        "tokenizer/words": tokenizer(b"the heat at the teeth"),
        "tokenizer/run": tokenizer(b"a" * 61),
        "tokenizer/utf8": tokenizer("é\u2581<s> \U0001f642".encode() + b"\xff\xe2\x96\0"),
        "tokenizer/empty": tokenizer(b""),
    }
    for name, data in seeds.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
