"""A model class for EleutherAI's lm-evaluation-harness (`pip install 'pyllama2c[eval]'`).

In Python, `lm_eval.simple_evaluate(model=HarnessLM("model.bin"), tasks=[...])`; importing this
module also registers the name "pyllama2c". The harness (0.4.13) loads no plugins, so that its
command has to be started from here: `python -m pyllama2c.integrations.lm_eval run --model pyllama2c
--model_args pretrained=model.bin --batch_size auto --tasks ...` is `lm_eval run ...` otherwise.

Texts become tokens, are cut to the context and scored by the rules of the harness's own backend for
transformers, so that both give the same figures.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

try:
    from lm_eval.api.model import TemplateLM
except ImportError as error:
    missing = f"{error}: pip install 'pyllama2c[eval]'"
    raise (SystemExit if __name__ == "__main__" else ImportError)(missing) from None
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from pyllama2c.engine.options import Dtype
from pyllama2c.engine.session import MAX_ROWS
from pyllama2c.model import Llama
from pyllama2c.progress import watched
from pyllama2c.tokenizers.base import NONE

_CHUNK = 512
"""requests per score_batch: many, so that the answers to one question are mostly in one"""

_BOS_TEXT = "<s>"
"""BOS in prompts that were rendered elsewhere"""

_DEFAULTS: dict[str, Any] = {
    "max_tokens": 0,
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
"""sampling parameters that a task may set, by their names in Llama.generate"""

# (context and continuation as text, or None; context; continuation)
_Request = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("pyllama2c")
class HarnessLM(TemplateLM):
    """A pyllama2c model as the harness sees one.

    pretrained: a pyllama2c.Llama, or what it opens: a path, or the name of a known model.
    tokenizer, dtype, threads: as for pyllama2c.Llama.
    max_length: tokens of prompt and answer together, at most (default: the context).
    max_gen_toks: new tokens of an answer where the task does not say.
    add_bos_token: BOS before every text (default: as the tokenizer has it, which is True for
    Llama's); a text that begins with BOS as text, `<s>`, already has it. The harness counts on it:
    log p(BOS | BOS) is part of loglikelihood_rolling. Where the vocabulary has no BOS, EOS stands
    before a text without a context.
    batch_size: stories that generate_until generates at a time, 1 to 256, or "auto" (64); scoring
    always fills its forward calls.
    seed: for tasks that sample.
    device, max_batch_size: the harness passes them to every model; ignored.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str] | Llama,
        tokenizer: str | os.PathLike[str] | None = None,
        *,
        dtype: Dtype = "auto",
        threads: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        batch_size: int | str = "auto",
        seed: int = 1234,
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if not isinstance(pretrained, Llama):
            pretrained = Llama(pretrained, tokenizer, dtype=dtype, threads=threads)
        self.llama = pretrained
        context = pretrained.config.seq_len
        self.max_length = context if max_length is None else max_length
        if not 1 <= self.max_length <= context:
            raise ValueError(f"max_length is {max_length}; it must be 1 to the model's {context}")
        try:  # the harness's "auto:4" looks for the largest four times
            auto = str(batch_size).partition(":")[0] == "auto"
            self.batch_size = 64 if auto else int(batch_size)
            if not 1 <= self.batch_size <= MAX_ROWS:
                raise ValueError
        except ValueError:
            limits = f"1 to {MAX_ROWS} or auto"
            raise ValueError(f"batch_size is {batch_size!r}; it must be {limits}") from None
        self.max_gen_toks, self.seed = max_gen_toks, seed
        own = self.llama.tokenizer
        self.add_bos_token = own.add_bos if add_bos_token is None else add_bos_token
        has_bos = own.bos_id != NONE
        self._bos_text = own.special_text(own.bos_id) or _BOS_TEXT if has_bos else None

    @property
    def eot_token_id(self) -> int:
        return self.llama.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: BOS or, where there is none, EOS."""
        own = self.llama.tokenizer
        return own.eos_id if own.bos_id == NONE else own.bos_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        bos = self.add_bos_token
        if add_special_tokens is not None:
            bos = add_special_tokens
        elif self._bos_text is not None and string.startswith(self._bos_text):
            string, bos = string.removeprefix(self._bos_text), True
        return self.llama.tokenizer.encode(string, bos=bos)

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = []
        with tqdm(
            total=len(requests), disable=disable_tqdm or not watched(), desc="loglikelihood"
        ) as bar:
            for at in range(0, len(requests), _CHUNK):
                chunk = requests[at : at + _CHUNK]
                new = list(self._score(chunk))
                for (pair, _, _), answer in zip(chunk, new, strict=True):
                    if pair is not None:  # a request, not a window of a long text
                        self.cache_hook.add_partial("loglikelihood", pair, answer)
                answers += new
                bar.update(len(chunk))
        return answers

    def _score(self, requests: Sequence[_Request]) -> Iterator[tuple[float, bool]]:
        """log p(continuation | context), and whether it is the greedy one."""
        texts, starts = [], []
        for pair, context, continuation in requests:
            if not context:
                raise ValueError(f"a context has no tokens, not even BOS: {pair}")
            if not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"a continuation has {len(continuation)} tokens; it must have 1 to "
                    f"{self.max_length}: {pair}"
                )
            # The last token is not read, so that there is room for one more.
            text = (context + continuation)[-(self.max_length + 1) :]
            texts.append(text)
            starts.append(len(text) - len(continuation))
        for score in self.llama.score_batch(texts, starts=starts):
            # As the harness adds what its client of a server is told, so that both give one figure:
            # Score.total is rounded once, which can be another last digit.
            yield float(sum(p for p in score.logprobs if p is not None)), score.greedy

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        windows: list[_Request] = []
        counts = []
        for (text,) in (request.args for request in requests):
            of_text = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            new = [(None, *make_disjoint_window(window)) for window in of_text]
            windows += new
            counts.append(len(new))
        answers = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        totals = []
        for request, count in zip(requests, counts, strict=True):
            totals.append(sum(next(answers)[0] for _ in range(count)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        prompts, untils, each = [], [], []
        for context, given in (request.args for request in requests):
            options = normalize_gen_kwargs(given, self.max_gen_toks)
            until = [stop for stop in handle_stop_sequences(options.pop("until"), None) if stop]
            parameters = self._parameters(options)
            room = self.max_length - parameters["max_tokens"]
            if room < 1:
                raise ValueError(
                    f"max_gen_toks is {parameters['max_tokens']}; it must be less than max_length, "
                    f"which is {self.max_length}"
                )
            prompts.append(self.tok_encode(context)[-room:])
            untils.append(until)
            each.append(parameters)
        listed: dict[str, Any] = {
            name: [parameters[name] for parameters in each] for name in _DEFAULTS
        }
        stories = self.llama.generate_batch(
            prompts,
            max_batch=self.batch_size,
            seed=self.seed,
            stop=[_safe_stops(until) for until in untils],
            **listed,
        )
        answers = [""] * len(prompts)
        with tqdm(
            total=len(prompts), disable=disable_tqdm or not watched(), desc="generate_until"
        ) as bar:
            for story in stories:
                if story.error is not None:
                    raise story.error
                text = self.llama.tokenizer.decode(story.tokens)
                text = postprocess_generated_text(text, untils[story.prompt_index], None)
                answers[story.prompt_index] = text
                self.cache_hook.add_partial(
                    "generate_until", requests[story.prompt_index].args, text
                )
                bar.update()
        return answers

    def _parameters(self, options: dict[str, Any]) -> dict[str, Any]:
        """The task's generation_kwargs as those of Llama.generate_batch."""
        options = dict(options)
        if options.pop("num_beams", 1) != 1:
            raise ValueError("generation_kwargs: num_beams must be 1; there is no beam search here")
        if not options.pop("do_sample"):
            options["temperature"] = 0.0
        options["max_tokens"] = options.pop("max_gen_toks")
        if unknown := options.keys() - _DEFAULTS.keys():
            known = ", ".join(["until", "max_gen_toks", "do_sample", *list(_DEFAULTS)[1:]])
            raise ValueError(
                f"generation_kwargs: {', '.join(sorted(unknown))} is not known; known: {known}"
            )
        return _DEFAULTS | options


def _safe_stops(until: Iterable[str]) -> list[str]:
    """The strings that may stop generation. An answer's text has no leading space, a story's may:
    strings that begin with a space are cut off afterwards."""
    return [stop for stop in until if not stop.startswith(" ")]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
