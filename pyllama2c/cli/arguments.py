"""What the command line understands: commands and flags, run.c's own among them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn

COMMANDS = ("generate", "chat", "bench", "info", "download", "quantize", "convert", "eval")

_TAKE_NUMBERS = ("-t", "-p", "-s", "-n")
_TAKE_TEXT = ("-i", "-z", "-y", "--prompt", "--system-prompt")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # Before Python 3.13 argparse takes `--` away here, and leaves an empty list as the value.
        if action.option_strings and arg_strings == ["--"]:
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)


class _RunC(argparse.Action):
    """run.c's own flags mean what they do there; their long names take the library's values."""

    _RULES: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "-t": lambda t: 0.0 if t < 0 else t,
        "-p": lambda p: 0.9 if p < 0 or p > 1 else p,
        "-s": lambda s: s % 2**64 if s < 0 else s,  # atoi's int, as an unsigned long long
        "-n": lambda n: max(n, 0),
    }

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        rule = self._RULES.get(option_string or "")
        setattr(namespace, self.dest, values if rule is None else rule(values))


def as_run_c_pairs(words: Sequence[str]) -> list[str]:
    """Joins run.c's flags to values that begin with a dash, as prompts may: argparse would take one
    for a flag."""
    joined: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            return [*joined, word, *rest]
        value = next(rest, None) if word in (*_TAKE_NUMBERS, *_TAKE_TEXT) else None
        if value is None:
            joined.append(word)
        elif value == "--" and word in _TAKE_NUMBERS:
            return [*joined, word, value, *rest]
        elif value.startswith("-"):
            joined.append(f"{word}={value}" if word.startswith("--") else word + value)
        else:
            joined += [word, value]
    return joined


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
        "--context",
        type=int,
        metavar="N",
        help="positions of a story at most; default: the model's",
    )
    parser.add_argument(
        "--kv-dtype",
        choices=("float32", "float16"),
        default="float32",
        help="what keys and values are kept in; float16: half the memory of a context [float32]",
    )
    parser.add_argument(
        "--no-speculative",
        action="store_true",
        help="do not let an int8 copy draft tokens; the story is the same",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: by model size")
    parser.add_argument(
        "--isa", choices=("auto", "scalar", "avx2", "avx512", "neon", "runq"), help="kernels"
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="cpu, cuda or cuda:N (an NVIDIA card): the story is the same [$PYLLAMA2C_DEVICE, cpu]",
    )


def _add_story(parser: argparse.ArgumentParser, steps: int) -> None:
    add = parser.add_argument
    run_c = partial(add, action=_RunC)
    run_c("-t", "--temperature", type=float, default=1.0, metavar="T", help="0 is greedy [1.0]")
    run_c("-p", "--top-p", type=float, default=0.9, metavar="P", help="nucleus; 0, 1: off [0.9]")
    run_c("-s", "--seed", type=int, default=0, metavar="N", help="0: a new one each time [0]")
    length = f"positions, prompt included; 0: the whole context [{steps}]"
    run_c("-n", "--steps", type=int, default=steps, metavar="N", help=length)
    add("-i", "--prompt", metavar="TEXT", help="what the story begins with")
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
    generate.add_argument("-N", "--stories", type=int, metavar="N", help="how many, into --jsonl")
    generate.add_argument(
        "--jsonl",
        type=Path,
        metavar="PATH",
        help="one story a line; a file that has some of them is completed; -: standard output",
    )
    generate.add_argument(
        "--batch", type=int, default=64, metavar="N", help="stories at a time [64]"
    )
    chat = commands.add_parser(
        "chat", help="talk to a chat model, in its file's template or Llama 2's"
    )
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
    convert = commands.add_parser("convert", help="write a Hugging Face or Meta folder as GGUF")
    convert.add_argument("source", metavar="SRC", help="folder with config.json or params.json")
    convert.add_argument("target", metavar="DST", help="the GGUF file to write")
    convert.add_argument(
        "--dtype",
        choices=("float32", "float16", "int8", "int4"),
        default="float16",
        help="what matrices are written as [float16]",
    )
    convert.add_argument(
        "--no-tokenizer", action="store_true", help="leave the tokenizer out of the file"
    )
    evaluate = commands.add_parser("eval", help="bits per byte and perplexity of texts")
    evaluate.add_argument("text", help="a file: passages with <|endoftext|> between them, or JSON")
    _add_model(evaluate, "-M", "--model")
    evaluate.add_argument("--json", action="store_true")
    return parser
