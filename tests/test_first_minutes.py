"""What newcomers type first, out of the habits of transformers, llama-cpp-python, vLLM, OpenAI's
client, ollama, llm and llama.cpp: it works, or one line says what to type here."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from environment import run_python
from tiny import Shape, TinyLlama, tokenizer_file

import pyllama2c
from pyllama2c import Llama

# What works as it is typed, and what it has to give.
WORKS = {
    "transformers": [
        "Llama('stories.bin').generate('Once', max_tokens=5).read()",
        "llama.generate('Once', max_tokens=5, temperature=0.7, top_k=50, top_p=0.95).read()",
        "llama.generate('Once', max_tokens=5, repetition_penalty=1.2, min_p=0.05).read()",
        "llama.tokenizer.decode(llama.tokenizer.encode('Once upon'))",
        "''.join(piece for piece in llama.generate('Once', max_tokens=5))",
    ],
    "llama-cpp-python": [
        "llama.generate('Q: Name a friend. A:', max_tokens=8, stop=['Q:', '\\n'], seed=-1).read()",
        "llama.generate('Once', max_tokens=5, stop=None, seed=1337).text",
        "llama.generate([1, 260, 270], max_tokens=5).tokens",
    ],
    "OpenAI": [
        "llama.generate('Once', max_tokens=5, presence_penalty=0.5, frequency_penalty=0.5).read()",
        "llama.generate('Once', max_tokens=5, logit_bias={260: -100}, seed=1).read()",
        "llama.generate('Once', max_tokens=5, logprobs=3).read()",
        "list(llama.generate_batch(['Once'], n=2, max_tokens=5))[0].finish_reason",
    ],
    "vLLM": [
        "[story.text for story in llama.generate_batch(['Once', 'One day'], max_tokens=5)]",
    ],
}

# What does not, and what has to be named instead.
ANSWERED = {
    "transformers": [
        ("pyllama2c.pipeline('text-generation')", "Llama(model)"),
        ("pyllama2c.AutoModelForCausalLM.from_pretrained('owner/name')", "Llama(model)"),
        ("pyllama2c.AutoTokenizer.from_pretrained('owner/name')", "Llama(model).tokenizer"),
        ("llama.generate('Once', max_new_tokens=20)", "max_tokens"),
        ("llama.generate('Once', do_sample=False)", "temperature"),
        ("llama.generate('Once', num_return_sequences=2)", "generate_batch"),
        ("llama.generate('Once', eos_token_id=2)", "stop_tokens"),
        ("llama.generate('Once', streamer=None)", "iterating"),
        ("llama.to('cuda')", "device="),
        ("llama.tokenizer('Once', return_tensors='pt')", "encode(text)"),
        ("llama.tokenizer.batch_decode([[1, 2]])", "decode(ids)"),
        ("llama.tokenizer.eos_token_id", "eos_id"),
        ("llama.generate('Once')[0]['generated_text']", "use text"),
    ],
    "llama-cpp-python": [
        ("Llama(model_path='stories.bin')", "model"),
        ("Llama('stories.bin', n_ctx=128)", "context"),
        ("Llama.from_buffer(b'', n_ctx=128)", "context"),
        ("Llama('stories.bin', n_gpu_layers=-1)", "device"),
        ("Llama('stories.bin', verbose=False)", "prints nothing"),
        ("llama('Q: Name the planets. A: ', max_tokens=32, echo=True)", "generate(prompt)"),
        ("llama.create_completion('Once', max_tokens=5)", "generate(prompt)"),
        ("llama.create_chat_completion(messages=[])", "chat(messages)"),
        ("llama.generate('Once')['choices'][0]['text']", "use text"),
        ("llama.tokenize(b'Once')", "tokenizer.encode"),
        ("llama.generate('Once', repeat_penalty=1.1)", "repetition_penalty"),
        ("llama.create_embedding('Once')", "no embeddings"),
    ],
    "OpenAI": [
        ("llama.generate('Once', stream=True)", "iterating"),
        ("llama.generate('Once', max_completion_tokens=5)", "max_tokens"),
        ("llama.chat([], response_format={'type': 'json_object'})", "json_schema"),
        ("llama.generate('Once').choices[0].text", "text"),
    ],
    "vLLM": [
        ("pyllama2c.LLM('stories.bin')", "Llama(model)"),
        ("pyllama2c.SamplingParams(temperature=0.8)", "Llama.generate"),
        ("Llama('stories.bin', max_model_len=128)", "context"),
        ("llama.generate_batch(['Once'], num_beams=2)", "n=..."),
    ],
}

SHELL_WORKS = {
    "llama2.c": ["stories.bin -t 0.8 -n 20 -i Once", "stories.bin -s 7 -p 0.9 -n 20"],
    "llama.cpp": ["stories.bin --prompt Once --temp 0.5 --top-k 40 --seed 1 --max-tokens 5"],
    "ollama": ["list", "help", "--version"],
    "llm": ["generate stories.bin --json --max-tokens 5 -i Once"],
}

SHELL_ANSWERED = {
    "ollama": [
        ("run stories15M", "use generate or chat"),
        ("pull stories15M", "use download"),
        ("show stories.bin", "use info"),
    ],
    "llama.cpp": [
        ("-m stories.bin -p Once -n 20", "named without a flag"),
        ("stories.bin -p Once", "prompts go after -i"),
        ("stories.bin -c 512", "--context"),
        ("stories.bin --n-predict 5", "--max-tokens"),
    ],
    "llm": [
        ("'Five names for a pelican'", "prompts go after -i"),
        ("stories.bin -o temperature 0.5", "--temperature"),
        ("models", "use list"),
    ],
}


def cases(table: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(*((case,) if isinstance(case, str) else case), id=f"{source}-{i}")
        for source, listed in table.items()
        for i, case in enumerate(listed)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A newcomer's: one model, and its tokenizer beside it."""
    (tmp_path / "stories.bin").write_bytes(TinyLlama.random(Shape()).v0())
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_file())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYLLAMA2C_CACHE", str(tmp_path / "cache"))
    return tmp_path


def typed(line: str, folder: Path) -> object:
    with Llama(folder / "stories.bin") as llama:
        return eval(line, {"pyllama2c": pyllama2c, "Llama": Llama, "llama": llama})


@pytest.mark.parametrize("line", cases(WORKS))
def test_it_works(line: str, folder: Path) -> None:
    assert typed(line, folder) is not None


@pytest.mark.parametrize(("line", "ours"), cases(ANSWERED))
def test_one_line_says_what_to_type(line: str, ours: str, folder: Path) -> None:
    with pytest.raises((TypeError, AttributeError)) as error:
        typed(line, folder)
    message = str(error.value)
    assert "; use " in message and "\n" not in message
    assert ours in message.partition("; ")[2]


@pytest.mark.parametrize("line", cases(SHELL_WORKS))
def test_the_command_works(line: str, folder: Path) -> None:
    done = run_python("-m", "pyllama2c", *shlex.split(line), cwd=folder)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize(("line", "ours"), cases(SHELL_ANSWERED))
def test_the_command_says_what_to_type(line: str, ours: str, folder: Path) -> None:
    done = run_python("-m", "pyllama2c", *shlex.split(line), cwd=folder)
    assert done.returncode in (1, 2) and done.stdout == ""
    assert ours in done.stderr and done.stderr.count("\n") == 1
