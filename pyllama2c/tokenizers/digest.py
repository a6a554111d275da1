"""A hash of a tokenizer, for files that record what made a story."""

from __future__ import annotations

import hashlib

from pyllama2c.tokenizers.base import BaseTokenizer


def tokenizer_digest(tokenizer: BaseTokenizer, about: object, size: int) -> str:
    """`size` bytes, in hexadecimal, of `about` and of what turns ids into text. Files keep it: what
    is hashed, and how, cannot change."""
    digest = hashlib.blake2b(repr(about).encode(), digest_size=size)
    for token in range(tokenizer.vocab_size):
        piece = tokenizer.piece(token)
        digest.update(b"%d " % len(piece) + piece)
    return digest.hexdigest()
