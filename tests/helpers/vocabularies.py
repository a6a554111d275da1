"""Vocabularies of any layout, as a SentencePiece model, as GGUF metadata, as a tokenizer.bin."""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf_files import BOOL, FLOAT32, INT32, STRING, UINT32, File, Key
from tokenizer_keys import BYTE, CONTROL, UNKNOWN, tokenizer_key

from pyllama2c.files.gguf import Gguf
from pyllama2c.tokenizers.base import BaseTokenizer
from pyllama2c.tokenizers.gguf import read_tokenizer

SPACE = "▁"
BYTES = [(f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)]


def varint(value: int) -> bytes:
    value %= 1 << 64
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def block(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def piece(text: str, score: float = 0.0, kind: int = 1) -> bytes:
    data = block(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
    return block(1, data + varint(3 << 3) + varint(kind))


@dataclass
class Layout:
    """Pieces by id: text, score, type. BOS, EOS and padding are called <s>, </s> and <pad>."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    add_space: bool = True

    def id_of(self, text: str) -> int | None:
        kinds = (CONTROL, UNKNOWN)
        found = (i for i, (t, _, kind) in enumerate(self.pieces) if t == text and kind in kinds)
        return next(found, None)

    def proto(self, **trainer: int) -> bytes:
        """A SentencePiece model that leaves texts as they are."""
        has_bytes = any(kind == BYTE for _, _, kind in self.pieces)
        numbers = {3: 2, 35: int(has_bytes)}
        about = b"".join(varint(n << 3) + varint(value) for n, value in numbers.items())
        flags = {3: int(self.add_space), 4: 0, 5: 1}
        normalizer = block(1, b"identity")
        normalizer += b"".join(varint(n << 3) + varint(value) for n, value in flags.items())
        return b"".join(piece(*p) for p in self.pieces) + block(2, about) + block(3, normalizer)

    def keys(self) -> list[Key]:
        """GGUF metadata. The id of a token that does not exist is -1."""
        texts, scores, kinds = zip(*self.pieces, strict=True)
        lists = {
            "tokens": (STRING, texts),
            "scores": (FLOAT32, scores),
            "token_type": (INT32, kinds),
        }
        keys = [tokenizer_key("model", STRING, "llama")]
        keys += [tokenizer_key(name, kind, list(values)) for name, (kind, values) in lists.items()]
        for name, text in (("bos", "<s>"), ("eos", "</s>"), ("unknown", "<unk>")):
            number = self.id_of(text)
            keys.append(
                tokenizer_key(f"{name}_token_id", UINT32, 2**32 - 1 if number is None else number)
            )
        return [*keys, tokenizer_key("add_space_prefix", BOOL, self.add_space)]

    def through_gguf(self) -> BaseTokenizer:
        with Gguf.from_buffer(File(self.keys()).build()) as gguf:
            return read_tokenizer(gguf, len(self.pieces))

    def through_convert(self, folder: Path) -> BaseTokenizer:
        from pyllama2c.convert.sentencepiece_model import read_sentencepiece

        path = folder / "tokenizer.model"
        path.write_bytes(self.proto())
        return as_opened(read_sentencepiece(path, len(self.pieces)))

    def tokenizer_bin(self) -> bytes:
        """As llama2.c's tokenizer.py exports it."""
        texts = [text.replace(SPACE, " ").encode() for text, _, _ in self.pieces]
        texts[1:3] = [b"\n<s>\n", b"\n</s>\n"]
        records = [
            struct.pack("<fi", score, len(text)) + text
            for text, (_, score, _) in zip(texts, self.pieces, strict=True)
        ]
        return struct.pack("<i", max(map(len, texts))) + b"".join(records)


def like_sentencepiece(merges: list[str], **changes: Any) -> dict[str, Any]:
    """A tokenizer.json of SentencePiece's BPE, with what `merges` make and nothing else."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    texts += sorted({half for merge in merges for half in merge.split(" ") if len(half) == 1})
    texts += list(dict.fromkeys(m.replace(" ", "") for m in merges))
    model = {
        "type": "BPE",
        "unk_token": "<unk>",
        "byte_fallback": True,
        "vocab": {text: i for i, text in enumerate(texts)},
        "merges": merges,
    }
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    single = [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]
    special = ["<unk>", "<s>", "</s>"]
    return {
        "added_tokens": [{"id": i, "content": t, "special": True} for i, t in enumerate(special)],
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "model": model,
    } | changes


def as_opened(vocabulary: Any) -> BaseTokenizer:
    """The tokenizer that a file has into which `convert` writes such a vocabulary."""
    from gguf import GGUFWriter

    from pyllama2c.convert.writer import add_vocabulary

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        writer = GGUFWriter(path, "llama")
        add_vocabulary(writer, vocabulary)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with Gguf(path) as gguf:
            return read_tokenizer(gguf, vocabulary.size)
