"""Byte-level BPE, as in GPT-2: every byte is written as a character, so any text can be encoded.

The `tokenizers` package (`pip install 'pyllama2c[gguf]'`) does the merging.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyllama2c.errors import TokenizerError, UnsupportedError
from pyllama2c.tokenizers.base import BaseTokenizer
from pyllama2c.tokenizers.control_tokens import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from pyllama2c.tokenizers.pre_tokenizers import PRE_TOKENIZERS

if TYPE_CHECKING:
    from pyllama2c.tokenizers.gguf import Vocabulary


def _byte_characters() -> list[str]:
    """GPT-2's table: a visible character for each byte, its Latin-1 one if that is visible."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    table = {byte: chr(byte) for byte in visible}
    table |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


CHARACTERS = _byte_characters()
"""(256): how a byte-level vocabulary writes each byte"""

_BYTES = {character: byte for byte, character in enumerate(CHARACTERS)}
_RUNS = re.compile(r"\s+|\w+")
_LONGEST_RUN = 5_000_000
"""characters; the package panics when one match backtracks 10 million steps"""
_ESCAPED = re.compile("([\udc80-\udcff])")


class ByteLevelTokenizer(BaseTokenizer):
    """`tokenizer.ggml.model` "gpt2"."""

    def __init__(self, v: Vocabulary):
        super().__init__(v.of_type(CONTROL, UNKNOWN), v.of_type(USER_DEFINED), v.strips)
        self.path, self.vocab_size = v.path, v.size
        self.bos_id, self.eos_id, self.ends = v.bos, v.eos, v.ends
        self.unk_id, self.pad_id = v.unknown, v.padding
        self.sep_id, self.cls_id, self.mask_id = v.separator, v.classifier, v.mask
        self.add_bos, self.add_eos = v.add_bos, v.add_eos
        self._texts, self._types = v.pieces, v.types
        normal = _normal_pieces(v)
        self._byte_ids = [normal.get(character) for character in CHARACTERS]
        self._missing = [byte for byte, number in enumerate(self._byte_ids) if number is None]
        self._bpe = _bpe(v, normal)

    def _encode_text(self, text: str, space_first: bool) -> list[int]:
        self._check_runs(text)
        ids: list[int] = []
        # Bytes that are not UTF-8 are in no longer piece: each is a token of its own.
        for part in _ESCAPED.split(text):
            data = part.encode("utf-8", "surrogateescape")
            for byte in self._missing:
                if byte in data:
                    raise TokenizerError(
                        f"{self.path}: the vocabulary has no token for byte 0x{byte:02X}, which is "
                        f"in {part!r:.80}"
                    )
            if _ESCAPED.fullmatch(part):
                ids.append(self._byte_ids[data[0]] or 0)
            elif part:
                ids += self._bpe(part)
        return ids

    def _check_runs(self, text: str) -> None:
        if len(text) <= _LONGEST_RUN:
            return
        for run in _RUNS.finditer(text):
            n = run.end() - run.start()
            if n > _LONGEST_RUN:
                raise TokenizerError(
                    f"{self.path}: the text has a run of {n} characters like {run[0][0]!r}; the "
                    f"limit is {_LONGEST_RUN}"
                )

    def _piece(self, token: int) -> bytes:
        text, kind = self._texts[token], self._types[token]
        if kind == NORMAL or text in _BYTES:
            return bytes(_BYTES[character] for character in text)
        return b"" if kind == CONTROL else text.encode()


def _normal_pieces(v: Vocabulary) -> dict[str, int]:
    pieces: dict[str, int] = {}
    for i, (text, kind) in enumerate(zip(v.pieces, v.types, strict=True)):
        if kind != NORMAL:
            continue
        if not text or not all(character in _BYTES for character in text):
            raise TokenizerError(f"{v.path}: piece {i} ({text!r:.50}) is not byte-level text")
        if text in pieces:
            raise TokenizerError(f"{v.path}: pieces {pieces[text]} and {i} are the same")
        pieces[text] = i
    for i, (text, kind) in enumerate(zip(v.pieces, v.types, strict=True)):
        if text in _BYTES and kind != UNUSED:  # every byte needs a token, whatever its type
            pieces.setdefault(text, i)
    return pieces


def _bpe(v: Vocabulary, normal: dict[str, int]) -> Callable[[str], list[int]]:
    """A function from text to ids."""
    pre = PRE_TOKENIZERS.get(v.pre)
    if pre is None:
        known = ", ".join(PRE_TOKENIZERS)
        raise UnsupportedError(f"{v.path}: tokenizer.ggml.pre is {v.pre!r:.50}; known: {known}")
    try:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    except ImportError as error:
        raise UnsupportedError(
            f"{v.path}: its tokenizer needs the package tokenizers: pip install 'pyllama2c[gguf]'"
        ) from error
    steps: list[Any] = [pre_tokenizers.Split(Regex(e), "isolated") for e in pre.expressions]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    merges = list(v.pairs(v.merges(), normal))
    bpe = Tokenizer(models.BPE(vocab=normal, merges=merges, ignore_merges=pre.ignore_merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(steps)

    def encode(text: str) -> list[int]:
        ids: list[int] = bpe.encode(text, add_special_tokens=False).ids
        return ids

    return encode
