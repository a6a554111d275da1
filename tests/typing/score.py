"""Scores, logits, tokens."""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

from pyllama2c import BaseTokenizer, Llama, Score, Tokenizer

llama = Llama()
score = llama.score("Once upon a time")
assert_type(score, Score)
assert_type(score.logprobs, list[float | None])
assert_type(score.perplexity, float)
known = [logprob for logprob in score.logprobs if logprob is not None]
assert_type(sum(known) / len(known), float)
for each in llama.score_batch(["a", b"b", [1, 2]], starts=[1, 1, 1]):
    assert_type(each.greedy, bool)
assert_type(llama.logits([1, 2]), NDArray[np.float32])
assert_type(llama.tokenizer, BaseTokenizer)
assert_type(Tokenizer("tokenizer.bin").encode("a", bos=True), list[int])
assert_type(llama.tokenizer.decode([1, 2]), str)
