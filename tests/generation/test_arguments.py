"""Wrong arguments raise at once: TypeError or ValueError, with the argument's name and value."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from environment import run_python
from tiny import Shape, TinyLlama

from pyllama2c import BatchParameters, CheckpointError, Llama, Parameters, Tokenizer
from pyllama2c._ffi import DTYPES, ISA_NAMES, KV_DTYPES
from pyllama2c.convert import convert
from pyllama2c.convert.quantize import quantize_file
from pyllama2c.engine.options import Dtype, Isa, KvDtype, OpenOptions, Options
from pyllama2c.files.gguf import Gguf
from pyllama2c.generation.request import make_request

HUGE = 10**5000
"""has no repr on Python 3.11 and later"""

NO_INTEGERS = (1.5, 2.0, "3", True, np.True_, math.nan, [1], b"1", 1j, np.array([1]))
NO_NUMBERS = ("0.5", True, np.True_, [0.5], b"1", 1j, np.array([0.5]))

OF_A_STORY: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    # name: what is of a wrong type, what is of a wrong value
    "max_tokens": (NO_INTEGERS, (-1, -HUGE)),
    "temperature": ((*NO_NUMBERS, None), (-0.1, math.nan, math.inf, 1e39, HUGE)),
    "top_p": ((*NO_NUMBERS, None), (-0.1, 1.1, math.nan)),
    "top_k": ((*NO_INTEGERS, None), (-1, 2**31)),
    "min_p": ((*NO_NUMBERS, None), (-0.1, 1.1, math.nan)),
    "repetition_penalty": ((*NO_NUMBERS, None), (0, -1, 1e-50, math.nan, math.inf)),
    "presence_penalty": ((*NO_NUMBERS, None), (math.nan, math.inf, -math.inf, -1e39, HUGE)),
    "frequency_penalty": ((*NO_NUMBERS, None), (math.nan, math.inf, -math.inf, -1e39, HUGE)),
    "logit_bias": (
        (5, "a", {(1, 2)}, {"5": 1.0}, {True: 1.0}, {5: "1"}, {5: None}, {5: True}),
        ({-1: 1.0}, {300: 1.0}, {HUGE: 1.0}, {5: math.nan}, {5: math.inf}, {5: 1e39}, {5: -1e39}),
    ),
    "logprobs": (NO_INTEGERS, (-1, 65, HUGE)),
    "seed": (NO_INTEGERS, (-2, 2**64, HUGE)),
    "stop": ((5, b"a", [5], {"a": 1}, [None]), ("", ["a", ""])),
    "stop_tokens": ((5, "a", ["a"], [1.5], [True], b"ab", {1: 2}), ([-1], [2**31])),
    "logits_processor": ((5, "f", [1]), ()),
}
OF_A_MODEL: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "tokenizer": ((5, b"x", ["x"]), ("a\0b",)),
    "dtype": ((5, None, [], True), ("float64", "")),
    "kv_dtype": ((5, None, []), ("int8",)),
    "isa": ((5, []), ("sse", "")),
    "context": (NO_INTEGERS, (0, -1, 97)),
    "threads": (NO_INTEGERS, (0, -1, 257)),
    "device": ((5, [], b"cpu"), ("gpu", "cuda:", "")),
    "speculative": ((1, 0, None, [], np.array([1, 2])), ("yes", "")),
}


def test_every_option_of_a_model_is_tested() -> None:
    assert OF_A_MODEL.keys() == {"tokenizer", *(field.name for field in fields(Options))}


def cases(table: dict[str, Any]) -> list[Any]:
    return [
        pytest.param(name, value, kind, id=f"{name}-{kind.__name__}-{i}")
        for name, both in table.items()
        for kind, values in zip((TypeError, ValueError), both, strict=True)
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize(("name", "value", "kind"), cases(OF_A_STORY))
def test_parameters_of_a_story(llama: Llama, name: str, value: Any, kind: type) -> None:
    said = "stop string" if name == "stop" and kind is ValueError else name
    with pytest.raises(kind, match=said):
        llama.generate("a", **{name: value})
    with pytest.raises(kind, match=said):
        llama.chat([{"role": "user", "content": "a"}], **{name: value})
    if not isinstance(value, list) or (name in ("stop", "stop_tokens") and value != [None]):
        with pytest.raises(kind, match=said):
            llama.generate_batch(["a", "b"], **{name: value})
    if (name, value) not in (("stop", [None]), ("stop_tokens", 5)):  # which are right as lists
        with pytest.raises(kind):
            llama.generate_batch(["a", "b"], **{name: [value, value]})


@pytest.mark.parametrize(("name", "value", "kind"), cases(OF_A_MODEL))
def test_options_of_a_model(tiny_path: Path, name: str, value: Any, kind: type) -> None:
    data = TinyLlama.random(Shape()).v0()
    for new in (lambda **o: Llama(tiny_path, **o), lambda **o: Llama.from_buffer(data, **o)):
        with pytest.raises(kind, match=name):
            new(**{name: value})


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda m: Llama(5), TypeError, "model is 5; it must be a path"),
        (lambda m: Llama(b"x"), TypeError, "model is b'x'"),
        (lambda m: Llama("a\0b"), ValueError, "NUL"),
        (lambda m: Llama(""), ValueError, "model is ''; it must be a path that is not empty"),
        (lambda m: quantize_file("", "a"), ValueError, "source is ''"),
        (lambda m: quantize_file("a", ""), ValueError, "target is ''"),
        (lambda m: convert("", "a"), ValueError, "source is ''"),
        (lambda m: convert("a", ""), ValueError, "target is ''"),
        (lambda m: Llama.from_buffer(5), TypeError, "checkpoint is 5"),
        (lambda m: Llama.from_buffer("x"), TypeError, "checkpoint is 'x'"),
        (lambda m: m.generate(5), TypeError, "prompt is 5"),
        (lambda m: m.generate(None), TypeError, "prompt is None"),
        (lambda m: m.generate([1.5, 2]), TypeError, r"prompt\[0\] is 1.5"),
        (lambda m: m.generate([1, True]), TypeError, r"prompt\[1\] is True"),
        (lambda m: m.generate({1, 2}), TypeError, "prompt is {1, 2}"),
        (lambda m: m.generate(bytearray(b"ab")), TypeError, "prompt is bytearray"),
        (lambda m: m.generate([1, HUGE]), ValueError, "outside the vocabulary"),
        (lambda m: m.generate_batch(5), TypeError, "prompts is 5"),
        (lambda m: m.generate_batch(["a"], n=1.5), TypeError, "n is 1.5"),
        (lambda m: m.generate_batch(["a"], n=True), TypeError, "n is True"),
        (lambda m: m.generate_batch(["a"], max_batch=2.5), TypeError, "max_batch is 2.5"),
        (lambda m: m.generate_batch(["a"], in_order=1), TypeError, "in_order is 1"),
        (lambda m: m.logits("ab"), TypeError, "tokens is 'ab'"),
        (lambda m: m.logits([[1, 2]]), TypeError, r"tokens\[0\] is \[1, 2\]"),
        (lambda m: m.score(5), TypeError, "prompt is 5"),
        (lambda m: m.score_batch(5), TypeError, "texts is 5"),
        (lambda m: m.score_batch(["a"], starts=5), TypeError, "starts is 5"),
        (lambda m: m.score_batch(["a"], starts=[1.0]), TypeError, "start is 1.0"),
        (lambda m: m.save_cache(5, "a"), TypeError, "path is 5"),
        (lambda m: m.load_cache(None), TypeError, "path is None"),
        (lambda m: m.tokenizer.encode(5), TypeError, "text is 5"),
        (lambda m: m.tokenizer.encode("a", bos=1), TypeError, "bos is 1"),
        (lambda m: m.tokenizer.decode(5), TypeError, "tokens is 5"),
        (lambda m: m.tokenizer.decode("ab"), TypeError, "tokens is 'ab'"),
        (lambda m: m.tokenizer.decode([1.0]), TypeError, "is 1.0"),
        (lambda m: m.tokenizer.piece(True), TypeError, "is True"),
        (lambda m: Tokenizer(5), TypeError, "path is 5"),
        (lambda m: Tokenizer("x", 1.5), TypeError, "vocab_size is 1.5"),
        (lambda m: Tokenizer("x", 0), ValueError, "vocab_size is 0"),
        (lambda m: Gguf(5), TypeError, "path is 5"),
    ],
)
def test_other_arguments(
    llama: Llama, call: Callable[[Llama], object], kind: type, message: str
) -> None:
    with pytest.raises(kind, match=message):
        call(llama)


def test_numbers_of_numpy_are_numbers(tiny_path: Path) -> None:
    i = np.int64
    with Llama(tiny_path, threads=i(1), context=np.int32(90)) as llama:
        options = {"temperature": np.float32(0.5), "top_k": np.uint8(7), "stop_tokens": [i(2)]}
        story = llama.generate(np.array([1, 5]), seed=np.uint64(3), max_tokens=i(9), **options)
        plain = llama.generate([1, 5], seed=3, max_tokens=9, temperature=0.5, top_k=7)
        plain.read(), story.read()
        assert story.seed == 3 and story.prompt_tokens == [1, 5]
        assert llama.logits(np.array([1, 5], np.uint16)).shape == (2, 300)
        assert llama.tokenizer.decode(np.array([260, 261])) == "ab"
        (batched,) = llama.generate_batch([[1, 5]], n=i(1), seed=3, max_tokens=9, **options)
        assert batched.tokens == story.tokens


def test_none_and_minus_one(llama: Llama) -> None:
    assert llama.generate("a", stop=None, seed=1).read() == llama.generate("a", seed=1).read()
    for seed in (None, -1):
        assert len({llama.generate("a", seed=seed).seed for _ in range(5)}) > 1
        stories = list(llama.generate_batch(["a"] * 5, seed=seed, max_tokens=1))
        assert len({story.seed for story in stories}) > 1


@pytest.mark.parametrize(
    ("result", "kind", "message"),
    [
        (1.0, ValueError, r"shape \(\); it must return None or \(300,\)"),
        (np.zeros(299), ValueError, r"shape \(299,\)"),
        (np.zeros((1, 300)), ValueError, r"shape \(1, 300\)"),
        ("x", TypeError, "logits_processor returned"),
        (np.zeros(300, bool), TypeError, "bool values"),
        (np.zeros(300, complex), TypeError, "complex128 values"),
    ],
)
def test_what_a_processor_returns(llama: Llama, result: Any, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        llama.generate("a", logits_processor=lambda tokens, logits: result).read()


def test_handles_are_not_copied(llama: Llama) -> None:
    story = llama.generate("ab", seed=1, max_tokens=9)
    next(story)
    batch = llama.generate_batch(["ab"])
    for handle in (story, batch, llama.tokenizer, story._session, llama._engine.sessions):
        name = f"a {type(handle).__name__} cannot be copied or pickled"
        for way in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=name):
                way(handle)


def test_buffers() -> None:
    data = TinyLlama.random(Shape()).v0()
    expected = Llama.from_buffer(data).logits([1, 5])
    for offset in (1, 2, 3):
        shifted = memoryview(bytes(offset) + data)[offset:]
        assert (Llama.from_buffer(shifted).logits([1, 5]) == expected).all()
    assert (Llama.from_buffer(np.frombuffer(data, np.uint8)).logits([1, 5]) == expected).all()
    for empty in (bytearray(), b"", np.empty(0, np.uint8)):
        with pytest.raises(CheckpointError, match="<memory>: checkpoint is empty"):
            Llama.from_buffer(empty)
        with pytest.raises(CheckpointError):
            Gguf.from_buffer(empty)
    with pytest.raises(ValueError, match="checkpoint is a buffer that is not contiguous"):
        Llama.from_buffer(memoryview(data)[::2])
    with pytest.raises(ValueError, match="data is a buffer that is not contiguous"):
        Gguf.from_buffer(memoryview(data)[::2])


@pytest.mark.parametrize("flags", ["-O", "-OO"])
def test_without_asserts(tiny_path: Path, flags: str) -> None:
    code = (
        "import sys\n"
        "from pyllama2c import ClosedError, Llama\n"
        "llama = Llama(sys.argv[1])\n"
        "tokenizer = llama.tokenizer\n"
        "llama.close()\n"
        "tokenizer.close()\n"
        "for use in (lambda: llama.tokenizer, lambda: llama.chat_template, llama.generate,\n"
        "            lambda: llama.generate([1]), lambda: llama.logits([1]),\n"
        "            lambda: llama.score([1, 2]), lambda: llama.generate_batch([[1]]),\n"
        "            lambda: tokenizer.encode('a'), lambda: tokenizer.decode([5])):\n"
        "    try:\n"
        "        use()\n"
        "    except ClosedError:\n"
        "        print('closed')\n"
    )
    done = run_python(flags, "-c", code, str(tiny_path))
    assert done.stdout == "closed\n" * 9, done.stderr


def test_types_and_defaults_of_the_same_parameters_agree() -> None:
    """Each list of them has them all, so that a new one is not forgotten."""

    def defaults(function: Callable[..., Any], *others: str) -> dict[str, Any]:
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.name not in ("self", *others)}

    asked = defaults(Llama.generate, "prompt")
    for kind in (Parameters, BatchParameters):
        assert list(kind.__annotations__) == list(asked)
    assert make_request.__kwdefaults__.items() >= asked.items()
    opened = defaults(Llama.__init__, "model")
    assert defaults(Llama.from_buffer, "checkpoint") == opened
    assert list(OpenOptions.__annotations__) == list(opened)
    assert vars(Options()).items() == {**opened}.items() - {("tokenizer", None)}
    for names, kind in ((DTYPES, Dtype), (KV_DTYPES, KvDtype), (ISA_NAMES, Isa)):
        assert set(get_args(kind)) == set(names)
