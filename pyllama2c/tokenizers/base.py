"""Text to token ids and back: what every tokenizer does."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, NoReturn

from pyllama2c import dialects, validate
from pyllama2c.dialects import SuggestsNames
from pyllama2c.errors import ClosedError, TokenizerError
from pyllama2c.handle import ClosableHandle

NONE = -1
"""the id of a special token that the vocabulary lacks, as in SentencePiece"""


class Strips(NamedTuple):
    """Ids of tokens that absorb the white space next to them in a text."""

    left: Collection[int] = ()
    right: Collection[int] = ()


NO_STRIPS = Strips()
_WHITE_SPACE = [*filter(str.isspace, map(chr, [*range(28), *range(32, 0x3001)]))]
"""Unicode's; Python's isspace also counts four control characters"""


class BaseTokenizer(SuggestsNames, ClosableHandle):
    """The interface of every tokenizer, whatever file it was read from."""

    _answers = dialects.TOKENIZER

    path: str
    vocab_size: int
    bos_id: int
    """begins a text; -1 if the vocabulary has none, as for the ids below"""
    eos_id: int
    unk_id: int = NONE
    pad_id: int = NONE
    sep_id: int = NONE
    cls_id: int = NONE
    mask_id: int = NONE
    add_bos: bool = True
    """whether texts, and so prompts, begin with BOS"""
    add_eos: bool = False
    """whether texts end with EOS; a prompt never does, as it is to be continued"""
    adds_space: bool = False
    """whether `encode` prepends a space, which `decode` removes"""
    ends: frozenset[int]
    """ids that end a story: BOS (llama2.c's models end with it), EOS, end of turn"""

    def __init__(
        self,
        special: Iterable[tuple[str, int]] = (),
        user_defined: Iterable[tuple[str, int]] = (),
        strips: Strips = NO_STRIPS,
    ):
        # A single character is text, whatever its type says.
        self._special = _TokenFinder((token for token in special if len(token[0]) > 1), strips)
        self._user_defined = _TokenFinder(user_defined, strips)
        self._pieces: dict[int, bytes] = {}  # a cache
        self._text_cache: dict[int, str | None] = {}  # another
        self._closed = False

    @abstractmethod
    def _encode_text(self, text: str, space_first: bool) -> list[int]:
        """Ids of text without special tokens; lone surrogates stand for bytes (surrogateescape)."""

    @abstractmethod
    def _piece(self, token: int) -> bytes: ...

    def encode(
        self, text: str | bytes, bos: bool = False, eos: bool = False, *, special: bool = False
    ) -> list[int]:
        """Token ids of `text`; BOS and EOS only where asked for.

        `<s>`, `<|im_end|>` or `<0x41>` in it are just characters. With `special`, the text of a
        control token becomes that token: never use it on untrusted text. Bytes need not be valid
        UTF-8. TokenizerError for lone surrogates in a str, and for characters without a token in a
        vocabulary without <unk>.
        """
        for name, value in (("bos", bos), ("eos", eos), ("special", special)):
            validate.flag(name, value)
        parts = self.split(text) if special else [_as_text(text)]
        first = [self._required(self.bos_id, "BOS")] if bos else []
        last = [self._required(self.eos_id, "EOS")] if eos else []
        return first + self.encode_parts(parts) + last

    def encode_prompt(self, text: str | bytes) -> list[int]:
        """Token ids of a text that is to be continued: BOS first if `add_bos` is set, or if there
        is nothing else to begin with."""
        return self.encode(text, bos=self.add_bos or (not text and self.bos_id != NONE))

    def split(self, text: str | bytes) -> list[str | int]:
        """The text split at control tokens, which become ids."""
        return self._special.split([_as_text(text)])

    def encode_parts(self, parts: Sequence[str | int], inside: bool = False) -> list[int]:
        """Ids of the parts that `split` made. `inside`: they continue a text, so the first gets no
        space."""
        self._check_open()
        ids: list[int] = []
        after_token = not inside
        for i, part in enumerate(self._user_defined.split(parts)):
            if isinstance(part, int):
                ids.append(part)
            elif part:
                opens = i == 0 and not inside
                ids += self._encode_text(part, after_token and self._space_before(part, opens))
            after_token = isinstance(part, int)
        return ids

    def _space_before(self, text: str, opens: bool) -> bool:
        """Whether a space is prepended to a text that follows a token or, with `opens`, nothing."""
        return self.adds_space

    def piece(self, token: int) -> bytes:
        """The bytes of one token: none for a control token, perhaps part of a character."""
        self._check_open()
        if type(token) is not int:
            (token,) = validate.token_ids("token", [token], self.vocab_size)
        known = self._pieces.get(token)
        if known is not None:
            return known
        if not 0 <= token < self.vocab_size:
            raise TokenizerError(f"token {token} is outside the vocabulary of {self.vocab_size}")
        self._pieces[token] = piece = self._piece(token)
        return piece

    def text_of(self, token: int) -> str | None:
        """What one token of the vocabulary spells; None where it is no text by itself: part of a
        character."""
        if token in self._text_cache:
            return self._text_cache[token]
        try:
            text: str | None = self.piece(token).decode()
        except UnicodeDecodeError:
            text = None
        self._text_cache[token] = text
        return text

    def decode_bytes(self, tokens: Sequence[int]) -> bytes:
        """The bytes of `tokens`, without the space that `encode` prepended."""
        parts: list[bytes] = []
        at_start = self.adds_space
        for token in validate.values("tokens", tokens, "a sequence of integers: token ids"):
            piece = self.piece(token)
            parts.append(self.opening(token) if at_start else piece)
            opens = token == self.bos_id or (at_start and not piece)
            at_start = self.adds_space and opens
        return b"".join(parts)

    def opening(self, token: int) -> bytes:
        """The bytes of a text's first token, without the space that `encode` prepended."""
        return self.piece(token).removeprefix(b" ")

    def decode(self, tokens: Sequence[int]) -> str:
        """`decode_bytes` as text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode("utf-8", "replace")

    def special_text(self, token: int) -> str:
        """The text of a control or user-defined token, as templates spell it; empty for others."""
        (token,) = validate.token_ids("token", [token], self.vocab_size)
        tokens = [*self._special.tokens, *self._user_defined.tokens]
        return next((text for text, number in tokens if number == token), "")

    @property
    def special_tokens(self) -> dict[str, int]:
        """Control tokens by their text."""
        return dict(self._special.tokens)

    def _required(self, token: int, name: str) -> int:
        if token == NONE:
            raise TokenizerError(f"{self.path}: the vocabulary has no {name}")
        return token

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the tokenizer is closed")

    def close(self) -> None:
        """Frees the tokenizer; further use raises ClosedError."""
        self._closed = True

    def __call__(self, *texts: object, **parameters: object) -> NoReturn:
        raise TypeError("a tokenizer cannot be called; use encode(text)")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, vocab_size={self.vocab_size})"


def _as_text(text: str | bytes) -> str:
    if isinstance(text, bytes):
        return text.decode("utf-8", "surrogateescape")
    if not isinstance(text, str):
        raise validate.wrong("text", text, "text: str or bytes", TypeError)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(f"text cannot be encoded as UTF-8: {error}") from None
    return text


class _TokenFinder:
    """Finds tokens by their text in other texts: from the left, the longest first."""

    def __init__(self, tokens: Iterable[tuple[str, int]], strips: Strips):
        self._strips = strips
        self.tokens = sorted(tokens, key=lambda token: -len(token[0]))
        self._ids = dict(reversed(self.tokens))
        self._pattern: re.Pattern[str] | None = None  # compiled on first use

    def split(self, parts: Sequence[str | int]) -> list[str | int]:
        """The parts, with each token found in a text replaced by its id."""
        if not self._ids:
            return list(parts)
        if self._pattern is None:
            texts = [re.escape(text) for text, _ in self.tokens]
            self._pattern = re.compile("|".join(texts))
        out: list[str | int] = []
        for part in parts:
            if isinstance(part, int):
                out.append(part)
                continue
            at = 0
            for match in self._pattern.finditer(part):
                number, (start, end) = self._ids[match[0]], match.span()
                if number in self._strips.left:
                    start = at + len(part[at:start].rstrip("".join(_WHITE_SPACE)))
                if number in self._strips.right:
                    while part[end : end + 1] in _WHITE_SPACE:
                        end += 1
                if at < start:
                    out.append(part[at:start])
                if start < end:  # else the previous token absorbed it
                    out.append(number)
                at = end
            if at < len(part):
                out.append(part[at:])
        return out
