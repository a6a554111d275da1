"""What the command line understands: commands and flags, run.c's own among them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from pyllama2c import __version__
from pyllama2c.cli import help_texts
from pyllama2c.cli.model_flags import add_model
from pyllama2c.cli.sampling_flags import add_sampling
from pyllama2c.cli.serve_flags import add_page, add_serve, add_verify
from pyllama2c.cli.shard import parse_shard

COMMANDS = (
    "generate",
    "chat",
    "bench",
    "info",
    "download",
    "list",
    "rm",
    "quantize",
    "convert",
    "eval",
    "serve",
    "verify",
    "page",
    "completion",
    "help",
)

_TAKE_NUMBERS = ("-t", "-p", "-s", "-n")
_TAKE_TEXT = ("-i", "-z", "-y", "--prompt", "--system-prompt", "--stop", "--file", "--regex")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        found = re.match(r"unrecognized arguments: (\S+)", message)
        if found:
            message += help_texts.advice(found[1])
        found = re.match(r"argument (\S+): invalid", message)
        if found and found[1] in help_texts.RUN_C:
            message += f"; {help_texts.RUN_C[found[1]]}"
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        # Before Python 3.13 argparse takes `--` away here, and leaves an empty list as the value.
        if action.option_strings and arg_strings == ["--"]:
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)


class _Command(_Parser):
    """A command, with the help and the flags that each has."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        _teach(self, *help_texts.COMMANDS[self.prog.split()[-1]])
        self.add_argument("-q", "--quiet", action="store_true", help="print no messages but errors")


def _teach(parser: argparse.ArgumentParser, description: str, examples: str) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = description
    parser.epilog = f"examples:\n{examples}"


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


def _add_story(
    parser: argparse._ActionsContainer, steps: int, prompt: str
) -> argparse._MutuallyExclusiveGroup:
    """The flags of a story; returns the group of those that say its prompt."""
    add = parser.add_argument
    run_c = partial(add, action=_RunC)
    run_c("-t", "--temperature", type=float, default=1.0, metavar="T", help="0 is greedy [1.0]")
    run_c("-p", "--top-p", type=float, default=0.9, metavar="P", help="nucleus; 0, 1: off [0.9]")
    run_c("-s", "--seed", type=int, default=0, metavar="N", help="0: a new one each time [0]")
    length = f"positions, prompt included; 0: the whole context [{steps}]"
    run_c("-n", "--steps", type=int, metavar="N", help=length)
    parser.set_defaults(default_steps=steps)
    add("--max-tokens", type=int, metavar="N", help="new tokens at most, not counting the prompt")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("-i", "--prompt", metavar="TEXT", help=prompt)
    add(
        "-m",
        "--mode",
        choices=("generate", "chat"),
        help="run.c's way to choose between the two commands",
    )
    add("-y", "--system-prompt", metavar="TEXT", help="system prompt of a chat")
    add_sampling(parser)
    add(
        "--stop",
        action="append",
        metavar="TEXT",
        help="text that ends the story, not included; may be given several times",
    )
    add(
        "--stop-token",
        action="append",
        type=int,
        metavar="ID",
        help="token id that ends it, besides the model's own; may be given several times",
    )
    return prompts


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pyllama2c")
    _teach(parser, *help_texts.GENERAL)
    parser.add_argument("--version", action="version", version=f"pyllama2c {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, parser_class=_Command, title="commands", metavar="COMMAND"
    )
    generate = commands.add_parser("generate", help="tell a story")
    add_model(generate.add_argument_group("model"))
    prompts = _add_story(
        generate.add_argument_group("story"), steps=256, prompt="what the story begins with"
    )
    prompts.add_argument(
        "--file",
        metavar="PATH",
        help="read the prompt from PATH; -: from standard input, the default if that is a pipe",
    )
    generate.add_argument(
        "--special",
        action="store_true",
        help="read <s> and other control tokens in the prompt as such, not as text",
    )
    add = generate.add_argument_group("output").add_argument
    add(
        "--json",
        action="store_true",
        help="print one JSON object at the end: text, tokens, seed, finish_reason, stats",
    )
    add(
        "--logprobs",
        type=int,
        metavar="K",
        help="also give each token's log-probability and the K likeliest (0 to 64), in --json, in "
        "--jsonl, or on standard error",
    )
    add("-N", "--stories", type=int, metavar="N", help="how many, into --jsonl")
    add(
        "--jsonl",
        type=Path,
        metavar="PATH",
        help="one story a line; a file that has some of them is completed; -: standard output",
    )
    shard = "only every n-th of the -N stories, from story i on (0 <= i < n); needs --seed"
    add("--shard", type=parse_shard, metavar="i/n", help=shard)
    add("--batch", type=int, default=64, metavar="N", help="stories at a time [64]")
    chat = commands.add_parser(
        "chat", help="talk to a chat model, in its file's template or Llama 2's"
    )
    add_model(chat.add_argument_group("model"))
    _add_story(chat.add_argument_group("answers"), steps=0, prompt="your first message")
    chat.set_defaults(file=None, special=False, json=False, logprobs=None)
    bench = commands.add_parser("bench", help="measure tokens per second")
    add_model(bench)
    bench.add_argument(
        "--synthetic",
        metavar="SHAPE",
        help="random weights of a known shape: stories15M, stories42M, stories110M, llama2-7b",
    )
    bench.add_argument("--prompt", type=int, default=64, metavar="N", help="prompt tokens [64]")
    bench.add_argument("--tokens", type=int, default=128, metavar="N", help="new tokens [128]")
    bench.add_argument("--rounds", type=int, default=9, metavar="N", help="medians over these [9]")
    bench.add_argument("--greedy", action="store_true", help="temperature 0 instead of 1")
    _add_json(bench)
    info = commands.add_parser("info", help="what a model file is and what it needs")
    add_model(info)
    _add_json(info)
    download = commands.add_parser("download", help="fetch a model into the cache")
    download.add_argument("name", help="a known model, or hf://owner/name[@revision][/file]")
    listing = commands.add_parser("list", help="known models and those of the hub: which are here")
    _add_json(listing)
    remove = commands.add_parser("rm", help="remove models from the cache")
    remove.add_argument("name", nargs="+", help="a known model, or hf://owner/name[@revision]")
    quantize = commands.add_parser("quantize", help="write a float32 checkpoint as int8 (v2)")
    quantize.add_argument("source", metavar="IN", help="a float32 checkpoint")
    quantize.add_argument("target", metavar="OUT", help="the int8 checkpoint to write")
    quantize.add_argument("--dtype", choices=("int8",), default="int8", help="[int8]")
    convert = commands.add_parser("convert", help="write a Hugging Face or Meta folder as GGUF")
    convert.add_argument("source", metavar="SRC", help="folder with config.json or params.json")
    convert.add_argument("target", metavar="DST", help="the GGUF file to write")
    convert.add_argument(
        "--dtype",
        choices=("float32", "float16", "int8", "int4"),
        default="float16",
        help="what matrices are written as [float16]",
    )
    without = "leave the tokenizer out of the file"
    convert.add_argument("--no-tokenizer", action="store_true", help=without)
    evaluate = commands.add_parser("eval", help="bits per byte and perplexity of texts")
    evaluate.add_argument("text", help="a file: passages with <|endoftext|> between them, or JSON")
    add_model(evaluate, "-M", "--model")
    _add_json(evaluate)
    add_serve(commands)
    add_verify(commands)
    add_page(commands)
    completion = commands.add_parser("completion", help="print a completion script for your shell")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell to write for")
    helper = commands.add_parser("help", help="what a command does")
    helper.add_argument(
        "topic", nargs="?", choices=COMMANDS, metavar="COMMAND", help="[an overview of all]"
    )
    return parser


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)
