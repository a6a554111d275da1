"""The command line: generate (the default), chat, bench, info, download, quantize and others."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyllama2c import validate
from pyllama2c.arguments import COMMANDS, as_run_c_pairs, build_parser
from pyllama2c.errors import Llama2cError, in_words
from pyllama2c.progress import watched
from pyllama2c.streams import give_up_stdout, open_closed, say, show, write

if TYPE_CHECKING:
    from pyllama2c.model import Llama

_MOST_STORIES = 10_000_000
"""of one file; a list of those that are missing is kept in memory"""


def _load(arguments: argparse.Namespace) -> Llama:
    from pyllama2c.model import Llama

    return Llama(
        arguments.model,
        arguments.tokenizer,
        dtype=arguments.dtype,
        context=arguments.context,
        kv_dtype=arguments.kv_dtype,
        speculative=False if arguments.no_speculative else "auto",
        threads=arguments.threads,
        isa=arguments.isa,
    )


def sampling(arguments: argparse.Namespace) -> dict[str, float | int | None]:
    """The keyword arguments of Llama.generate that the flags stand for."""
    return {
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "seed": arguments.seed or None,  # as run.c: 0 asks for a new one; -1 does in the library
    }


def steps_of(arguments: argparse.Namespace, seq_len: int) -> int:
    """-n by run.c's rule: 0 and too many mean the whole context."""
    steps: int = arguments.steps
    if steps < 0:
        raise ValueError(f"--steps is {steps}; it must be 0 or more")
    return seq_len if steps == 0 else min(steps, seq_len)


def _generate(arguments: argparse.Namespace) -> int:
    if arguments.mode == "chat":
        return _chat(arguments)
    llama = _load(arguments)
    if arguments.stories is not None or arguments.jsonl is not None:
        return _stories(llama, arguments)
    return _story(llama, arguments)


def _story(llama: Llama, arguments: argparse.Namespace) -> int:
    # As bytes: the shell's text need not be valid UTF-8.
    prompt = llama.tokenizer.encode_prompt(os.fsencode(arguments.prompt or ""))
    steps = steps_of(arguments, llama.config.seq_len)
    options = sampling(arguments)
    if len(prompt) > steps:  # as run.c: of the prompt, what the steps show
        write(llama.tokenizer.decode(prompt[: steps + 1]) + "\n")
        say(
            f"pyllama2c: warning: the prompt has {len(prompt)} tokens, which leave no room for a "
            f"story in {steps} positions"
        )
        return 0
    story = llama.generate(
        prompt,
        max_tokens=steps - len(prompt) + 1,
        **options,  # type: ignore[arg-type]
    )
    write(llama.tokenizer.decode(story.prompt_tokens))
    for piece in story:
        write(piece)
    write("\n")
    if story.stats.decode_seconds > 0:
        say(f"achieved tok/s: {story.stats.tokens_per_second:f}")
    return 0


def _stories(llama: Llama, arguments: argparse.Namespace) -> int:
    from pyllama2c.jsonl import write_stories
    from pyllama2c.session import MAX_ROWS

    if arguments.stories is None or arguments.jsonl is None:
        raise ValueError("-N and --jsonl belong together")
    validate.integer("-N", arguments.stories, 1, _MOST_STORIES)
    validate.integer("--batch", arguments.batch, 1, MAX_ROWS)
    prompt = arguments.prompt or ""
    used = len(llama.tokenizer.encode_prompt(os.fsencode(prompt)))
    steps = steps_of(arguments, llama.config.seq_len)
    options = sampling(arguments) | {"max_tokens": max(0, steps - used + 1)}
    count, path = arguments.stories, arguments.jsonl
    say(write_stories(llama, path, count, prompt, arguments.batch, options))
    return 0


def _chat(arguments: argparse.Namespace) -> int:
    if arguments.mode == "generate":
        return _story(_load(arguments), arguments)
    from pyllama2c.chat import chat

    return chat(_load(arguments), arguments)


def _bench(arguments: argparse.Namespace) -> int:
    from pyllama2c import bench

    if arguments.synthetic and arguments.model:
        raise ValueError("name a model or a --synthetic shape, not both")
    if arguments.synthetic:
        llama = bench.synthetic(
            arguments.synthetic,
            arguments.dtype,
            context=arguments.context,
            kv_dtype=arguments.kv_dtype,
            speculative=False if arguments.no_speculative else "auto",
            threads=arguments.threads,
            isa=arguments.isa,
        )
    else:
        llama = _load(arguments)
    result = bench.measure(
        llama,
        prompt=arguments.prompt,
        tokens=arguments.tokens,
        rounds=arguments.rounds,
        temperature=0.0 if arguments.greedy else 1.0,
    )
    show(bench.to_json(result) if arguments.json else bench.to_text(result))
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from pyllama2c import info

    facts = info.describe(
        arguments.model,
        dtype=arguments.dtype,
        context=arguments.context,
        kv_dtype=arguments.kv_dtype,
        threads=arguments.threads,
        isa=arguments.isa,
        device=arguments.device,
    )
    show(info.to_json(facts) if arguments.json else info.to_text(facts))
    return 0


def _download(arguments: argparse.Namespace) -> int:
    from pyllama2c.hub import download_model

    for path in download_model(arguments.name):
        show(path)
    return 0


def _quantize(arguments: argparse.Namespace) -> int:
    from pyllama2c.quantize import quantize_file

    size = quantize_file(arguments.source, arguments.target)
    say(f"{arguments.target}: {size:,} bytes")  # the target may be standard output
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from pyllama2c.convert import convert

    size = convert(
        arguments.source,
        arguments.target,
        dtype=arguments.dtype,
        tokenizer=not arguments.no_tokenizer,
        progress=watched(),
    )
    say(f"{arguments.target}: {size:,} bytes")  # the target may be standard output
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    import json

    from pyllama2c.evaluate import evaluate, read_passages, to_text

    passages = read_passages(arguments.text)  # before the model is opened
    result = evaluate(_load(arguments), passages)
    show(json.dumps(result._asdict(), indent=2) if arguments.json else to_text(result))
    return 0


_RUN = {
    "generate": _generate,
    "chat": _chat,
    "bench": _bench,
    "info": _info,
    "download": _download,
    "quantize": _quantize,
    "convert": _convert,
    "eval": _evaluate,
}


def _warn(message: Warning | str, *_: object) -> None:
    say(f"pyllama2c: warning: {message}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit status; no traceback for a user's mistake."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0] not in COMMANDS and argv[0] not in ("-h", "--help")):
        argv.insert(0, "generate")
    open_closed()
    with warnings.catch_warnings():
        warnings.showwarning = _warn  # type: ignore[assignment]
        try:
            arguments = build_parser().parse_args([argv[0], *as_run_c_pairs(argv[1:])])
            return _RUN[arguments.command](arguments)
        except KeyboardInterrupt:
            say("")
            return 130
        except BrokenPipeError:
            return 141  # the reader has gone (`| head`): nothing to say
        except (Llama2cError, OSError, ValueError, MemoryError) as error:
            message = " ".join(in_words(error).split()) or type(error).__name__
            say(f"pyllama2c: error: {message}")
            return 1
        finally:
            give_up_stdout()
