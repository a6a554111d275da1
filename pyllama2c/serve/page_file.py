"""The page as one file that needs no server: engine, model and tokenizer are in it.

The browser runs it from the disk: a Worker has the engine as WebAssembly, and a policy in the
file's head lets its own script run and nothing else, nor anything be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllama2c import wasm
from pyllama2c._ffi import DTYPES, KV_DTYPES, ffi, lib
from pyllama2c.errors import UnsupportedError
from pyllama2c.files.gguf import Gguf
from pyllama2c.serve.explain import sums_in_turn
from pyllama2c.tokenizers.gguf import SentencePieceTokenizer, Vocabulary, engine_vocabulary
from pyllama2c.tokenizers.llama2c import Tokenizer

if TYPE_CHECKING:
    from pyllama2c.model import Llama
    from pyllama2c.tokenizers.base import BaseTokenizer

MAX_MODEL_BYTES = 256 << 20
"""as base64 it is one string, and browsers end those at 512 MiB"""

MAX_MEMORY_BYTES = 2 << 30
"""of file, weights and a story's context: more than the engine takes in one piece of a memory whose
addresses have 32 bits"""


def page_file(llama: Llama) -> bytes:
    """The page of a model that was opened from a file, as UTF-8: computed as it was opened.

    UnsupportedError for a model that is too large or takes too much memory, for one that is
    computed as runq.c does, and for a tokenizer that is not in the engine.
    """
    if llama._arguments is None:
        raise UnsupportedError("a page is written of a model's file; this one is from memory")
    *_, options = llama._arguments
    size = os.path.getsize(llama.path)
    if size > MAX_MODEL_BYTES:
        raise UnsupportedError(
            f"{llama.path} has {size:,} bytes; a page holds {MAX_MODEL_BYTES:,} at most"
        )
    needed, context = _memory(llama), llama.config.seq_len
    if needed > MAX_MEMORY_BYTES:
        raise UnsupportedError(
            f"{llama.path} with a context of {context:,} takes {needed:,} bytes of memory; a page "
            f"has {MAX_MEMORY_BYTES:,} at most (a shorter context or a smaller dtype takes less)"
        )
    if sums_in_turn(llama):
        raise UnsupportedError(
            f"{llama.path} is computed as runq.c does, with the C library's exp; a browser has "
            "another, and its stories would differ"
        )
    how, tokenizer = tokenizer_parts(llama.tokenizer, llama.path)
    facts = {
        "name": os.fsencode(os.path.basename(llama.path)).decode(errors="replace"),
        "dtype": DTYPES[options.dtype],
        "kv_dtype": KV_DTYPES[options.kv_dtype],
        "context": llama.config.seq_len,
        "tokenizer": how,
    }
    folder = files("pyllama2c.serve") / "page"
    html, style, script, excerpts = (
        (folder / name).read_text(encoding="utf-8")
        for name in ("index.html", "page.css", "page.js", "excerpts.json")
    )
    script = wasm.page_engine() + script
    parts = [
        _data("module", wasm.load()),
        _data("model-file", Path(llama.path).read_bytes()),
        _data("tokenizer-file", tokenizer),
        _text("facts", "application/json", _json(facts)),
        _text("excerpts", "application/json", _json(json.loads(excerpts))),
        _text("worker", "text/plain", wasm.worker()),
        f'<script type="module">{_checked(script)}</script>\n',
    ]
    policy = (
        f"default-src 'none'; script-src 'sha256-{_hash(script)}' 'wasm-unsafe-eval'; "
        f"style-src 'sha256-{_hash(style)}'; worker-src blob:; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    meta = f'<meta charset="utf-8">\n<meta http-equiv="content-security-policy" content="{policy}">'
    for old, new in (
        ('<meta charset="utf-8">', meta),
        ('<link rel="stylesheet" href="page.css">', f"<style>{_checked(style)}</style>"),
        ('<script src="page.js" type="module"></script>\n', ""),
        ("</body>", "".join(parts) + "</body>"),
    ):
        before, found, after = html.partition(old)
        if not found:
            raise ValueError(f"index.html has lost {old}")
        html = before + new + after
    return html.encode()


def _memory(llama: Llama) -> int:
    """Bytes that a page's engine takes: file, weights (unless they stay in it), one story."""
    model, options = llama._engine.model, llama._engine.session_options
    file, weights = lib.l2c_model_file_bytes(model), lib.l2c_model_bytes(model)
    story = lib.l2c_session_bytes(model, 1, options.context, options.kv, 1)
    return int(file + (weights if weights != file else 0) + story)


def tokenizer_parts(tokenizer: BaseTokenizer, path: str) -> tuple[dict[str, Any], bytes]:
    """What pyllama2c/wasm/tokenizer.js makes a tokenizer of: facts and bytes. `path` is the model's
    file. UnsupportedError for one that it cannot make."""
    facts: dict[str, Any] = {
        "add_bos": tokenizer.add_bos,
        "adds_space": tokenizer.adds_space,
        "ends": sorted(tokenizer.ends),
        "special": tokenizer._special.tokens,
        "user_defined": tokenizer._user_defined.tokens,
    }
    if isinstance(tokenizer, SentencePieceTokenizer):
        with Gguf(path) as gguf:
            vocabulary = Vocabulary(gguf, "llama", tokenizer.vocab_size)
            lists, data = _lists(vocabulary, tokenizer._scheme)
        stripping = {*vocabulary.strips.left, *vocabulary.strips.right}
        for text, number in tokenizer._user_defined.tokens:
            if number in stripping:
                raise UnsupportedError(
                    f"{path}: token {text!r:.50} absorbs the white space beside it, which a page's "
                    "tokenizer cannot do"
                )
        decoded = {number: piece.decode() for number, piece in tokenizer._decoded.items()}
        facts |= {"kind": "lists", "scheme": tokenizer._scheme, "decoded": [*decoded.items()]}
        return facts | {"as_is": sorted(tokenizer._as_is)} | lists, data
    if isinstance(tokenizer, Tokenizer):
        facts |= {"kind": "file", "scheme": None, "decoded": (), "as_is": ()}
        return facts, Path(tokenizer.path).read_bytes()
    raise UnsupportedError(
        f"{tokenizer.path}: a page has no byte-level tokenizer; models with llama2.c's or "
        "SentencePiece's work"
    )


def _lists(v: Vocabulary, scheme: str | None) -> tuple[dict[str, Any], bytes]:
    vocabulary, lists = engine_vocabulary(v, scheme)
    names = ("n_pieces", "text_bytes", "split_spaces", "bos", "eos", "unknown")
    has_merges = lists["merges"] != ffi.NULL
    facts: dict[str, Any] = {name: int(getattr(vocabulary, name)) for name in names}
    facts["n_merges"] = vocabulary.n_merges if has_merges else None
    sizes = dict.fromkeys(("scores", "lengths", "types"), 4 * v.size)
    sizes |= {"merges": 8 * vocabulary.n_merges, "text": facts["text_bytes"]}
    data = b"".join(bytes(ffi.buffer(lists[name], size)) for name, size in sizes.items() if size)
    return facts, data


def _data(name: str, data: bytes) -> str:
    return _text(name, "text/plain", base64.b64encode(data).decode())


def _text(name: str, kind: str, text: str) -> str:
    return f'<script type="{kind}" id="{name}">{_checked(text)}</script>\n'


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _checked(text: str) -> str:
    """Text of ours that HTML takes as it is, up to the end of its element."""
    if any(sign in text for sign in ("</script", "</style", "<!--")):
        raise ValueError("text of the page would end its own element")
    return text


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
