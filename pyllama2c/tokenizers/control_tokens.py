"""Which pieces are control tokens, and which end an answer: the same rules when a model is opened
and when it is converted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""GGUF's types of pieces; USER_DEFINED ones are matched whole, before the rest is tokenized"""

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
"""end a turn or a text even if the file does not say so: llama.cpp's list"""

_FORM = re.compile(
    r"<\|[^<>|]+\|?>|<[^<>|\s]+\|>|<｜[^<>｜]+｜>|<(start|end)_of_\w+>|\[/?[A-Z][A-Z_ ]+\]"
)
"""`<|user|>`, `<|turn>`, `<turn|>`, `<｜User｜>`, `<start_of_turn>`, `[INST]`: not prose"""


def _end_texts(known: set[str]) -> set[str]:
    """The texts among `known` that end an answer.

    gpt-oss and Solar end a message with `<|end|>`, and an answer of several messages with another
    token; in Gemma 4's vocabulary `</s>` is HTML.
    """
    ends = END_TEXTS & known
    if known & {"<|call|>", "<|calls|>"} and known & {"<|return|>", "<|flush|>"}:
        ends -= {"<|end|>"}
    if "<|tool_response>" in known:
        ends -= {"</s>"}
    return set(ends)


def classify(
    texts: Sequence[str],
    types: Sequence[int],
    *,
    template: str | None,
    named: Iterable[int],
    listed: Iterable[int] = (),
) -> tuple[list[int], frozenset[int]]:
    """The types that the pieces should have, and the ids that end an answer.

    `template` is the file's chat template. `named` are the ids of BOS, EOS and end of turn, which
    are control tokens and end an answer; `listed` also end one, but may be text (a newline).

    Control tokens are the pieces of type CONTROL, the texts that end an answer, and pieces that
    look like control tokens and appear in the template: as NORMAL or USER_DEFINED pieces, any
    message could produce them. Other user-defined pieces stay text.
    """
    template = template or ""
    ends = _end_texts(set(texts))
    named, listed = set(named), set(listed)
    out, ids = list(types), named | listed
    for i, (text, kind) in enumerate(zip(texts, types, strict=True)):
        if text in ends:
            ids.add(i)
        if kind == BYTE or len(text) == 1:
            continue  # a single character is text
        looks_like_control = kind in (NORMAL, USER_DEFINED) and _FORM.fullmatch(text) is not None
        if (
            text in ends
            or i in named
            or (i in listed and (looks_like_control or kind == USER_DEFINED))
            or (looks_like_control and text in template)
        ):
            out[i] = CONTROL
    return out, frozenset(ids)
