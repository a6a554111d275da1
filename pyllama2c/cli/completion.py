"""Completion scripts for shells, made of the parser by shtab."""

from __future__ import annotations

from pyllama2c.cli.arguments import build_parser, subcommands
from pyllama2c.errors import UnsupportedError
from pyllama2c.files.hub import Registry

_FILES = ("tokenizer", "file", "jsonl", "source", "target", "text")
"""arguments that are paths"""


def script(shell: str) -> str:
    try:
        import shtab
    except ImportError:
        raise UnsupportedError(
            "completion needs the package shtab: pip install 'pyllama2c[completion]'"
        ) from None
    parser = build_parser()
    names = list(Registry().models)
    for command in subcommands(parser).values():
        command.description = None  # the one line of the list of commands does
        for action in command._actions:
            if action.dest in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.dest == "model":
                action.complete = _models_or_files(names)  # type: ignore[attr-defined]
            elif action.dest == "name":
                action.choices = names
    return str(shtab.complete(parser, shell))


def _models_or_files(names: list[str]) -> dict[str, str | dict[str, str]]:
    words, function = " ".join(names), "_pyllama2c_models"
    bash = f'{function}() {{ compgen -W "{words}" -- $1; _shtab_compgen_files $1; }}'
    return {
        "bash": function,
        "zsh": function,
        "fish": f"{words} (__fish_complete_path (commandline -ct))",
        "preamble": {"bash": bash, "zsh": f"{function}() {{ compadd {words}; _files }}"},
    }
