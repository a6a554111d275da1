"""GBNF, in which llama.cpp's grammars are written."""

from __future__ import annotations

import re

MAX_TEXT = 1 << 14
"""characters; their translation may take time by the square, a quarter of a second here"""

_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)


def as_lark(grammar: str) -> str:
    """A grammar in Lark's notation, which may be in GBNF; ValueError for GBNF that is wrong."""
    if not _RULE.search(grammar):
        return grammar
    if len(grammar) > MAX_TEXT:
        raise ValueError(f"it has {len(grammar)} characters of GBNF; the limit is {MAX_TEXT}")
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(grammar)
    except Exception as error:  # it raises Exception itself, and recurses as deep as brackets go
        raise ValueError(f"it is not GBNF: {error}") from None
