"""The command line: generate (the default), chat, bench, info, download, quantize and others."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from pyllama2c.cli.arguments import COMMANDS, as_run_c_pairs, build_parser
from pyllama2c.cli.flags import load, model_options
from pyllama2c.cli.help_texts import ELSEWHERE
from pyllama2c.cli.streams import (
    ERROR,
    be_quiet,
    coloured,
    complain,
    give_up_stdout,
    open_closed,
    say,
    show,
)
from pyllama2c.errors import Llama2cError, in_words
from pyllama2c.progress import hide, watched


def _generate(arguments: argparse.Namespace) -> int:
    """`generate` and `chat`, which run.c's -m may swap."""
    if (arguments.mode or arguments.command) == "chat":
        from pyllama2c.cli.chat import chat

        for name in ("file", "special", "json", "logprobs"):
            value = getattr(arguments, name)
            if value is not None and value is not False:
                raise ValueError(f"--{name} is for one story, not for a chat")
        return chat(load(arguments), arguments)
    from pyllama2c.cli.generate import print_json, tell_stories, tell_story

    llama = load(arguments)
    flags = ("stories", "jsonl", "shard")
    if arguments.command == "generate" and any(getattr(arguments, f) is not None for f in flags):
        return tell_stories(llama, arguments)
    return print_json(llama, arguments) if arguments.json else tell_story(llama, arguments)


def _bench(arguments: argparse.Namespace) -> int:
    from pyllama2c.cli import bench

    if arguments.synthetic and arguments.model:
        raise ValueError("name a model or a --synthetic shape, not both")
    if arguments.synthetic:
        llama = bench.synthetic(arguments.synthetic, **model_options(arguments))
    else:
        llama = load(arguments)
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
    from pyllama2c.cli import info
    from pyllama2c.engine.options import Options

    options = Options(**model_options(arguments))
    facts = info.describe(arguments.model, options)
    show(info.to_json(facts) if arguments.json else info.to_text(facts))
    return 0


def _download(arguments: argparse.Namespace) -> int:
    from pyllama2c.pretrained import download_model

    for path in download_model(arguments.name):
        show(path)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from pyllama2c.cli.models import list_models

    return list_models(arguments)


def _remove(arguments: argparse.Namespace) -> int:
    from pyllama2c.cli.models import remove

    return remove(arguments)


def _quantize(arguments: argparse.Namespace) -> int:
    from pyllama2c.convert.quantize import quantize_file

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
    from pyllama2c.cli.evaluate import evaluate, read_passages, to_json, to_text

    passages = read_passages(arguments.text)  # before the model is opened
    result = evaluate(load(arguments), passages)
    show(to_json(result) if arguments.json else to_text(result))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from pyllama2c.cli.serve import serve

    return serve(arguments)


def _verify(arguments: argparse.Namespace) -> int:
    from pyllama2c.cli.serve import verify

    return verify(arguments)


def _page(arguments: argparse.Namespace) -> int:
    from pyllama2c.cli.page import page

    return page(arguments)


def _completion(arguments: argparse.Namespace) -> int:
    from pyllama2c.cli.completion import script

    show(script(arguments.shell))
    return 0


def _help(arguments: argparse.Namespace) -> int:
    build_parser().parse_args([*([arguments.topic] if arguments.topic else []), "--help"])
    return 0


_RUN = {
    "generate": _generate,
    "chat": _generate,
    "bench": _bench,
    "info": _info,
    "download": _download,
    "list": _list,
    "rm": _remove,
    "quantize": _quantize,
    "convert": _convert,
    "eval": _evaluate,
    "serve": _serve,
    "verify": _verify,
    "page": _page,
    "completion": _completion,
    "help": _help,
}


def _warn(message: Warning | str, *_: object) -> None:
    say(f"pyllama2c: warning: {message}")


def _with_command(argv: list[str]) -> list[str]:
    """The words, behind `generate` where they begin with no command."""
    first = argv[0] if argv else "generate"
    if first in COMMANDS or first in ("-h", "--help", "--version"):
        return argv or [first]
    if first in ELSEWHERE and not first.startswith("-") and not os.path.exists(first):
        return ["generate", first]  # no model either: what follows means nothing here
    return ["generate", *argv]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit status; no traceback for a user's mistake."""
    argv = _with_command(list(sys.argv[1:] if argv is None else argv))
    open_closed()
    with warnings.catch_warnings():
        warnings.showwarning = _warn  # type: ignore[assignment]
        try:
            arguments = build_parser().parse_args([argv[0], *as_run_c_pairs(argv[1:])])
            be_quiet(arguments.quiet)
            hide(arguments.quiet)
            return _RUN[arguments.command](arguments)
        except KeyboardInterrupt:
            say("")
            return 130
        except BrokenPipeError:
            return 141  # the reader has gone (`| head`): nothing to say
        except (Llama2cError, OSError, ValueError, MemoryError) as error:
            message = " ".join(in_words(error).split()) or type(error).__name__
            complain(coloured("pyllama2c: error:", ERROR, sys.stderr) + f" {message}")
            return 1
        finally:
            be_quiet(False)  # whoever calls this from Python goes on as before
            hide(False)
            give_up_stdout()
