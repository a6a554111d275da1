"""Stories, as somebody writes them who has a type checker."""

import os
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack, assert_type

from pyllama2c import Config, Generation, GenerationStats, Llama, Parameters, TokenLogprob

llama = Llama("stories15M", dtype="int8", kv_dtype="float16", context=128, device="cuda:1")
Llama(Path("model.bin"), "tokenizer.bin", threads=2, isa="avx2", speculative=False)
Llama.from_pretrained("owner/name", "*q8_0.gguf", revision="main", dtype="int4", threads=3)
assert_type(Llama.from_buffer(Path("model.bin").read_bytes()), Llama)
assert_type(llama.config, Config)
assert_type(llama.max_batch, int)

story = llama.generate("Once", max_tokens=200, temperature=0.8, top_p=0.9, seed=7, stop="\n")
assert_type(story, Generation)
for piece in story:
    assert_type(piece, str)
assert_type(story.text, str)
assert_type(story.read(), str)
assert_type(story.tokens, list[int])
assert_type(story.stats, GenerationStats)
assert_type(story.stats.tokens_per_second, float)
if story.finish_reason is not None:
    assert_type(story.finish_reason, Literal["stop", "length", "cancelled"])

biased = llama.generate("Once", logit_bias={5: 1.5}, presence_penalty=0.5, logprobs=3)
for told in biased.logprobs:
    assert_type(told, TokenLogprob)
    assert_type(told.top, tuple[tuple[int, float], ...])
llama.generate(b"bytes", stop=["a", "b"], stop_tokens={1, 2})
llama.generate([1, 2, 3], max_tokens=None, seed=None, stop=None, stop_tokens=None)
llama.generate(llama.tokenizer.encode("ids", bos=True))


def shout(tokens: list[int], logits: NDArray[np.float32]) -> None:
    logits[tokens[-1]] = -np.inf


def replace(ids: list[int], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    return scores * 2


llama.generate(logits_processor=shout)
llama.generate(logits_processor=replace)


def tell(model: Llama, **parameters: Unpack[Parameters]) -> str:
    return model.generate("Once", **parameters).read()


tell(llama, temperature=0, max_tokens=5)
sampling: Parameters = {"temperature": 0.5, "seed": 3}
tell(llama, **sampling)
with Llama() as opened, opened.generate("Once") as held:
    assert_type(next(held), str)
llama.save_cache(Path(os.sep) / "cache", "Once")
assert_type(llama.load_cache("cache"), list[int])

llama.generate("Once", temprature=0.8)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]
llama.generate(temperature="hot")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
tell(llama, seed="7")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
Llama(dtype="int7")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
