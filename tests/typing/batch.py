"""Many stories."""

from collections.abc import Iterator
from typing import Literal

from typing_extensions import assert_type

from pyllama2c import Completion, Completions, Llama, TokenLogprob

llama = Llama()
assert_type(llama.generate_batch(["a", b"b", [1, 2]], n=2, max_batch=8), Completions)
stories: Iterator[Completion] = llama.generate_batch(["a"], in_order=True)
prompts = ["Once", "One day"]
for story in llama.generate_batch(
    prompts,
    max_tokens=[10, None],
    temperature=[0.5, 1],
    seed=range(2),
    stop=[["."], None],
    stop_tokens=[[2], (1, 2)],
    logprobs=0,
    logit_bias=[None, {5: -1.0}],
    logits_processor=[None, lambda tokens, logits: logits * 2],
):
    assert_type(story, Completion)
    assert_type(story.prompt_index, int)
    assert_type(story.choice, int)
    assert_type(story.tokens, list[int])
    assert_type(story.finish_reason, Literal["stop", "length", "error"])
    assert_type(story.logprobs, tuple[TokenLogprob, ...] | None)
    if story.error is not None:
        raise story.error
    print(prompts[story.prompt_index], story.text)
    story.text = "else"  # type: ignore[misc] # pyright: ignore[reportAttributeAccessIssue]

endless = (f"Story {i}" for i in range(10**9))
texts: list[str] = [story.text for story in llama.generate_batch(endless, stop=".", seed=1)]

llama.generate_batch(prompts, top_k=["a"])  # type: ignore[list-item] # pyright: ignore[reportArgumentType]
