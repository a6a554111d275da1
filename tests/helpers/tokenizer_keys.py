"""Tokenizers as metadata of GGUF files, small enough to look through."""

from __future__ import annotations

from typing import Any

from gguf_files import BOOL, FLOAT32, INT32, STRING, UINT32, File, Key, model_file
from tiny import TEXT_PIECES, Shape, TinyLlama

from pyllama2c.tokenizers.byte_level import CHARACTERS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_key(name: str, kind: int, value: Any) -> Key:
    return Key(f"tokenizer.ggml.{name}", kind, value)


def sentencepiece_keys(**changes: Any) -> list[Key]:
    """300 pieces: three control tokens, bytes, text, then <|im_start|>, <|im_end|> and "user"."""
    texts = [piece.decode().replace(" ", "\u2581") for piece in TEXT_PIECES]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *texts]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(texts)]
    pieces += ["<|im_start|>", "<|im_end|>", "~user~"]
    types += [CONTROL, CONTROL, USER_DEFINED]
    while len(pieces) < 300:
        pieces.append(f"[PAD{len(pieces)}]")
        types.append(UNUSED)
    scores = [-float(i) if i > 258 else 0.0 for i in range(300)]
    return [*_keys("llama", pieces, types, changes), tokenizer_key("scores", FLOAT32, scores)]


MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "Ã ©"]


def byte_level_keys(**changes: Any) -> list[Key]:
    """300 pieces: three control tokens, bytes, what MERGES make, and a user-defined one."""
    pieces = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *CHARACTERS]
    types = [CONTROL] * 3 + [NORMAL] * 256
    pieces += [merge.replace(" ", "") for merge in MERGES] + ["~user~"]
    types += [NORMAL] * len(MERGES) + [USER_DEFINED]
    while len(pieces) < 300:
        pieces.append(f"[PAD{len(pieces)}]")
        types.append(UNUSED)
    keys = _keys("gpt2", pieces, types, changes)
    return [
        *keys,
        tokenizer_key("merges", STRING, MERGES),
        tokenizer_key("pre", STRING, changes.get("pre", "gpt-2")),
    ]


def _keys(kind: str, pieces: list[str], types: list[int], changes: dict[str, Any]) -> list[Key]:
    keys = [
        tokenizer_key("model", STRING, kind),
        tokenizer_key("tokens", STRING, pieces),
        tokenizer_key("token_type", INT32, types),
        tokenizer_key("bos_token_id", UINT32, 1),
        tokenizer_key("eos_token_id", UINT32, 2),
    ]
    for name in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        if name in changes:
            keys.append(tokenizer_key(name, BOOL, changes[name]))
    return keys


def chat_model(keys: list[Key], template: str | None = TEMPLATE, seed: int = 0) -> File:
    """A random model of 300 tokens with a tokenizer, and maybe a chat template."""
    file = model_file(TinyLlama.random(Shape(seq_len=256), seed))
    file.keys += keys
    if template is not None:
        file.keys.append(Key("tokenizer.chat_template", STRING, template))
    return file
