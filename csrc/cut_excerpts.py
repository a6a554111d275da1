"""Cuts the lines of C that the page shows beside its words: pyllama2c/serve/page/excerpts.json.

`pip install .` runs it. After a change to these lines, `python csrc/cut_excerpts.py` does; a test
compares.
"""

from __future__ import annotations

import json
from pathlib import Path

CSRC = Path(__file__).resolve().parent
TARGET = CSRC.parent / "pyllama2c" / "serve" / "page" / "excerpts.json"

# step of the page: file, what its first line has, and the next line that has what the last one has
EXCERPTS = {
    "tokens": ("encode.c", "static void join_all(", "}"),
    "embedding": ("forward.c", "/* x (n, dim): the residual stream begins", "l2c_matrix_row"),
    "norm": ("forward.c", "/* RMSNorm (Zhang", "}"),
    "qkv": ("forward.c", "/* q (n, q_dim), k and v", "&w->wv"),
    "position": ("forward.c", "/* RoPE (Su et al. 2021)", "}"),
    "attention": ("attention.c", "/* out (n, head_size) = softmax(query keys^T", "}"),
    "add": ("forward.c", "/* x += attention's output", "add(s"),
    "network": ("forward.c", "/* SwiGLU (Shazeer 2020)", "hidden_part.end - hidden_part.begin"),
    "again": ("forward.c", "/* x += the network's output", "add(s"),
    "logits": ("forward.c", "/* logits (n_logits, vocab_size)", "share("),
    "coin": ("sampler.c", "static uint32_t random_u32", "static float random_f32"),
    "by_id": ("sampler.c", "/* Over all tokens, in the order of their ids. */", "}"),
    "by_probability": ("sampler.c", "float target = coin * sum", "/* rounding */"),
    "largest": ("sampler.c", "static int32_t first_largest", "}"),
}


def cut(name: str, first: str, last: str) -> dict[str, object]:
    lines = (CSRC / name).read_text(encoding="utf-8").splitlines()
    begins = [i for i, line in enumerate(lines) if first in line]
    if len(begins) != 1:
        raise SystemExit(f"{name}: {first!r} is on {len(begins)} lines; it must be on one")
    begin = begins[0]
    end = next((i for i in range(begin, len(lines)) if ends(lines[i], last)), None)
    if end is None:
        raise SystemExit(f"{name}: no line after {first!r} has {last!r}")
    taken = lines[begin : end + 1]
    margin = min(len(line) - len(line.lstrip()) for line in taken if line)
    code = "\n".join(line[margin:] for line in taken)
    return {"file": f"csrc/{name}", "line": begin + 1, "code": code}


def ends(line: str, last: str) -> bool:
    """`}` is the end of a function."""
    return line == last if last == "}" else last in line


def excerpts() -> str:
    """The content of excerpts.json."""
    found = {step: cut(*place) for step, place in EXCERPTS.items()}
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(excerpts(), encoding="utf-8")
