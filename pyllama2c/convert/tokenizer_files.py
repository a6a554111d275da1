"""The tokenizer of a model's folder: the file that holds it, and what other files add."""

from __future__ import annotations

import errno
from pathlib import Path

from pyllama2c.convert.json_files import Fields, read_json
from pyllama2c.convert.sentencepiece_model import read_sentencepiece
from pyllama2c.convert.tiktoken import read_tiktoken
from pyllama2c.convert.tokenizer_json import added_tokens, around, read_tokenizer_json
from pyllama2c.convert.vocabulary import Added, Vocabulary
from pyllama2c.errors import (
    CheckpointWarning,
    TokenizerError,
    TokenizerNotFoundError,
    UnsupportedError,
    warn,
)
from pyllama2c.files.recognize import Kind, kind_of_file

FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""all that is read here, besides config.json"""

_SPECIAL = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
_MORE_SPECIAL = ("additional_special_tokens", "extra_special_tokens")
"""arrays of tokens, or objects by name, in transformers 4 and 5"""


def _json(path: Path) -> Fields | None:
    return read_json(path, TokenizerError) if path.is_file() else None


def _put_added(v: Vocabulary, folder: Path, settings: Fields | None) -> None:
    """Tokens that were added to a tokenizer.model, from whichever file lists them."""
    added = added_tokens(_json(folder / "tokenizer.json"), settings)
    flat = _json(folder / "added_tokens.json")
    if not added and flat is not None:
        added = [Added(i, piece) for piece, i in flat.items()]
    for token in added:
        v.add(token)


def _listed_ends(v: Vocabulary, *sources: Fields | None) -> list[int]:
    """Ids that end an answer, from the first file that lists any, as in transformers."""
    for source in sources:
        value = source.get("eos_token_id") if source is not None else None
        if source is None or value is None:
            continue
        numbers = value if isinstance(value, list) else [value]
        if any(type(number) is not int for number in numbers):
            raise source.fail("eos_token_id", "an id or a list of ids")
        known = [number for number in numbers if 0 <= number < v.size]
        for number in sorted({*numbers} - {*known, -1}):
            warn(
                f"{source.path}: eos_token_id {number} is left out: the model's ids are 0 to "
                f"{v.size - 1}",
                CheckpointWarning,
            )
        return known
    return []


def _put_special(v: Vocabulary, folder: Path, settings: Fields | None) -> None:
    """Sets the ids of BOS and the like, by text, else by id, else as the tokenizer's own file has
    them; and those that end an answer."""
    texts = [s for s in (settings, _json(folder / "special_tokens_map.json")) if s is not None]
    generation, model = _json(folder / "generation_config.json"), _json(folder / "config.json")
    v.ends = _listed_ends(v, generation, model)
    for listed in (source.get(name) for source in texts for name in _MORE_SPECIAL):
        tokens = [*listed.values()] if isinstance(listed, dict) else listed
        for token in tokens if isinstance(tokens, list) else []:
            v.make_special(_content(token) or "")
    for name in _SPECIAL:
        tokens = [source.get(f"{name}_token") for source in texts]
        found = [v.make_special(t) for t in map(_content, tokens) if t is not None]
        number = next((i for i in found if i is not None), None)
        if number is None and getattr(v, name) is None:
            ids = [s.get(f"{name}_token_id") for s in (generation, model) if s is not None]
            first = [i[0] if isinstance(i, list) and i else i for i in ids]
            number = next((i for i in first if type(i) is int and i in v.pieces), None)
        if number is not None:
            setattr(v, name, number)


def _content(token: object) -> str | None:
    """The text of a token, which may be an object with further fields."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _put_ends(v: Vocabulary, source: Fields | None, settings: Fields | None) -> None:
    """Sets whether texts begin with BOS and end with EOS. If there is a tokenizer.json, it decides
    alone: transformers then ignores the settings."""
    if source is not None:
        before, after = around(source)
        for ids, known, where in ((before, v.bos, "before"), (after, v.eos, "after")):
            if ids not in ([], [known]):
                texts = ", ".join(repr(v.pieces[i][0]) if i in v.pieces else str(i) for i in ids)
                raise UnsupportedError(
                    f"{source.path}: post_processor puts {texts[:100]} {where} a text; GGUF "
                    f"only has {'EOS' if where == 'after' else 'BOS'} there"
                )
        v.add_bos, v.add_eos = bool(before), bool(after)
    elif settings is not None:
        v.add_bos = settings.boolean("add_bos_token", v.add_bos)
        v.add_eos = settings.boolean("add_eos_token", v.add_eos)


def _chat_template(folder: Path, settings: Fields | None) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except ValueError as error:
            raise TokenizerError(f"{path} is not UTF-8: {error}") from error
    for source in (settings, _json(folder / "chat_template.json")):
        value = source.get("chat_template") if source is not None else None
        if isinstance(value, list):
            named = {e.get("name"): e.get("template") for e in value if isinstance(e, dict)}
            value = named.get("default")
        if isinstance(value, str):
            return value
    return None


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """The tokenizer of a folder, with a piece for each of the model's `vocab_size` ids.

    tokenizer.model has SentencePiece's own scores, so it is preferred to tokenizer.json; Llama 3's
    tokenizer.model lacks what tokenizer.json has, so it is not. Meta keeps one tokenizer.model in
    the folder above its models. TokenizerNotFoundError if there is none.
    """
    protobuf, source = folder / "tokenizer.model", folder / "tokenizer.json"
    if not protobuf.is_file() and not source.is_file() and (folder / "params.json").is_file():
        protobuf = folder.resolve().parent / "tokenizer.model"
    settings = _json(folder / "tokenizer_config.json")
    if protobuf.is_file() and kind_of_file(protobuf) is not Kind.TIKTOKEN:
        v = read_sentencepiece(protobuf, vocab_size)
        _put_added(v, folder, settings)
        _put_ends(v, None, settings)
    elif source.is_file():
        v = read_tokenizer_json(source, vocab_size, settings)
    elif protobuf.is_file():
        v = read_tiktoken(protobuf, vocab_size)
    else:
        raise TokenizerNotFoundError(
            errno.ENOENT,
            "neither tokenizer.model nor tokenizer.json (--no-tokenizer converts without)",
            str(folder),
        )
    _put_special(v, folder, settings)
    if v.path == source:
        _put_ends(v, _json(source), settings)
    v.chat_template = _chat_template(folder, settings)
    v.warn_of_left_out()
    v.mark_control_tokens()
    return v
