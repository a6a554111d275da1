"""Llama: a checkpoint, its tokenizer, and everything that can be asked of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn, cast

from pyllama2c import dialects, validate
from pyllama2c.chat.conversation import chat_tokens
from pyllama2c.dialects import SuggestsNames, suggests_arguments
from pyllama2c.engine import cache_file
from pyllama2c.errors import TokenizerNotFoundError
from pyllama2c.generation.batch import Batch
from pyllama2c.generation.completions import Completions
from pyllama2c.generation.request import batch_requests, make_request
from pyllama2c.generation.score import Score, score_texts
from pyllama2c.generation.story import Generation
from pyllama2c.opened import OpenModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from pyllama2c.chat.llama2 import Message
    from pyllama2c.generation.parameters import (
        BatchParameters,
        JsonSchema,
        LogitsProcessor,
        Parameters,
    )


class Llama(SuggestsNames, OpenModel):
    """A language model.

    `model` is the path of a llama2.c checkpoint (.bin, version 0, 1 or 2) or a GGUF file of
    architecture `llama`, the name of a known model ("stories15M": downloaded once, checked,
    cached) or of one on the Hugging Face hub ("hf://owner/name/file.gguf", or "hf://owner/name",
    a folder that is converted once: see docs/hub.md), or None for the embedded storyteller.
    `tokenizer` is the path of its tokenizer.bin; by default the one inside a GGUF file, the one
    that belongs to the known model, the one beside the checkpoint, or Llama 2's where the
    vocabulary has its size.
    `dtype` is what weights are computed with: "float32", "int8" and "int4" (quantized when the file
    is opened; "int4" leaves GGUF's Q4_0, Q4_1 and Q4_K as they are), "auto" keeps what the file
    holds, or the nearest that there is (see llama2c.h).
    `context` is how many positions a story may have (default: the model's); each takes memory for
    keys and values, half as much with `kv_dtype` "float16", which rounds them. What does not
    fit raises OutOfMemoryError before any memory is taken, and says what would fit.
    `speculative` lets an int8 copy of float32 weights draft tokens that the model then checks,
    several at a time: the same story, faster ("auto": where it pays; it takes a quarter more
    memory). `threads` includes the calling thread (default: $PYLLAMA2C_THREADS, else by model size
    and processors); `isa` forces the kernels ("scalar", "avx2", "avxvnni", "avx512"; on ARM "neon",
    "dotprod", "i8mm"; default: $PYLLAMA2C_ISA, else the fastest). Neither changes a single bit of
    the result, save that "runq" computes llama2.c's version 2 files in runq.c's own order of
    operations: its stories, slowly.
    `device` is where it computes: "cpu", "cuda" or "cuda:1" (an NVIDIA card; default:
    $PYLLAMA2C_DEVICE, else "cpu"); the results are the same bits on all.

    One Llama may be used from many threads at once; forward passes take turns in its worker pool.
    Stories and batches are iterated with `for` or, in an event loop of asyncio, `async for`; other
    calls are for `asyncio.to_thread` there. It is copied and pickled by its arguments: the copy,
    in this process or another, opens the model anew.
    """

    _answers = dialects.LLAMA

    @suggests_arguments(dialects.STORY_ARGUMENTS)
    def generate(
        self,
        prompt: str | bytes | Sequence[int] = "",
        *,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_p: float = 0.9,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] | None = (),
        stop_tokens: Iterable[int] | None = None,
        logits_processor: LogitsProcessor | None = None,
        logprobs: int | None = None,
        json_schema: JsonSchema | None = None,
        regex: str | None = None,
        grammar: str | None = None,
    ) -> Generation:
        """A story that continues `prompt`: text (after BOS, unless the tokenizer's `add_bos` says
        otherwise) or token ids (used as they are).

        max_tokens: the most new tokens, clipped to what the context leaves (None: all of that).
        temperature: 0 is greedy. top_p: 0 and 1 mean off, as in llama2.c. top_k, min_p: 0 is off.
        repetition_penalty: CTRL's rule over prompt and story; 1 is off.
        presence_penalty, frequency_penalty: subtracted from the logit of every token in the story
        so far: the first once, the second once per occurrence. The prompt does not count, as in
        OpenAI's API and vLLM (llama.cpp counts it). 0 is off; below 0, repetition is likelier.
        logit_bias: {token id: number}, added to the logits before the penalties; minus infinity
        forbids a token.
        seed: gives run.c's story for the same seed; None and -1 draw one (`Generation.seed`).
        stop: strings that end the story; they are not part of it. stop_tokens: ids that end it and
        are not part of it either (None: the tokenizer's `ends`; BOS and EOS, as in llama2.c).
        logits_processor: called as f(token ids so far, logits) with a float32 array (vocab_size);
        it changes the array in place or returns another; minus infinity forbids a token.
        logprobs: a number from 0 to 64; `Generation.logprobs` then has a TokenLogprob for every
        token, with that many of the likeliest: the model's own, before everything above.
        json_schema (a dict, True, JSON text, or a pydantic model), regex, grammar (Lark's syntax,
        as llguidance has it): what the whole text must match; at most one of them, see
        docs/constraints.md. A story that ends with "stop" matches, unless `stop` or `stop_tokens`
        ended it.

        Nothing is computed until the result is iterated, but the prompt is tokenized at once, and
        wrong arguments raise at once: TypeError or ValueError; ContextLengthError for a prompt that
        does not fit, TokenizerError for wrong ids, ClosedError after `close`, GrammarError for a
        schema, regex or grammar that is wrong or unsupported.
        """
        engine = self._engine
        request = make_request(
            self._tokens(prompt),
            self.config.seq_len,
            self.config.vocab_size,
            self._grammars,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=logit_bias,
            seed=seed,
            stop=stop,
            stop_tokens=stop_tokens,
            logits_processor=logits_processor,
            logprobs=logprobs,
            json_schema=json_schema,
            regex=regex,
            grammar=grammar,
        )
        return Generation(request, self.tokenizer, engine.sessions, engine.draft)

    @suggests_arguments(dialects.STORY_ARGUMENTS)
    def chat(
        self,
        messages: Sequence[Message] | Sequence[Mapping[str, str]],
        **parameters: Unpack[Parameters],
    ) -> Generation:
        """The next answer to `messages`: dicts with a "role" (at most one "system", then "user" and
        "assistant" in turn) and a "content".

        The prompt is made by the file's `chat_template`, or in Llama 2's format if there is none.
        Messages are text, even where they spell a control token. `parameters` are those of
        `generate`. ChatTemplateError for a template that is wrong or refuses the messages.
        """
        return self.generate(chat_tokens(self, cast("Sequence[Message]", messages)), **parameters)

    def generate_batch(
        self,
        prompts: Iterable[str | bytes | Sequence[int]],
        *,
        n: int = 1,
        max_batch: int = 64,
        in_order: bool = False,
        **parameters: Unpack[BatchParameters],
    ) -> Completions:
        """`n` stories of each prompt, up to `max_batch` (1 to 256; on a card 1,024) at a time: the
        same stories as one by one, and much faster.

        Yields Completions as they end or, with `in_order`, in the order of the prompts (the n of a
        prompt side by side). Prompts are taken when there is room for their stories, so they may
        come from an endless generator. `parameters` are those of `generate`; each may be
        a list with a value per prompt, where `prompts` has a length. Choice j of prompt i uses
        seed + i * n + j, where `seed` is one number, and seed[i] + j where it is a list. A prompt
        that is wrong fails alone, as does a story whose logits_processor raises: its Completion has
        the `error`, and the finish reason "error". A wrong parameter raises at once.
        """
        max_batch = validate.integer("max_batch", max_batch, 1, self.max_batch)
        in_order = validate.flag("in_order", in_order)
        engine = self._engine
        sizes = (self.config.seq_len, self.config.vocab_size)
        requests = batch_requests(prompts, n, parameters, self._tokens, *sizes, self._grammars)
        opened = (engine.model, engine.batch_pool(), engine.session_options)
        new_batch = partial(Batch, *opened, self.tokenizer)
        return Completions(new_batch, requests, max_batch, n if in_order else None)

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits, float32 (len(tokens), vocab_size): row i is for the token after token i.

        TokenizerError for ids outside the vocabulary, ContextLengthError for more than the context.
        """
        self._engine.check_open()
        return self._engine.logits(validate.token_ids("tokens", tokens, self.config.vocab_size))

    def score(self, text: str | bytes | Sequence[int]) -> Score:
        """Log-probabilities of a text (as `generate` begins it) or of token ids (as they are). Of a
        text longer than the context each token is scored once, after half a context or more."""
        return self.score_batch([text])[0]

    def score_batch(
        self,
        texts: Iterable[str | bytes | Sequence[int]],
        *,
        starts: Sequence[int] | None = None,
    ) -> list[Score]:
        """`score` of many texts, in their order; much faster than one by one where they are short
        or begin alike.

        `starts` is the index of the first token to score, for each text (1 or more; default 1):
        those before it are context.
        """
        needed = "a list of texts, or of lists of token ids"
        tokens = [self._tokens(text) for text in validate.texts("texts", texts, needed)]
        return score_texts(self._engine, tokens, starts, self._count_bytes)

    def _count_bytes(self, tokens: list[int]) -> int:
        try:
            return len(self.tokenizer.decode_bytes(tokens))
        except TokenizerNotFoundError:
            return 0  # ids need no tokenizer; only bits per byte do

    def save_cache(self, path: str | os.PathLike[str], prompt: str | bytes | Sequence[int]) -> None:
        """Writes a prompt's keys and values to a file; it overwrites nothing but such a file.
        The first save or load reads all weights, for their fingerprint (0.1 s per gigabyte)."""
        validate.file_path("path", path)
        tokens, engine = self._tokens(prompt), self._engine
        with engine.session_with(tokens) as session:
            cache_file.save(path, session, len(tokens), self.config, engine.fingerprint)

    def load_cache(self, path: str | os.PathLike[str]) -> list[int]:
        """Reads `save_cache`'s file and returns its tokens: a prompt that begins with them starts
        sooner.

        CacheFileError for a file that is damaged or was made by another model.
        """
        validate.file_path("path", path)
        with self._engine.sessions.lent() as session:
            cache_file.load(path, session, self.config, self._engine.fingerprint)
            return list(session.fed)

    def _tokens(self, text: str | bytes | Sequence[int]) -> list[int]:
        """Text as its ids, after BOS as the tokenizer has it; ids as they are, checked."""
        if isinstance(text, (str, bytes)):
            return self.tokenizer.encode_prompt(text)
        return validate.token_ids("prompt", text, self.config.vocab_size)

    def __call__(self, *prompt: object, **parameters: object) -> NoReturn:
        raise TypeError("a Llama cannot be called; use generate(prompt)")
