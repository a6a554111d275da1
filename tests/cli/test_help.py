"""What --help says, and completion scripts in the shells themselves."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from environment import run_python

from pyllama2c.cli import help_texts
from pyllama2c.cli.arguments import COMMANDS, as_run_c_pairs, build_parser, subcommands


def command(*words: str) -> str:
    done = run_python("-m", "pyllama2c", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def examples() -> list[list[str]]:
    texts = [help_texts.GENERAL[1], *(text for _, text in help_texts.COMMANDS.values())]
    lines = [line.split(" > ")[0].split("| ")[-1] for text in texts for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines]


def test_examples_are_commands_that_parse() -> None:
    assert len(examples()) > 20
    for program, *words in examples():
        assert program == "pyllama2c"
        name = words.pop(0) if words and words[0] in COMMANDS else "generate"
        assert build_parser().parse_args([name, *as_run_c_pairs(words)]).command == name


def test_every_command_has_help() -> None:
    assert list(subcommands(build_parser())) == list(COMMANDS)
    assert set(help_texts.COMMANDS) == set(COMMANDS)
    shown = command("help")
    for name in COMMANDS:
        assert f"\n    {name}" in shown
    assert "GGUF" in shown and "pyllama2c chat model.gguf" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_says_what_it_is_for(name: str) -> None:
    actions = subcommands(build_parser())[name]._actions
    assert not [action.dest for action in actions if not action.help]


@pytest.mark.parametrize("name", ["generate", "chat"])
def test_help_names_what_the_command_takes(name: str) -> None:
    helps = {action.dest: action.help for action in subcommands(build_parser())[name]._actions}
    assert "Lark" in helps["grammar"] and "GBNF" in helps["grammar"]
    assert ("message" in helps["prompt"]) == (name == "chat")


def test_the_commands_page_lists_every_command() -> None:
    page = (Path(__file__).parents[2] / "docs" / "shell.md").read_text(encoding="utf-8")
    table = page.partition("| command |")[2].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    assert sorted(re.findall(r"`(\w+)`", "".join(rows))) == sorted(COMMANDS)


def script(shell: str, folder: Path) -> Path:
    pytest.importorskip("shtab", reason="completion scripts need the shtab package")
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = folder / "_pyllama2c"
    path.write_text(command("completion", shell))
    return path


COMPLETE = {
    "bash": """
        source "$1"; shift; cd "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        _shtab_pyllama2c
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "fish": 'source $argv[1]; cd $argv[2]; complete -C (string join " " -- $argv[3..])',
}


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_completion(shell: str, tmp_path: Path) -> None:
    path = script(shell, tmp_path)
    (tmp_path / "some.gguf").touch()

    def offered(*words: str) -> set[str]:
        """What the shell offers for the last of `words`."""
        name = [] if shell == "fish" else [shell]
        line = [shell, "-c", COMPLETE[shell], *name, str(path), str(tmp_path), "pyllama2c", *words]
        done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return {row.split("\t")[0] for row in done.stdout.splitlines()}

    assert {"chat", "completion", "convert"} <= offered("c")
    assert "bench" not in offered("c")
    assert {"--stop", "--stop-token", "--steps"} <= offered("generate", "--st")
    assert {"float32", "int8"} <= offered("chat", "--dtype", "")
    assert {"stories15M", "some.gguf"} <= offered("chat", "s")
    assert "some.gguf" in offered("eval", "so")
    assert "stories110M" in offered("rm", "st") and "some.gguf" not in offered("rm", "s")


def test_zsh_takes_its_script(tmp_path: Path) -> None:
    """As the help says: in a folder of fpath. To see it complete would need a terminal."""
    path = script("zsh", tmp_path)
    code = 'fpath+="$1"; autoload -Uz compinit; compinit -u -D; print -r -- ${_comps[pyllama2c]}; '
    code += "autoload +X _pyllama2c && print loaded"
    line = ["zsh", "-f", "-c", code, "zsh", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.stdout.split() == ["_pyllama2c", "loaded"], done.stderr
    assert "compadd stories260K" in path.read_text()


def test_a_shell_that_is_not_known() -> None:
    assert run_python("-m", "pyllama2c", "completion", "sh").returncode == 2


def test_completion_without_shtab(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['shtab'] = None; from pyllama2c.cli.main import main; "
        "sys.exit(main(['completion', 'bash']))"
    )
    done = run_python("-c", code)
    assert done.returncode == 1 and done.stdout == ""
    assert "pip install 'pyllama2c[completion]'" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "stories15M"), "use generate or chat"),
        (("ls",), "use list"),
        (("pull", "stories15M"), "use download"),
        (("show", "stories15M"), "use info"),
        (("--max-new-tokens", "5"), "use --max-tokens"),
        (("--max_tokens=5",), "use --max-tokens"),
        (("chat", "--model", "stories15M"), "without a flag"),
        (("-V",), "use --version"),
        (("Once upon a time",), "prompts go after -i"),
        (("Once", "upon"), "prompts go after -i"),
        (("-q", "info"), "put the command first"),
        (("-m", "model.gguf", "-p", "Once"), "the model is named without a flag"),
        (("-p", "Once"), "prompts go after -i"),
        (("-s", "Be brief."), "a system prompt goes after -y"),
        (("-o", "temperature", "0.5"), "use --temperature"),
        (("-c", "512"), "use --context"),
        (("--n-gpu-layers=99",), "use --device cuda"),
        (("--stream",), "a story streams anyway"),
        (("--repeat-penalty", "1.1"), "use --repetition-penalty"),
    ],
)
def test_habits_of_other_programs_are_told_ours(words: tuple[str, ...], message: str) -> None:
    done = run_python("-m", "pyllama2c", *words)
    assert done.returncode in (1, 2) and done.stdout == ""
    assert message in done.stderr and done.stderr.count("\n") == 1


def test_what_other_programs_call_it_is_free_here() -> None:
    flags = {
        flag for c in subcommands(build_parser()).values() for flag in c._option_string_actions
    }
    here = {*flags, "--version", *COMMANDS}
    for elsewhere, ours in help_texts.ELSEWHERE.items():
        assert elsewhere not in here - {"--model"}  # which eval has
        named = [word for word in ours.split() if word in here]
        assert named or "without a flag" in ours
