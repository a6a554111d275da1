"""Tokenizer files as model folders have them: tokenizer.model, tokenizer.json, tiktoken."""

from __future__ import annotations

import base64
from typing import Any

from vocabularies import SPACE, block, piece, varint

from pyllama2c.convert.tiktoken import as_text

LLAMA3_SPLIT = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)


def sentencepiece(
    pieces: list[tuple[str, float, int]] | None = None,
    kind: int = 2,
    trainer: bytes = b"",
    normalizer: bytes = varint(4 << 3) + varint(0),
) -> bytes:
    if pieces is None:
        pieces = [("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3)]
        pieces += [(f"<0x{i:02X}>", 0, 6) for i in range(256)]
        texts = [SPACE, "a", "b", "é", SPACE + "a", "ab", SPACE + "ab"]
        pieces += [(text, -float(i), 1) for i, text in enumerate(texts)]
    message = b"".join(piece(*each) for each in pieces)
    return message + block(2, varint(3 << 3) + varint(kind) + trainer) + block(3, normalizer)


def byte_level(pre: Any = None, **changes: Any) -> dict[str, Any]:
    """A tokenizer.json of all bytes and some merges, as SmolLM's is made."""
    merges = [("a", "b"), ("Ġ", "ab"), ("c", "d"), ("ab", "cd")]
    texts = [as_text(bytes([i])) for i in range(256)] + [a + b for a, b in merges]
    digits = {"type": "Digits", "individual_digits": True}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if pre is None:
        pre = {"type": "Sequence", "pretokenizers": [digits, plain | {"use_regex": True}]}
    model = {
        "type": "BPE",
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {text: i for i, text in enumerate(texts)},
        "merges": [" ".join(pair) for pair in merges],
    }
    added = [{"id": 260, "content": "<|im_start|>", "special": True}]
    added += [{"id": 261, "content": "<|im_end|>", "special": True}]
    added += [{"id": 262, "content": "<extra>", "special": False}]
    return {
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pre,
        "post_processor": None,
        "model": model | changes,
    }


LLAMA3_PRE = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": LLAMA3_SPLIT},
            "behavior": "Isolated",
            "invert": False,
        },
        {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        },
    ],
}


MERGES = [f"{SPACE} a", "a b", f"{SPACE}a b", f"{SPACE} ab", "b b"]


def tiktoken(pieces: list[bytes]) -> bytes:
    return b"".join(base64.b64encode(p) + b" %d\n" % i for i, p in enumerate(pieces))
