"""The command line: generate (the default), chat, bench, info, download, quantize, eval."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pyllama2c.errors import Llama2cError

if TYPE_CHECKING:
    from pyllama2c.model import Llama

COMMANDS = ("generate", "chat", "bench", "info", "download", "quantize", "eval")

# Control characters that a model could use to play with the terminal; run.c leaves them out, too.
_CONTROL = dict.fromkeys([*range(9), *range(14, 32), 127, *range(128, 160)])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _add_model(parser: argparse.ArgumentParser, *name: str) -> None:
    parser.add_argument(
        *(name or ("model",)),
        nargs="?",
        help="path of a llama2.c checkpoint, or a known model's name; default: the embedded one",
    )
    parser.add_argument("-z", "--tokenizer", metavar="PATH", help="tokenizer.bin of the model")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "int8", "int4"),
        default="auto",
        help="what weights are computed with; auto: what the file holds",
    )
    parser.add_argument(
        "--no-speculative",
        action="store_true",
        help="do not let an int8 copy draft tokens; the story is the same",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: by model size")
    parser.add_argument(
        "--isa", choices=("auto", "scalar", "avx2", "avx512", "neon"), help="kernels"
    )


def _add_story(parser: argparse.ArgumentParser, steps: int) -> None:
    add = parser.add_argument
    add("-t", "--temperature", type=float, default=1.0, metavar="T", help="0 is greedy [1.0]")
    add("-p", "--top-p", type=float, default=0.9, metavar="P", help="nucleus; 0 and 1: off [0.9]")
    add("-s", "--seed", type=int, default=0, metavar="N", help="0: a new one each time [0]")
    add(
        "-n",
        "--steps",
        type=int,
        default=steps,
        metavar="N",
        help=f"positions, prompt included; 0: the whole context [{steps}]",
    )
    add("-i", "--prompt", default=None, metavar="TEXT", help="what the story begins with")
    add("-m", "--mode", choices=("generate", "chat"), help="as in llama2.c")
    add("-y", "--system-prompt", metavar="TEXT", help="system prompt of a chat")
    add("--top-k", type=int, default=0, metavar="K", help="keep the K most probable; 0: off")
    add("--min-p", type=float, default=0.0, metavar="P", help="keep p >= P * largest p; 0: off")
    add("--repetition-penalty", type=float, default=1.0, metavar="X", help="1: off")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pyllama2c",
        description="Llama inference in pure C. `generate` is the default command.",
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    generate = commands.add_parser("generate", help="tell a story")
    _add_model(generate)
    _add_story(generate, steps=256)
    generate.add_argument("-N", "--stories", type=int, metavar="N", help="so many, into --jsonl")
    generate.add_argument(
        "--jsonl",
        type=Path,
        metavar="PATH",
        help="one story a line; what is missing is appended to a file that exists",
    )
    generate.add_argument(
        "--batch", type=int, default=64, metavar="N", help="stories told side by side [64]"
    )
    chat = commands.add_parser("chat", help="talk to a chat model, in Llama 2's template")
    _add_model(chat)
    _add_story(chat, steps=0)
    bench = commands.add_parser("bench", help="measure tokens per second")
    _add_model(bench)
    bench.add_argument(
        "--synthetic",
        metavar="SHAPE",
        help="random weights of a known shape: stories15M, stories42M, stories110M, llama2-7b",
    )
    bench.add_argument("--prompt", type=int, default=64, metavar="N", help="prompt tokens [64]")
    bench.add_argument("--tokens", type=int, default=128, metavar="N", help="new tokens [128]")
    bench.add_argument("--rounds", type=int, default=9, metavar="N", help="medians over these [9]")
    bench.add_argument("--greedy", action="store_true", help="temperature 0 instead of 1")
    bench.add_argument("--json", action="store_true")
    info = commands.add_parser("info", help="what a model file is and what it needs")
    _add_model(info)
    info.add_argument("--json", action="store_true")
    download = commands.add_parser("download", help="fetch a known model into the cache")
    download.add_argument("name")
    quantize = commands.add_parser("quantize", help="write a float32 checkpoint as int8 (v2)")
    quantize.add_argument("source", metavar="IN")
    quantize.add_argument("target", metavar="OUT")
    quantize.add_argument("--dtype", choices=("int8",), default="int8")
    evaluate = commands.add_parser("eval", help="bits per byte and perplexity of texts")
    evaluate.add_argument("text", help="a file: passages with <|endoftext|> between them, or JSON")
    _add_model(evaluate, "-M", "--model")
    evaluate.add_argument("--json", action="store_true")
    return parser


def _load(arguments: argparse.Namespace) -> Llama:
    from pyllama2c.model import Llama

    return Llama(
        arguments.model,
        arguments.tokenizer,
        dtype=arguments.dtype,
        speculative=False if arguments.no_speculative else "auto",
        threads=arguments.threads,
        isa=arguments.isa,
    )


def write(text: str) -> None:
    """Story text, as soon as it is there."""
    sys.stdout.write(text.translate(_CONTROL))
    sys.stdout.flush()


def sampling(arguments: argparse.Namespace) -> dict[str, float | int | None]:
    """The keyword arguments of Llama.generate that the flags stand for."""
    return {
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
        "min_p": arguments.min_p,
        "repetition_penalty": arguments.repetition_penalty,
        "seed": arguments.seed or None,  # as run.c: 0 asks for a new one
    }


def steps_of(arguments: argparse.Namespace, seq_len: int) -> int:
    """-n by run.c's rule: 0 and too many mean the whole context."""
    steps: int = arguments.steps
    if steps < 0:
        raise ValueError(f"-n is {steps}; it must be 0 or more")
    return seq_len if steps == 0 else min(steps, seq_len)


def _generate(arguments: argparse.Namespace) -> int:
    if arguments.mode == "chat":
        return _chat(arguments)
    llama = _load(arguments)
    if arguments.stories is not None or arguments.jsonl is not None:
        return _stories(llama, arguments)
    # As bytes: the shell's text need not be valid UTF-8.
    prompt = llama.tokenizer.encode(os.fsencode(arguments.prompt or ""), bos=True)
    steps = steps_of(arguments, llama.config.seq_len)
    story = llama.generate(
        prompt[: steps + 1],
        max_tokens=max(0, steps - len(prompt) + 1),
        **sampling(arguments),  # type: ignore[arg-type]
    )
    write(llama.tokenizer.decode(story.prompt_tokens))
    for piece in story:
        write(piece)
    write("\n")
    if story.stats.decode_seconds > 0:
        print(f"achieved tok/s: {story.stats.tokens_per_second:f}", file=sys.stderr)
    return 0


def _stories(llama: Llama, arguments: argparse.Namespace) -> int:
    from pyllama2c.jsonl import write_stories

    if arguments.stories is None or arguments.jsonl is None or arguments.stories < 1:
        raise ValueError("-N (1 or more) and --jsonl belong together")
    prompt = arguments.prompt or ""
    used = len(llama.tokenizer.encode(os.fsencode(prompt), bos=True))
    steps = steps_of(arguments, llama.config.seq_len)
    options = sampling(arguments) | {"max_tokens": max(0, steps - used + 1)}
    count, path = arguments.stories, arguments.jsonl
    print(write_stories(llama, path, count, prompt, arguments.batch, options), file=sys.stderr)
    return 0


def _chat(arguments: argparse.Namespace) -> int:
    if arguments.mode == "generate":
        return _generate(arguments)
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
    print(bench.to_json(result) if arguments.json else bench.to_text(result))
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from pyllama2c import info

    facts = info.describe(_load(arguments))
    print(info.to_json(facts) if arguments.json else info.to_text(facts))
    return 0


def _download(arguments: argparse.Namespace) -> int:
    from pyllama2c.hub import download_model

    for path in download_model(arguments.name):
        print(path)
    return 0


def _quantize(arguments: argparse.Namespace) -> int:
    from pyllama2c.quantize import quantize_file

    size = quantize_file(arguments.source, arguments.target)
    print(f"{arguments.target}: {size:,} bytes")
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    import json

    from pyllama2c.evaluate import evaluate, read_passages, to_text

    passages = read_passages(arguments.text)  # before the model is opened
    result = evaluate(_load(arguments), passages)
    print(json.dumps(result._asdict(), indent=2) if arguments.json else to_text(result))
    return 0


_RUN = {
    "generate": _generate,
    "chat": _chat,
    "bench": _bench,
    "info": _info,
    "download": _download,
    "quantize": _quantize,
    "eval": _evaluate,
}


def _warn(message: Warning | str, *_: object) -> None:
    print(f"pyllama2c: warning: {message}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit status; no traceback for a user's mistake."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0] not in COMMANDS and argv[0] not in ("-h", "--help")):
        argv.insert(0, "generate")
    arguments = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    with warnings.catch_warnings():
        warnings.showwarning = _warn  # type: ignore[assignment]
        try:
            return _RUN[arguments.command](arguments)
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            return 130
        except BrokenPipeError:
            # The reader has gone (`| head`): say nothing, now or when Python flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except (Llama2cError, OSError, ValueError, MemoryError) as error:
            message = " ".join(str(error).split()) or type(error).__name__
            print(f"pyllama2c: error: {message}", file=sys.stderr)
            return 1
