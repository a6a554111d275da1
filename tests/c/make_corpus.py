"""Writes the fuzzers' seeds into FOLDER/checkpoint, gguf, tokenizer and encode, always the same."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

TEXTS = [" ", "a", "b", "e", "h", "t", "aa", "th", " th", "the", " the", "aaaa", "é", "<s>"]


LISTED = [(2, 0, "<unk>"), (3, 0, "<s>"), (4, 0, "~b~"), (1, -9, " "), (1, -9, "a"), (1, -9, "b")]
LISTED += [(1, -1, "ab"), (1, -2, " ab"), (5, -3, "abb"), (5, 9, "ba")]


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


# number: values in a block, bytes of a block
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
          12: (256, 144), 13: (256, 176), 14: (256, 210), 30: (1, 2)}  # fmt: skip
U32, F32, BOOL, STRING, U64, F64 = 4, 6, 7, 8, 10, 12


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def value(kind: int, x: object) -> bytes:
    if isinstance(x, str):
        return text(x)
    return struct.pack("<" + {U32: "I", F32: "f", BOOL: "B", U64: "Q", F64: "d"}[kind], x)


def gguf(
    keys: dict[str, tuple[int, object]], tensors: dict[str, tuple[int, tuple[int, ...]]]
) -> bytes:
    rng = random.Random(len(tensors))
    body, data = b"", b""
    for name, (kind, x) in keys.items():
        body += text(name)
        if isinstance(x, list):
            body += struct.pack("<IIQ", 9, kind, len(x)) + b"".join(value(kind, e) for e in x)
        else:
            body += struct.pack("<I", kind) + value(kind, x)
    for name, (kind, dims) in tensors.items():
        data = data.ljust(-(-len(data) // 32) * 32, b"\0")
        body += text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        body += struct.pack("<IQ", kind, len(data))
        values, size = BLOCKS[kind]
        count = 1
        for n in dims:
            count *= n
        for _ in range(count // values):
            if kind == 0:
                data += floats(rng, 1, 1.0 if len(dims) == 1 else 0.0)
            elif kind in (1, 30):
                data += struct.pack("<H", rng.choice([0x3000, 0xB100, 0x2C00, 0xBC00]))
            else:  # the float16 numbers are in the first four bytes, or the last two
                data += b"\x00\x20\x00\xa0" + rng.randbytes(size - 6) + b"\x00\x20"
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + body
    return head.ljust(-(-len(head) // 32) * 32, b"\0") + data


def gguf_model(
    dim: int, hidden: int, heads: int, kv_heads: int, head: int, vocab: int, **kinds: int
) -> bytes:
    """One layer; kinds: GGML's numbers of tensors' types, F32 (0) where none is given."""
    q_dim, kv_dim = heads * head, kv_heads * head
    keys: dict[str, tuple[int, object]] = {
        "general.architecture": (STRING, "llama"),
        "llama.block_count": (U32, 1),
        "llama.context_length": (U64, 9),
        "llama.embedding_length": (U32, dim),
        "llama.feed_forward_length": (U32, hidden),
        "llama.attention.head_count": (U32, heads),
        "llama.attention.head_count_kv": (U32, [kv_heads]),
        "llama.attention.key_length": (U32, head),
        "llama.attention.value_length": (U32, head),
        "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "llama.rope.freq_base": (F64, 5e5),
        "llama.rope.scaling.factor": (F32, 2.0),
        "tokenizer.ggml.tokens": (STRING, ["<s>", "a"] * 9),
        "tokenizer.ggml.scores": (F32, [0.5, -1.0]),
        "tokenizer.ggml.add_bos_token": (BOOL, 1),
    }
    shapes = {
        "token_embd": (dim, vocab), "output_norm": (dim,), "rope_freqs": (head // 2,),
        "blk.0.attn_norm": (dim,), "blk.0.ffn_norm": (dim,), "blk.0.attn_q": (dim, q_dim),
        "blk.0.attn_k": (dim, kv_dim), "blk.0.attn_v": (dim, kv_dim),
        "blk.0.attn_output": (q_dim, dim), "blk.0.ffn_gate": (dim, hidden),
        "blk.0.ffn_up": (dim, hidden), "blk.0.ffn_down": (hidden, dim),
    }  # fmt: skip
    if "output" in kinds:
        shapes["output"] = (dim, vocab)
    return gguf(
        keys, {f"{n}.weight": (kinds.get(n.rpartition(".")[2], 0), s) for n, s in shapes.items()}
    )


def tokenizer(text: bytes) -> bytes:
    """As fuzz_tokenizer.c takes it: length of the text, tokenizer.bin, text."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    pieces += [piece.encode() for piece in TEXTS]
    image = struct.pack("<i", 16)
    for i, piece in enumerate(pieces):
        image += struct.pack("<fi", -max(0.0, i - 259), len(piece)) + piece
    return struct.pack("<H", len(text)) + image + text


def vocabulary(flags: int, pieces: list[tuple[int, int, str]], merges: bytes, text: str) -> bytes:
    """As fuzz_encode.c takes it: type, score and text of each piece; pairs of ids."""
    data = bytes([flags, len(pieces) - 1, len(merges) // 2])
    for kind, score, piece in pieces:
        data += bytes([kind << 4 | len(piece.encode()), score & 255]) + piece.encode()
    return data + bytes(number + 1 for number in merges) + text.encode()


def main() -> None:
    folder = Path(sys.argv[1])
    seeds = {
        "checkpoint/v0-tied": checkpoint(0, 4, 6, 1, 2, 1, 7, 4),
        "checkpoint/v0-untied": checkpoint(0, 12, 5, 2, 2, 1, 5, 3, tied=False),
        "checkpoint/v1": checkpoint(1, 12, 20, 1, 6, 3, 19, 9),
        "checkpoint/v1-untied": checkpoint(1, 6, 3, 1, 1, 1, 3, 2, tied=False),
        "checkpoint/v2": checkpoint(2, 8, 16, 2, 2, 1, 9, 6, group=4),
        "checkpoint/v2-uneven": checkpoint(2, 6, 7, 1, 1, 1, 5, 4, tied=False, group=3),
        "checkpoint/gguf-float32": gguf_model(6, 5, 2, 1, 4, 7, attn_q=1, ffn_up=30),
        "checkpoint/gguf-int8": gguf_model(
            32, 32, 1, 1, 4, 5, token_embd=8, output=2, attn_q=3, attn_k=6, attn_v=7, ffn_up=8
        ),
        "checkpoint/gguf-blocks": gguf_model(
            256, 2, 1, 1, 2, 2, attn_q=12, attn_k=13, attn_v=14, ffn_gate=12, ffn_up=14
        ),
        "tokenizer/words": tokenizer(b"the heat at the teeth"),
        "tokenizer/run": tokenizer(b"a" * 61),
        "tokenizer/utf8": tokenizer("é\u2581<s> \U0001f642".encode() + b"\xff\xe2\x96\0"),
        "tokenizer/empty": tokenizer(b""),
        "encode/scores": vocabulary(1, LISTED, b"", "a ab\u2581~b~ab abb\u00e9\u00e9"),
        "encode/bytes": vocabulary(8, LISTED, b"", "\u00e9 a\u2581\u65e5b" + "ab" * 30),
        "encode/merges": vocabulary(10, LISTED, bytes([4, 5, 3, 6]), "ab ab aab"),
        "encode/split": vocabulary(23, LISTED, bytes([4, 5, 3, 6]), " ab  ab"),
    }
    seeds |= {
        name.replace("checkpoint", "gguf"): data for name, data in seeds.items() if "gguf-" in name
    }
    for name, data in seeds.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


if __name__ == "__main__":
    main()
