"""Lines of a story file: what they record, and whether a file's lines can be continued.

A record is {"index", "seed", "prompt", "settings", "text", "tokens", "finish_reason"}, and
"logprobs" where they were asked for: the settings are in every line, not in a header, so that files
of the same run can be concatenated.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from pyllama2c.cli.shard import Shard
from pyllama2c.errors import StoryFileError
from pyllama2c.files.recognize import JSON, kind_of_file
from pyllama2c.generation.request import make_request
from pyllama2c.tokenizers.digest import tokenizer_digest

if TYPE_CHECKING:
    from pyllama2c.generation.logprobs import TokenLogprob
    from pyllama2c.model import Llama

_BEGINNING = b'{"index": '
_NUMBERS = re.compile(rb'\{"index": \d+, "seed": \d+')
_LONGEST_LINE = 1 << 26
_DEFAULTS: dict[str, Any] = json.loads(
    json.dumps({**(make_request.__kwdefaults__ or {}), "kv_dtype": "float32"})
)
_ALWAYS_WRITTEN = ("temperature", "top_p", "max_tokens")


# ---- What makes a story, besides its seed ----


def _tokenizer_hash(llama: Llama, prompt: bytes) -> str:
    """Of all in a tokenizer that decides a story: the prompt's ids, the pieces, the end tokens."""
    tokenizer = llama.tokenizer
    ids = (tokenizer.encode_prompt(prompt), sorted(tokenizer.ends), tokenizer.adds_space)
    return tokenizer_digest(tokenizer, ids, 8)


def settings_of(llama: Llama, prompt: bytes, options: dict[str, Any]) -> dict[str, Any]:
    """What decides a story besides seed and prompt; most defaults are left out, for short lines."""
    engine = llama._engine
    name = os.fsencode(Path(llama.path).name).decode("utf-8", "replace")
    settings = {
        "model": name,
        "weights": f"{engine.fingerprint:016x}",
        "tokenizer": _tokenizer_hash(llama, prompt),
        "dtype": llama.config.dtype,
        "kv_dtype": engine.session_options.kv_dtype,
        **({"isa": "runq"} if llama.isa == "runq" else {}),  # all others give the same bits
        **options,
    }
    if options.get("logit_bias"):  # JSON has no infinity
        biases = sorted(options["logit_bias"].items())
        settings["logit_bias"] = {t: v if v > -math.inf else "-inf" for t, v in biases}
    return {
        name: value
        for name, value in json.loads(json.dumps(settings)).items()
        if name in _ALWAYS_WRITTEN or name not in _DEFAULTS or value != _DEFAULTS[name]
    }


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs, in words; another file name alone is not another model."""

    def value(settings: dict[str, Any], name: str) -> Any:
        return settings.get(name, _DEFAULTS.get(name))

    names = [name for name in {**old, **new} if value(old, name) != value(new, name)]
    if "weights" not in names:
        names = [name for name in names if name != "model"]
    elif {"model", "dtype", "isa"} & set(names):  # which say as much
        names.remove("weights")
    return ", ".join(f"{n} was {value(old, n)!r} and is now {value(new, n)!r}" for n in names)


def prompt_fields(prompt: bytes) -> dict[str, str]:
    """The prompt as text and, where it is not UTF-8, its bytes in hexadecimal."""
    text = prompt.decode("utf-8", "replace")
    return {"prompt": text} | ({} if text.encode() == prompt else {"prompt_bytes": prompt.hex()})


def logprob_fields(told: Iterable[TokenLogprob]) -> dict[str, list[dict[str, Any]]]:
    """What is told of each token."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": logprob if math.isfinite(logprob) else None}

    return {
        "logprobs": [
            entry(t.token, t.logprob) | {"top": [entry(*likely) for likely in t.top]} for t in told
        ]
    }


# ---- What a file holds ----


def _parse(line: bytes) -> dict[str, Any] | None:
    """One of our records, or None."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    kinds = {"index": int, "seed": int, "prompt": str, "text": str}
    if any(type(record.get(name)) is not kind for name, kind in kinds.items()):
        return None
    return record if record["index"] >= 0 and 0 <= record["seed"] < 2**64 else None


def _is_cut(line: bytes, prompt: str, after_others: bool) -> bool:
    """Whether a last line is one of ours that a kill cut short: not JSON, but the beginning of what
    we write. As the only line of a file it must have enough of that."""
    try:
        json.loads(line)
        return False
    except (ValueError, RecursionError):
        pass
    if len(line) < len(_BEGINNING) and not after_others:
        return False
    numbers = _NUMBERS.match(line)
    if numbers is None:
        return b'{"index": 0, "seed": '.startswith(re.sub(rb"\d+", b"0", line))
    said = json.dumps(prompt, ensure_ascii=False).encode()
    rest, ours = line[numbers.end() :], b', "prompt": ' + said + b', "'
    return ours.startswith(rest) or rest.startswith(ours)


class Held(NamedTuple):
    """What a file has already."""

    done: set[int]
    """indices of the stories in the file"""
    first_seed: int | None
    """of story 0; story i has this seed + i"""
    end: int
    """bytes of whole records"""
    ended: bool
    """whether the last of them has its newline"""


def read_stories(
    file: BinaryIO, path: str, expected: dict[str, Any], shard: Shard | None = None
) -> Held:
    """Reads all lines; StoryFileError for a file that cannot be continued. One of a shard has its
    stories in their order, so that another shard's is known by its first two."""
    done: set[int] = set()
    first_seed: int | None = None
    end, number, ended = 0, 0, True
    while line := file.readline(_LONGEST_LINE):
        number += 1
        record = _parse(line)
        if record is None:
            cut = not line.endswith(b"\n") and not file.read(1)
            if cut and _is_cut(line, expected["prompt"], after_others=number > 1):
                break
            kind = kind_of_file(path)
            if number == 1 and kind is not None and kind not in JSON:
                raise StoryFileError(f"{path} is {kind.what}, not stories; it is left as it is")
            raise StoryFileError(
                f"{path}, line {number}: not a story of pyllama2c; the file is left as it is"
            )
        _check(record, f"{path}, line {number}", expected)
        if shard is not None and record["index"] != shard.i + (number - 1) * shard.n:
            raise StoryFileError(
                f"{path}, line {number}: story {record['index']} where shard {shard} has story "
                f"{shard.i + (number - 1) * shard.n}: another shard's file; name this one's"
            )
        first = (record["seed"] - record["index"]) % 2**64
        if first_seed not in (None, first):
            raise StoryFileError(
                f"{path}, line {number}: its stories begin with seed {first}, those before with "
                f"{first_seed}"
            )
        first_seed = first
        done.add(record["index"])
        end += len(line)
        ended = line.endswith(b"\n")
    return Held(done, first_seed, end, ended)


def _check(record: dict[str, Any], where: str, expected: dict[str, Any]) -> None:
    for name in ("prompt", "prompt_bytes"):
        if record.get(name) != expected.get(name):
            raise StoryFileError(
                f"{where}: the prompt was {record['prompt']!r}, and is now {expected['prompt']!r}"
            )
    if not isinstance(record.get("settings"), dict):
        raise StoryFileError(f"{where} does not say how it was made: an older pyllama2c wrote it")
    differences = _differences(record["settings"], expected["settings"])
    if differences:
        raise StoryFileError(f"{where}: {differences}; name another file")
