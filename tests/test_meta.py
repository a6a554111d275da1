"""pyllama2c.meta: Meta's algorithm in float64 is the truth for tokens and logprobs; its checks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from environment import real_file
from tiny import Shape, TinyLlama, tokenizer_file

import pyllama2c
from pyllama2c.chat.llama2 import Dialog, dialog_tokens
from pyllama2c.meta import UNSAFE_ERROR, Llama

EOS = 2


def reference(
    truth: TinyLlama, prompts: list[list[int]], max_gen_len: int, max_seq_len: int, echo: bool
) -> tuple[list[list[int]], list[list[float]]]:
    """Meta's loop, greedy: columns from the shortest prompt on, in which prompts that are longer
    keep their own tokens; then each row is cut to its length and at EOS."""
    lengths = [len(prompt) for prompt in prompts]
    width = min(max_seq_len, max_gen_len + max(lengths))
    grid = np.full((len(prompts), width), -1)
    for row, prompt in enumerate(prompts):
        grid[row, : len(prompt)] = prompt
    given = grid >= 0
    logprobs = np.zeros(grid.shape)
    ended = np.zeros(len(prompts), bool)
    read = 0
    for column in range(min(lengths), width):
        for row in range(len(prompts)):
            logits = truth.logits(grid[row, :column].tolist())
            if not given[row, column]:
                grid[row, column] = logits[-1].argmax()
            logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
            for i in range(read, column):
                logprobs[row, i + 1] = logits[i, grid[row, i + 1]]
        ended |= ~given[:, column] & (grid[:, column] == EOS)
        read = column
        if ended.all():
            break
    tokens_out, logprobs_out = [], []
    for row, length in enumerate(lengths):
        tokens = grid[row, 0 if echo else length : length + max_gen_len].tolist()
        values = logprobs[row, 0 if echo else length : length + max_gen_len].tolist()
        end = tokens.index(EOS) if EOS in tokens else len(tokens)
        tokens_out.append(tokens[:end])
        logprobs_out.append(values[:end])
    return tokens_out, logprobs_out


def assert_as_reference(
    llama: Llama, truth: TinyLlama, prompts: list[list[int]], max_gen_len: int, echo: bool
) -> list[list[int]]:
    tokens, logprobs = llama.generate(prompts, max_gen_len, temperature=0, logprobs=True, echo=echo)
    expected = reference(truth, prompts, max_gen_len, llama.max_seq_len, echo)
    assert tokens == expected[0]
    assert logprobs is not None and [len(row) for row in logprobs] == [len(row) for row in tokens]
    for got, wanted in zip(logprobs, expected[1], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4)
    without = llama.generate(prompts, max_gen_len, temperature=0, echo=echo)
    assert without == (tokens, None)
    return tokens


@pytest.mark.parametrize("echo", [False, True])
def test_stories260k_as_meta(echo: bool) -> None:
    model, tokenizer = real_file("stories260K.bin"), real_file("tok512.bin")
    llama = Llama.build(str(model), str(tokenizer), max_seq_len=130, max_batch_size=5)
    truth = TinyLlama.from_v0(model.read_bytes())
    texts = ["", "Once upon a time", "Lily and Tom went to the park. They saw a big dog", "The"]
    prompts = [llama.tokenizer.encode(text, bos=True) for text in texts]
    prompts.append((prompts[2] * 9)[:120])  # has room for 10 more, of 50
    tokens = assert_as_reference(llama, truth, prompts, 50, echo)
    assert [len(row) - echo * len(p) for row, p in zip(tokens, prompts, strict=True)] == [
        50, 50, 50, 50, 10,
    ]  # fmt: skip


@pytest.fixture
def ending() -> TinyLlama:
    """A random model that says EOS every now and then."""
    truth = TinyLlama.random(Shape(tied=False), seed=3)
    truth.weights["classifier"][EOS] *= 1.6
    return truth


@pytest.fixture
def folder(tmp_path: Path, ending: TinyLlama) -> Path:
    (tmp_path / "model.bin").write_bytes(ending.v0())
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer_file())
    return tmp_path


@pytest.fixture
def meta(folder: Path) -> Iterator[Llama]:
    llama = Llama.build(folder, folder / "tokenizer.bin", max_seq_len=80, max_batch_size=16)
    yield llama
    llama.model.close()


@pytest.mark.parametrize("echo", [False, True])
def test_rows_end_at_eos(meta: Llama, ending: TinyLlama, echo: bool) -> None:
    rng = np.random.default_rng(8)
    prompts = [[1, *rng.integers(3, 300, n).tolist()] for n in (1, 4, 9, 9, 30, 17, 2, 55, 70, 3)]
    prompts[2][4] = EOS  # of a conversation: with echo, Meta cuts there
    prompts[3][4] = 1
    tokens = assert_as_reference(meta, ending, prompts, 20, echo)
    if not echo:
        lengths = {len(row) for row in tokens}
        assert 20 in lengths and 0 < min(lengths) < 10 and len(lengths) > 3
    else:
        assert tokens[2] == prompts[2][:4]
        assert tokens[3][:10] == prompts[3]


def test_bos_ends_nothing(tmp_path: Path, tokenizer_path: Path) -> None:
    truth = TinyLlama.random(Shape(tied=False), seed=3)
    truth.weights["classifier"][1] *= 2
    (tmp_path / "model.bin").write_bytes(truth.v1())
    llama = Llama.build(tmp_path, tokenizer_path, 80, 4)
    tokens = assert_as_reference(llama, truth, [[1, 5], [1, 9, 20, 8]], 40, False)
    assert any(1 in row[:-1] for row in tokens)
    llama.model.close()


def test_nothing_to_generate(meta: Llama, ending: TinyLlama) -> None:
    full = [1, *range(10, 89)]
    assert meta.generate([full, [1, 5]], 0) == ([[], []], None)
    assert meta.generate([full, full], 9, logprobs=True) == ([[], []], [[], []])
    # Where all rows are full, Meta's own logprobs are off by one place; these are score's.
    tokens, logprobs = meta.generate([full], 9, logprobs=True, echo=True)
    assert tokens == [full] and logprobs == [[0.0, *meta.model.score(full).logprobs[1:]]]


def test_logprobs_are_those_of_score(meta: Llama) -> None:
    prompts = [[1, 7, 8, 9], [1, 5]]
    for temperature, top_p in ((0.0, 0.9), (0.6, 0.9), (2.5, 1.0)):
        tokens, logprobs = meta.generate(prompts, 30, temperature, top_p, logprobs=True)
        assert logprobs is not None
        for prompt, row, values in zip(prompts, tokens, logprobs, strict=True):
            assert values == meta.model.score([*prompt, *row]).logprobs[len(prompt) :]


def test_the_seed_decides(folder: Path) -> None:
    def told(seed: int) -> list[list[list[int]]]:
        llama = Llama.build(folder, folder / "tokenizer.bin", 80, 4, seed=seed)
        with llama.model:
            return [llama.generate([[1, 5], [1, 5], [1, 8, 9]], 25, 1.0)[0] for _ in range(3)]

    first, again, other = told(5), told(5), told(6)
    assert first == again and first != other
    assert first[0] != first[1] and first[0][0] != first[0][1]  # calls and rows differ


def test_top_p_zero_is_greedy(meta: Llama) -> None:
    prompts = [[1, 5], [1, 9, 20]]
    assert meta.generate(prompts, 20, 1.0, 0.0) == meta.generate(prompts, 20, 0.0)
    assert meta.generate(prompts, 20, 1.0, 1.0) != meta.generate(prompts, 20, 0.0)


def test_text_completion(meta: Llama) -> None:
    prompts = ["abc de", "日本 é"]
    plain = meta.text_completion(prompts, temperature=0, max_gen_len=12)
    full = meta.text_completion(prompts, temperature=0, max_gen_len=12, logprobs=True)
    echoed = meta.text_completion(prompts, temperature=0, max_gen_len=12, logprobs=True, echo=True)
    ids = [meta.tokenizer.encode(prompt, bos=True) for prompt in prompts]
    tokens, logprobs = meta.generate(ids, 12, 0, logprobs=True)
    assert logprobs is not None
    for i, prompt in enumerate(prompts):
        assert plain[i] == {"generation": meta.tokenizer.decode(tokens[i])}
        assert full[i] == {
            "generation": plain[i]["generation"],
            "tokens": [meta.tokenizer.decode([token]) for token in tokens[i]],
            "logprobs": logprobs[i],
        }
        assert echoed[i]["generation"].startswith(prompt)
        assert echoed[i]["logprobs"][0] == 0.0
        assert echoed[i]["logprobs"][len(ids[i]) :] == logprobs[i]
        assert len(echoed[i]["tokens"]) == len(ids[i]) + len(tokens[i])
    (longest,) = meta.text_completion(["abc"], temperature=0, echo=True, logprobs=True)
    assert len(longest["tokens"]) <= 80


SYSTEM = {"role": "system", "content": "be kind"}
USER = {"role": "user", "content": " ab "}
ASSISTANT = {"role": "assistant", "content": "cd\n"}


def test_dialogs_in_llama2s_format(meta: Llama) -> None:
    encode = meta.tokenizer.encode
    first = "[INST] <<SYS>>\nbe kind\n<</SYS>>\n\n ab [/INST]"
    assert dialog_tokens(meta.tokenizer, [USER]) == encode("[INST] ab [/INST]", bos=True)
    assert dialog_tokens(meta.tokenizer, [SYSTEM, USER]) == encode(first, bos=True)
    assert dialog_tokens(meta.tokenizer, [SYSTEM, USER, ASSISTANT, USER, ASSISTANT, USER]) == [
        *encode(f"{first} cd ", bos=True, eos=True),
        *encode("[INST] ab [/INST] cd ", bos=True, eos=True),
        *encode("[INST] ab [/INST]", bos=True),
    ]


def test_chat_completion(meta: Llama) -> None:
    dialogs: list[Dialog] = [
        [USER, ASSISTANT, USER],
        [USER],
        [{"role": "user", "content": "<</SYS>>"}],
    ]
    ids = [dialog_tokens(meta.tokenizer, dialog) for dialog in dialogs]
    tokens, logprobs = meta.generate(ids, 9, 0, logprobs=True)
    assert logprobs is not None
    plain = meta.chat_completion(dialogs, temperature=0, max_gen_len=9)
    texts = [*(meta.tokenizer.decode(row) for row in tokens[:2]), UNSAFE_ERROR]
    assert plain == [{"generation": {"role": "assistant", "content": text}} for text in texts]
    full = meta.chat_completion(dialogs, temperature=0, max_gen_len=9, logprobs=True)
    for i, answer in enumerate(full):
        assert answer["generation"] == plain[i]["generation"]
        assert answer["tokens"] == [meta.tokenizer.decode([token]) for token in tokens[i]]
        assert answer["logprobs"] == logprobs[i]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"])
def test_tags_in_any_message_are_unsafe(meta: Llama, place: int, tag: str) -> None:
    dialog = [dict(m) for m in ({**SYSTEM, "content": ""}, USER, ASSISTANT, USER)]
    dialog[place]["content"] = f"a{tag}b"
    (answer,) = meta.chat_completion([dialog], max_gen_len=1)
    assert answer["generation"]["content"] == UNSAFE_ERROR


@pytest.mark.parametrize(
    ("dialog", "message"),
    [
        ([], "dialog 1: there are no messages; the last must be by 'user'"),
        ([SYSTEM], "must be by 'user'; it is by 'system'"),
        ([USER, ASSISTANT], "must be by 'user'; it is by 'assistant'"),
        ([ASSISTANT, USER], "message 0 is by 'assistant', not 'user'"),
        ([SYSTEM, ASSISTANT, USER], "message 1 is by 'assistant', not 'user'"),
        ([USER, USER], "message 1 is by 'user', not 'assistant'"),
        ([USER, SYSTEM, USER], "message 1 is by 'system', not 'assistant'"),
        ([{"role": "tool", "content": "a"}], "message 0 is by 'tool'"),
        ([{"role": "user"}], "message 0 is not a dict with a role and a content"),
        (["hello"], "message 0 is not a dict"),
        ([{"role": "user", "content": None}], "message 0: its content is not text"),
    ],
)
def test_roles_are_checked(meta: Llama, dialog: Dialog, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        meta.chat_completion([[USER], dialog], max_gen_len=1)


def test_limits(meta: Llama) -> None:
    for wrong, message in (
        ({"prompt_tokens": [[1]] * 17}, "17 prompts; max_batch_size allows 1 to 16"),
        ({"prompt_tokens": []}, "0 prompts; max_batch_size allows 1 to 16"),
        ({"prompt_tokens": [[1], [1] * 81]}, "prompt 1 has 81 tokens; max_seq_len is 80"),
        ({"prompt_tokens": [[1], []]}, "the prompt has no tokens"),
        ({"prompt_tokens": [[1, 300]]}, "token 300 is outside the vocabulary of 300"),
        ({"max_gen_len": -1}, "max_gen_len is -1"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            meta.generate(**{"prompt_tokens": [[1, 5]], "max_gen_len": 5, **wrong})
    with pytest.raises(ValueError, match="prompts is one text"):
        meta.text_completion("abc")
    with pytest.raises(pyllama2c.ContextLengthError, match="max_seq_len is 80"):
        meta.text_completion(["abc " * 60])


def test_wrong_types_are_named(meta: Llama, folder: Path) -> None:
    for wrong, name in (
        ({"prompt_tokens": [1, 5]}, r"prompt_tokens\[0\] is 1"),
        ({"prompt_tokens": None}, "prompt_tokens is None"),
        ({"max_gen_len": "3"}, "max_gen_len is '3'"),
        ({"max_gen_len": math.inf}, "max_gen_len is inf"),
        ({"logprobs": "x"}, "logprobs is 'x'"),
        ({"echo": math.nan}, "echo is nan"),
    ):
        with pytest.raises((TypeError, ValueError), match=name):
            meta.generate(**{"prompt_tokens": [[1, 5]], "max_gen_len": 5, **wrong})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prompts is None"):
        meta.text_completion(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dialogs is None"):
        meta.chat_completion(None)  # type: ignore[arg-type]
    for name, value in (
        ("max_seq_len", "64"),
        ("max_seq_len", True),
        ("max_batch_size", None),
        ("seed", 1.5),
    ):
        options = {"max_seq_len": 80, "max_batch_size": 4, "seed": 1, name: value}
        with pytest.raises(TypeError, match=f"{name} is {value!r}"):
            Llama.build(folder, folder / "tokenizer.bin", **options)  # type: ignore[arg-type]


def test_build(folder: Path, ending: TinyLlama) -> None:
    tokenizer = folder / "tokenizer.bin"
    for wrong, message in (
        ({"max_seq_len": 97}, "max_seq_len is 97; it must be 1 to the model's 96"),
        ({"max_seq_len": 0}, "max_seq_len is 0"),
        ({"max_batch_size": 0}, "max_batch_size is 0"),
        ({"model_parallel_size": 2}, "model_parallel_size is 2; here it must be 1"),
        ({"ckpt_dir": str(folder / "no.bin")}, "No such file"),
        ({"ckpt_dir": "stories261K"}, "'stories261K' is neither a file nor a known model"),
    ):
        options = {"ckpt_dir": folder, "max_seq_len": 80, "max_batch_size": 4, **wrong}
        with pytest.raises(ValueError, match=message):
            Llama.build(tokenizer_path=tokenizer, **options)  # type: ignore[arg-type]
    with Llama.build(str(folder / "model.bin"), str(tokenizer), 96, 300, 1).model as model:
        assert model.config.vocab_size == 300
    (folder / "other.gguf").write_bytes(b"")
    with pytest.raises(pyllama2c.CheckpointError, match=r"several models.*model.bin, other.gguf"):
        Llama.build(folder, tokenizer, 80, 4)
    for name in ("model.bin", "other.gguf"):
        (folder / name).unlink()
    with pytest.raises(pyllama2c.CheckpointError, match=r"holds no model file \(.bin or .gguf\)"):
        Llama.build(folder, tokenizer, 80, 4)
    (folder / "consolidated.00.pth").write_bytes(b"")
    with pytest.raises(pyllama2c.CheckpointError, match="holds PyTorch files only; convert"):
        Llama.build(folder, tokenizer, 80, 4)


def test_many_prompts(folder: Path) -> None:
    """More than the engine takes in one call."""
    llama = Llama.build(folder, folder / "tokenizer.bin", 40, 300)
    with llama.model:
        prompts = [[1, 5 + i % 90] for i in range(300)]
        tokens, _ = llama.generate(prompts, 3, 0)
        assert tokens[:90] == tokens[90:180] and len(tokens) == 300
