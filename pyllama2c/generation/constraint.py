"""Stories held to a JSON Schema, a regular expression or a grammar, by the package llguidance.

Before each token it says which ones may come, a bit for each; the C sampler forbids the others.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pyllama2c import validate
from pyllama2c._ffi import ffi
from pyllama2c.errors import GrammarError, UnsupportedError
from pyllama2c.generation.gbnf import as_lark
from pyllama2c.generation.large_stack import on_a_large_stack
from pyllama2c.generation.text import strips_space
from pyllama2c.tokenizers.base import BaseTokenizer
from pyllama2c.tokenizers.source import TokenizerSource

MAX_TEXT = 1 << 16
"""characters of a schema, an expression or a grammar"""

LIMITS: Any = {
    "initial_lexer_fuel": 250_000,
    "max_grammar_size": 100_000,
    "max_lexer_states": 50_000,
    "max_items_in_row": 2_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
}
"""of llguidance's work: mostly a tenth of a second to compile, a hundredth for a token. It does not
count all: what is made of hundreds of expressions joined by & can take half a minute."""

MAX_MULTIPLE = 50_000
"""the sum of all "multipleOf" of a schema, of their digits before any zeros at the end: llguidance
makes a state of each remainder"""

_MULTIPLE = re.compile(r'"multipleOf"\s*:\s*([0-9.]+)')

_SIGNS = {
    "initial lexer configuration": "initial_lexer_fuel",
    "too many expressions": "initial_lexer_fuel",
    "too large": "max_grammar_size",
    "grammar size": "max_grammar_size",
    "too many states": "max_lexer_states",
    "items (limit": "step_max_items",
    "items; max is": "max_items_in_row",
    "fuel": "step_lexer_fuel",
}
"""what llguidance says when it comes to a limit"""

_COMPACT: Any = {"whitespace_flexible": False}  # unless the schema's "x-guidance" says otherwise

_CACHED = 64
"""compiled grammars that a model keeps"""


class Grammar(NamedTuple):
    """What a story must match."""

    argument: str
    """the parameter that it was given by"""
    matcher: Any
    """an LLMatcher at the beginning, which is copied for each story"""
    first: Any
    """uint32 (n_words): a bit for each token that may be the first, or None: all may"""
    n_words: int

    def guide(self) -> Guide:
        return Guide(self)


class Guide:
    """Where a story is in its grammar."""

    def __init__(self, grammar: Grammar):
        self._argument, self._first = grammar.argument, grammar.first
        self._matcher = grammar.matcher.deep_copy()
        self._mask = ffi.new("uint32_t[]", grammar.n_words)
        self._address = int(ffi.cast("uintptr_t", self._mask))

    def mask(self) -> Any:
        """A bit for each token that may come next: a uint32_t[], which the next call changes."""
        self._matcher.unsafe_compute_mask_ptr(self._address, 4 * len(self._mask))
        _check(self._matcher, self._argument)
        if self._first is not None:
            import numpy as np

            bits = np.frombuffer(ffi.buffer(self._mask), np.uint32)
            bits &= self._first
            self._first = None
        return self._mask

    def take(self, token: int) -> bool:
        """Goes on by a token, which the mask permitted; whether nothing may follow it."""
        self._matcher.consume_token(token)
        _check(self._matcher, self._argument)
        return bool(self._matcher.is_stopped())


def _check(matcher: Any, argument: str) -> None:
    if not matcher.is_error():
        return
    reason = " ".join(matcher.get_error().removesuffix("<non-verbose/>").split())
    if reason.startswith("NoExtensionBias"):
        reason = "no text that the vocabulary can spell matches it"
    limit = next((name for sign, name in _SIGNS.items() if sign in reason), None)
    if limit is not None:
        reason += f" (the limit {limit} is {LIMITS[limit]:,})"
    raise GrammarError(f"{argument}: {reason}")


class Grammars:
    """Compiles grammars for one tokenizer, and keeps those that were used last."""

    def __init__(self, source: TokenizerSource):
        self._source = source
        self._vocabulary: _Vocabulary | None = None
        self._compiled: OrderedDict[tuple[str, str, bool], Grammar] = OrderedDict()
        self._lock = threading.Lock()  # of what is kept
        self._compiling = threading.Lock()  # one at a time, each of which may take seconds

    def compile(
        self, prompt_tokens: Sequence[int], *, json_schema: Any, regex: Any, grammar: Any
    ) -> Grammar | None:
        """The grammar of a story after such a prompt; None without any of the three.

        TypeError or ValueError for wrong arguments, GrammarError for what llguidance cannot take,
        UnsupportedError where it is not installed.
        """
        given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
        named = [name for name, value in given.items() if value is not None]
        if not named:
            return None
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} are both given; a story takes one of them")
        (name,) = named
        text = _schema_text(json_schema) if name == "json_schema" else _text(name, given[name])
        if len(text) > MAX_TEXT:
            raise GrammarError(
                f"{name} has {len(text):,} characters; the limit MAX_TEXT is {MAX_TEXT:,}"
            )
        if sum(map(_significand, _MULTIPLE.findall(text))) > MAX_MULTIPLE:
            limit = f"the limit MAX_MULTIPLE is {MAX_MULTIPLE:,}"
            raise GrammarError(f"{name}: the multipleOf are too large together; {limit}")
        key = (name, text, strips_space(self._source.tokenizer, prompt_tokens))
        found = self._kept(key)
        if found is None:
            with self._compiling:
                found = self._kept(key) or self._compile(key)
        return found

    def _kept(self, key: tuple[str, str, bool]) -> Grammar | None:
        with self._lock:
            if key in self._compiled:
                self._compiled.move_to_end(key)
            return self._compiled.get(key)

    def _compile(self, key: tuple[str, str, bool]) -> Grammar:
        vocabulary = self._vocabulary = self._vocabulary or _Vocabulary(self._source.tokenizer)
        compiled = on_a_large_stack(lambda: vocabulary.compile(*key))
        with self._lock:
            self._compiled[key] = compiled
            if len(self._compiled) > _CACHED:
                self._compiled.popitem(last=False)
        return compiled


def _significand(number: str) -> int:
    return int(number.replace(".", "").strip("0") or 0)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise validate.wrong(name, value, "text", TypeError)
    return value


def _schema_text(schema: Any) -> str:
    """A JSON Schema as JSON text."""
    if hasattr(schema, "model_json_schema"):  # a pydantic model
        schema = schema.model_json_schema()
    try:
        if isinstance(schema, str):
            schema = json.loads(schema)
        if isinstance(schema, bool):  # which cannot say that white space is compact
            schema = {} if schema else {"enum": []}
        if isinstance(schema, Mapping):
            return json.dumps(dict(schema), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise GrammarError(f"json_schema is not JSON: {error}") from None
    needed = "a JSON Schema: a dict, True, its JSON text, or a class with model_json_schema"
    raise validate.wrong("json_schema", schema, needed, TypeError)


class _Vocabulary:
    """A tokenizer as llguidance knows it."""

    def __init__(self, tokenizer: BaseTokenizer):
        try:
            import llguidance
        except ImportError as error:
            raise UnsupportedError(
                "json_schema, regex and grammar need the package llguidance: "
                "pip install 'pyllama2c[guide]'"
            ) from error
        import numpy as np

        self.tokenizer = tokenizer
        size = tokenizer.vocab_size
        ends = [token for token in tokenizer.ends if 0 <= token < size]
        names = {token: text for text, token in tokenizer.special_tokens.items()}
        ids = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, *ends, *names}
        special = sorted(token for token in ids if 0 <= token < size)
        # 0xFF is how llguidance marks special tokens; it is in no text.
        pieces = [b"" if p.startswith(b"\xff") else p for p in map(tokenizer.piece, range(size))]
        for token in special:
            pieces[token] = names.get(token, f"<[{token}]>").encode()
        if not ends:  # one more, which no story can reach
            special, ends, pieces = [*special, size], [size], [*pieces, b"<end>"]
        self._words = (len(pieces) + 31) // 32
        source = _Source(tokenizer, pieces, special, ends)
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(source), eos_token=sorted(ends)
        )
        # The pieces that lose a space where they begin a text.
        stripped = np.zeros(32 * self._words, np.uint8)
        stripped[:size] = [tokenizer.piece(i) != tokenizer.opening(i) for i in range(size)]
        self._stripped = np.packbits(stripped, bitorder="little").view("<u4").astype(np.uint32)
        self._has_space = any(pieces[i] == b" " for i in range(size) if stripped[i])

    def compile(self, argument: str, text: str, strips: bool) -> Grammar:
        """`strips`: the first piece loses its space. It must begin with one then, as the encoded
        texts do that the model knows."""
        try:
            source = _source(argument, text)
        except ValueError as error:
            raise GrammarError(f"{argument}: {error}") from None
        compiled = self._start(argument, source)
        if not strips:
            return compiled
        if not self._has_space:
            return compiled._replace(first=~self._stripped)
        inner = {**json.loads(source)["grammars"][0], "name": "story"}
        source = json.dumps({"grammars": [{"lark_grammar": 'start: " " @story'}, inner]})
        return self._start(argument, source)._replace(first=self._stripped)

    def _start(self, argument: str, source: str) -> Grammar:
        import llguidance

        limits = llguidance.LLParserLimits(verbose_errors=False, **LIMITS)
        matcher = llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
        _check(matcher, argument)
        grammar = Grammar(argument, matcher, None, self._words)
        grammar.guide().mask()  # only this finds that nothing matches
        return grammar


def _source(argument: str, text: str) -> str:
    """A grammar as llguidance takes it: JSON."""
    from llguidance import LLMatcher

    if argument == "json_schema":
        return LLMatcher.grammar_from_json_schema(text, defaults=_COMPACT)
    if argument == "regex":
        return LLMatcher.grammar_from_regex(text)
    return json.dumps({"grammars": [{"lark_grammar": as_lark(text)}]})


class _Source:
    """What llguidance's TokenizerWrapper asks of a tokenizer."""

    def __init__(
        self, tokenizer: BaseTokenizer, pieces: list[bytes], special: list[int], ends: list[int]
    ):
        self.tokens, self.special_token_ids = pieces, special
        self.eos_token_id, self.bos_token_id = ends[0], None
        self._tokenizer = tokenizer
        self._bytes = {piece: i for i, piece in enumerate(pieces) if len(piece) == 1}

    def __call__(self, text: bytes) -> list[int]:
        """Ids of text that the grammar leaves no choice about; it continues a text, so that no
        space is put before it. Empty where the vocabulary cannot spell it."""
        try:
            ids = self._tokenizer.encode_parts([text.decode()], inside=True)
            if b"".join(map(self._tokenizer.piece, ids)) == text:
                return ids
        except ValueError:
            pass
        # SentencePiece has no other space than U+2581, nor bytes for it: here they will do.
        by_byte = [self._bytes.get(bytes([byte])) for byte in text]
        return [] if None in by_byte else [i for i in by_byte if i is not None]
