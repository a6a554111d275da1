"""The API of facebookresearch/llama's `llama` package, over this engine: a script that used it runs
with `from pyllama2c.meta import Llama, Dialog` instead of `from llama import Llama, Dialog`.

What a method returns is what Meta's returns for greedy decoding; sampled tokens depend on the seed
as they do there, but are not those that PyTorch's random numbers would pick.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from pyllama2c import model as engine
from pyllama2c import validate
from pyllama2c.chat.llama2 import (
    Dialog,
    Message,
    Role,
    check_dialog,
    dialog_tokens,
    has_special_tags,
)
from pyllama2c.engine.session import MAX_ROWS
from pyllama2c.errors import CheckpointError, ContextLengthError

__all__ = ["ChatPrediction", "CompletionPrediction", "Dialog", "Llama", "Message", "Role"]

UNSAFE_ERROR = "Error: special tags are not allowed as part of the prompt."


class _TokenLogprobs(TypedDict, total=False):
    tokens: list[str]
    """the text of each token; this and the next only with logprobs=True"""
    logprobs: list[float]


class CompletionPrediction(_TokenLogprobs):
    generation: str


class ChatPrediction(_TokenLogprobs):
    generation: Message


def _find_checkpoint(ckpt_dir: str | os.PathLike[str], tokenizer_path: Path) -> str:
    """The model file in a folder; any other `ckpt_dir` as it is, for pyllama2c.Llama."""
    folder = Path(ckpt_dir)
    if not folder.is_dir():
        return os.fspath(ckpt_dir)
    files = sorted(path for ending in ("*.bin", "*.gguf") for path in folder.glob(ending))
    no_model = {"tokenizer.bin", tokenizer_path.name}
    models = [path for path in files if path.name not in no_model]
    if len(models) == 1:
        return str(models[0])
    if models:
        names = ", ".join(path.name for path in models)
        raise CheckpointError(f"{folder}: holds several models; name one of {names}")
    if any(folder.glob("*.pth")):
        raise CheckpointError(
            f"{folder}: holds PyTorch files only; convert them with `pyllama2c convert`"
        )
    raise CheckpointError(f"{folder}: holds no model file (.bin or .gguf)")


class Llama:
    """Meta's generator. `model` and `tokenizer` are pyllama2c's own objects.

    It may be used from many threads; with temperature above 0 the order of their calls then decides
    which random numbers each gets.
    """

    def __init__(self, model: engine.Llama, max_seq_len: int, max_batch_size: int, seed: int = 1):
        context, many = model.config.seq_len, sys.maxsize
        limits = f"1 to the model's {context}"
        self.max_seq_len = validate.integer("max_seq_len", max_seq_len, 1, context, limits)
        self.max_batch_size = validate.integer(
            "max_batch_size", max_batch_size, 1, many, "1 or more"
        )
        self._seeds = random.Random(validate.integer("seed", seed, -(2**63), 2**64 - 1))
        self.model, self.tokenizer = model, model.tokenizer

    @staticmethod
    def build(
        ckpt_dir: str | os.PathLike[str],
        tokenizer_path: str | os.PathLike[str],
        max_seq_len: int,
        max_batch_size: int,
        model_parallel_size: int | None = None,
        seed: int = 1,
    ) -> Llama:
        """Opens a model: `ckpt_dir` is its file, a folder with just one, or a known model's name.

        `max_seq_len` bounds prompt and generation together, `max_batch_size` the prompts of a call.
        `seed` decides all that this object samples. There is one process: ValueError for a
        `model_parallel_size` other than 1.
        """
        if model_parallel_size not in (None, 1):
            raise ValueError(f"model_parallel_size is {model_parallel_size}; here it must be 1")
        path = _find_checkpoint(ckpt_dir, Path(tokenizer_path))
        return Llama(engine.Llama(path, tokenizer_path), max_seq_len, max_batch_size, seed)

    def generate(
        self,
        prompt_tokens: Sequence[Sequence[int]],
        max_gen_len: int,
        temperature: float = 0.6,
        top_p: float = 0.9,
        logprobs: bool = False,
        echo: bool = False,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Continues each prompt by at most `max_gen_len` tokens, as far as max_seq_len allows.

        Tokens end before the first EOS; where `echo` puts the prompt in front, one in the prompt
        counts. BOS ends nothing. The log-probabilities, one a token, are of the model's own
        distribution (whatever temperature and top_p are) and equal Llama.score's; the first token
        of an echoed prompt, which nothing predicts, has 0.0. temperature 0 is greedy, and so is
        top_p 0.

        ValueError for more prompts than max_batch_size or none, ContextLengthError (a ValueError)
        for a prompt longer than max_seq_len, TokenizerError for ids outside the vocabulary.
        """
        logprobs, echo = validate.flag("logprobs", logprobs), validate.flag("echo", echo)
        prompt_tokens = self._checked(prompt_tokens)
        max_gen_len = validate.integer("max_gen_len", max_gen_len, 0, sys.maxsize, "0 or more")
        room = [min(max_gen_len, self.max_seq_len - len(prompt)) for prompt in prompt_tokens]
        whole = self._continue(prompt_tokens, room, temperature, top_p)
        starts = [0 if echo else len(prompt) for prompt in prompt_tokens]
        ends = []
        for tokens, start in zip(whole, starts, strict=True):
            eos = self.tokenizer.eos_id
            ends.append(tokens.index(eos, start) if eos in tokens[start:] else len(tokens))
        spans = [slice(start, end) for start, end in zip(starts, ends, strict=True)]
        out = [tokens[span] for tokens, span in zip(whole, spans, strict=True)]
        if not logprobs:
            return out, None
        scores = self.model.score_batch(whole, starts=[max(1, start) for start in starts])
        values = [[p or 0.0 for p in score.logprobs] for score in scores]
        return out, [row[span] for row, span in zip(values, spans, strict=True)]

    def _checked(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        needed, size = "a list of prompts: lists of token ids", self.model.config.vocab_size
        listed = validate.values("prompt_tokens", prompts, needed)
        checked = [validate.token_ids(f"prompt_tokens[{i}]", p, size) for i, p in enumerate(listed)]
        if not 1 <= len(checked) <= self.max_batch_size:
            limit = self.max_batch_size
            raise ValueError(f"{len(checked)} prompts; max_batch_size allows 1 to {limit}")
        for i, prompt in enumerate(checked):
            if len(prompt) > self.max_seq_len:
                raise ContextLengthError(
                    f"prompt {i} has {len(prompt)} tokens; max_seq_len is {self.max_seq_len}"
                )
        return checked

    def _continue(
        self, prompts: Sequence[Sequence[int]], room: list[int], temperature: float, top_p: float
    ) -> list[list[int]]:
        """Prompts with their continuations."""
        stories = self.model.generate_batch(
            prompts,
            max_batch=min(self.max_batch_size, MAX_ROWS),
            max_tokens=room,
            temperature=0.0 if top_p == 0 else temperature,  # to the engine, top_p 0 means off
            top_p=top_p,
            seed=self._seeds.getrandbits(64),
            stop_tokens=[i for i in (self.tokenizer.eos_id,) if i >= 0],
        )
        whole: list[list[int]] = [[] for _ in prompts]
        for story in stories:
            if story.error is not None:
                raise story.error
            whole[story.prompt_index] = story.prompt_tokens + story.tokens
        return whole

    def text_completion(
        self,
        prompts: Sequence[str],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
        echo: bool = False,
    ) -> list[CompletionPrediction]:
        """Continues texts (each after BOS): {"generation": str} for each, and with `logprobs` its
        "tokens", as texts, and "logprobs". `max_gen_len` is max_seq_len - 1 by default; see
        `generate` for the rest, and for what is raised."""
        prompts = list(validate.texts("prompts", prompts, "a list of texts"))
        tokens = [self.tokenizer.encode(prompt, bos=True) for prompt in prompts]
        out, values = self.generate(
            tokens, self._gen_len(max_gen_len), temperature, top_p, logprobs, echo
        )
        return [
            {"generation": self.tokenizer.decode(new), **self._details(new, values, i)}
            for i, new in enumerate(out)
        ]

    def chat_completion(
        self,
        dialogs: Sequence[Dialog],
        temperature: float = 0.6,
        top_p: float = 0.9,
        max_gen_len: int | None = None,
        logprobs: bool = False,
    ) -> list[ChatPrediction]:
        """The next answer of each dialog: {"generation": {"role": "assistant", "content": str}},
        and with `logprobs` as `text_completion`.

        ValueError for roles out of order (maybe one "system" message, then "user" and "assistant"
        in turn, "user" last). A dialog in which a message holds one of the format's tags ([INST],
        <<SYS>> and their ends) is answered by an error message as the content.
        """
        tokens = []
        dialogs = list(validate.values("dialogs", dialogs, "a list of dialogs: lists of messages"))
        for i, dialog in enumerate(dialogs):
            try:
                check_dialog(dialog)
            except ValueError as error:
                raise ValueError(f"dialog {i}: {error}") from None
            tokens.append(dialog_tokens(self.tokenizer, dialog))
        out, values = self.generate(
            tokens, self._gen_len(max_gen_len), temperature, top_p, logprobs
        )
        answers: list[ChatPrediction] = []
        for i, (dialog, new) in enumerate(zip(dialogs, out, strict=True)):
            content = UNSAFE_ERROR if has_special_tags(dialog) else self.tokenizer.decode(new)
            message: Message = {"role": "assistant", "content": content}
            answers.append({"generation": message, **self._details(new, values, i)})
        return answers

    def _gen_len(self, max_gen_len: int | None) -> int:
        return self.max_seq_len - 1 if max_gen_len is None else max_gen_len

    def _details(
        self, tokens: list[int], values: list[list[float]] | None, i: int
    ) -> _TokenLogprobs:
        if values is None:
            return {}
        return {"tokens": [self.tokenizer.decode([t]) for t in tokens], "logprobs": values[i]}
