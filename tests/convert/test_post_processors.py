"""What a tokenizer.json puts before a text and behind it: the same, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizer_files import byte_level
from vocabularies import as_opened

pytest.importorskip("gguf", reason="gguf (the extra `convert`) is not installed")
pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from pyllama2c import TokenizerError, UnsupportedError
from pyllama2c.convert.tokenizer_files import read_vocabulary

IDS = {"<s>": 260, "</s>": 261, "<x>": 262}
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


def template(single: str) -> dict[str, Any]:
    """A TemplateProcessing, `$` for the text."""
    entries = [
        {"Sequence": {"id": "A", "type_id": 0}}
        if text == "$"
        else {"SpecialToken": {"id": text, "type_id": 0}}
        for text in single.split()
    ]
    tokens = {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in IDS.items()}
    return {
        "type": "TemplateProcessing",
        "single": entries,
        "pair": [*entries, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": tokens,
    }


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "processors": list(steps)}


def like(kind: str) -> dict[str, Any]:
    """Bert's and Roberta's, which are no template."""
    step = {"type": f"{kind}Processing", "sep": ["</s>", 261], "cls": ["<s>", 260]}
    return step | ({"trim_offsets": True, "add_prefix_space": False} if kind == "Roberta" else {})


def write(folder: Path, post_processor: Any, settings: dict[str, Any]) -> Path:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": i, "content": t, "special": True} | flags for t, i in IDS.items()]
    source = byte_level() | {"added_tokens": added, "post_processor": post_processor}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(source))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("settings", [{}, NAMED, NAMED | {"add_bos_token": True}])
@pytest.mark.parametrize(
    "post_processor",
    [
        None,
        BYTES,
        template("$"),
        template("<s> $"),
        template("$ </s>"),
        template("<s> $ </s>"),
        sequence(BYTES, template("<s> $")),
        like("Bert"),
        like("Roberta"),
    ],
)
def test_as_tokenizers(post_processor: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    path = write(tmp_path, post_processor, settings)
    ours, theirs = as_opened(read_vocabulary(tmp_path, 300)), Tokenizer.from_file(str(path))
    for text in ("ab", ""):
        ids = ours.encode(text, bos=ours.add_bos, eos=ours.add_eos)
        assert ids == theirs.encode(text).ids
    if post_processor is None or settings == NAMED:
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        assert ids == transformers.AutoTokenizer.from_pretrained(tmp_path)("").input_ids


@pytest.mark.parametrize(
    ("post_processor", "settings", "message"),
    [
        (template("<s> <x> $"), NAMED, "puts '<s>', '<x>' before a text"),
        (template("<s> <x> $"), {}, "puts '<s>', '<x>' before a text"),
        (template("<x> $"), NAMED, "puts '<x>' before a text; GGUF only has BOS there"),
        (template("<s> $ <x>"), NAMED, "puts '<x>' after a text; GGUF only has EOS there"),
        (like("Bert"), {"bos_token": "<x>"}, "puts '<s>' before a text"),
    ],
)
def test_what_gguf_cannot_say(
    post_processor: Any, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path, post_processor, settings)
    with pytest.raises(UnsupportedError, match=f"tokenizer.json: post_processor {message}"):
        read_vocabulary(tmp_path, 300)


@pytest.mark.parametrize(
    "post_processor",
    [
        {"type": "Unheard"},
        {"type": "RobertaProcessing", "cls": [], "sep": 3},
        template("<s>"),
        template("$ <s> $"),
        template("<s> $") | {"special_tokens": {"<s>": {"ids": ["x"]}}},
        template("<s> $") | {"special_tokens": {"<s>": {"ids": [float("inf")]}}},
        template("<s> $") | {"single": "x"},
        sequence(sequence(template("<s> $"))),
        sequence(template("<s> $"), template("$ </s>")),  # tokenizers puts both before
    ],
)
def test_damaged(post_processor: Any, tmp_path: Path) -> None:
    write(tmp_path, post_processor, NAMED)
    with pytest.raises(TokenizerError, match=r"tokenizer.json: post_processor is .* it must be"):
        read_vocabulary(tmp_path, 300)
