"""What ends an answer, and which pieces are control tokens: one rule for every vocabulary, whether
a model is opened or converted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""GGUF's types of pieces: text, and what is no text or is found before text is looked at"""

END_TEXTS = frozenset(
    [
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|calls|>",
        "<|flush|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<eos>",
        "</s>",
        "<turn|>",
        "<|tool_response>",
        "<｜end▁of▁sentence｜>",
    ]
)
"""what ends a turn or a text whatever the file says of it: llama.cpp's list"""

_FORM = re.compile(
    r"<\|[^<>|]+\|?>|<[^<>|\s]+\|>|<｜[^<>｜]+｜>|<(start|end)_of_\w+>|\[/?[A-Z][A-Z_ ]+\]"
)
"""`<|user|>`, `<|turn>`, `<turn|>`, `<｜User｜>`, `<start_of_turn>`, `[INST]`: nobody's prose"""


def _end_texts(known: set[str]) -> set[str]:
    """Those of the texts `known` that end an answer.

    gpt-oss and Solar end a message with `<|end|>`, and an answer of several with another token;
    in Gemma 4's vocabulary `</s>` is HTML.
    """
    ends = END_TEXTS & known
    if known & {"<|call|>", "<|calls|>"} and known & {"<|return|>", "<|flush|>"}:
        ends -= {"<|end|>"}
    if "<|tool_response>" in known:
        ends -= {"</s>"}
    return set(ends)


def settle(
    texts: Sequence[str],
    types: Sequence[int],
    *,
    template: str | None,
    named: Iterable[int],
    listed: Iterable[int] = (),
) -> tuple[list[int], frozenset[int]]:
    """Types of the pieces as they are meant, and the ids that end an answer.

    `template` is the file's chat template. `named` are the ids of BOS, EOS and the ends of turns,
    which are control tokens and ends; `listed` are further ends, which may be text (a newline).

    Control tokens are the pieces of type CONTROL, the texts that end an answer, and pieces in a
    control token's form that the template writes: a vocabulary that calls them NORMAL or
    USER_DEFINED would let any message write them. Other user-defined pieces stay text.
    """
    template = template or ""
    ends = _end_texts(set(texts))
    named, listed = set(named), set(listed)
    settled, ids = list(types), named | listed
    for i, (text, kind) in enumerate(zip(texts, types, strict=True)):
        if text in ends:
            ids.add(i)
        if kind == BYTE or len(text) == 1:
            continue  # a single character is text
        formed = kind in (NORMAL, USER_DEFINED) and _FORM.fullmatch(text) is not None
        if (
            text in ends
            or i in named
            or (i in listed and (formed or kind == USER_DEFINED))
            or (formed and text in template)
        ):
            settled[i] = CONTROL
    return settled, frozenset(ids)
