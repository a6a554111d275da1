"""llama.cpp's answers, by its names: to /completion, /props and /slots."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from pyllama2c import __version__
from pyllama2c.generation.batch_story import Piece
from pyllama2c.serve.answers import encode, event
from pyllama2c.serve.job import Job, Story
from pyllama2c.serve.parameters import biases, check_stop, nucleus
from pyllama2c.serve.receipts import big, make_receipt
from pyllama2c.serve.schema import LlamaCppRequest
from pyllama2c.serve.token_texts import TokenTexts, chat_logprobs, cut, stop_string

if TYPE_CHECKING:
    from pyllama2c.serve.service import Service


def parameters_of(request: LlamaCppRequest, service: Service) -> dict[str, Any]:
    """generate's parameters of a /completion."""
    most = request.n_predict if request.max_tokens is None else request.max_tokens
    bias = request.logit_bias
    if isinstance(bias, list):
        bias = {str(token): value for token, value in bias}
    given: dict[str, Any] = {
        "logit_bias": biases(bias, request.ignore_eos, service),
        "presence_penalty": request.presence_penalty or None,
        "frequency_penalty": request.frequency_penalty or None,
        "json_schema": request.json_schema,
        "grammar": request.grammar or None,
        "logprobs": request.n_probs or None,
    }
    return {
        **{name: value for name, value in given.items() if value is not None},
        "max_tokens": None if most < 0 else most,
        "temperature": request.temperature,
        "min_p": request.min_p,
        "repetition_penalty": request.repeat_penalty,
        **nucleus(request.top_p, request.top_k),
        "stop": check_stop(request.stop, service.limits),
    }


class LlamaCppAnswer:
    """Of /completion."""

    def __init__(self, service: Service, request: LlamaCppRequest):
        self._service, self._request = service, request

    def first(self, job: Job) -> bytes:
        return b""

    def scored(self, job: Job, prompt: int) -> bytes:
        return b""

    def chunks(self, story: Story, pieces: list[Piece]) -> bytes:
        return b"".join([self._chunk(story, piece) for piece in pieces])

    def _chunk(self, story: Story, piece: Piece) -> bytes:
        story.sent += len(piece.text)
        story.n_told += 1
        out: dict[str, Any] = {
            "index": story.index,
            "content": piece.text,
            "tokens": [piece.token],
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": story.n_told,
            "tokens_evaluated": len(story.request.prompt_tokens),
        }
        if self._request.timings_per_token:
            out["timings"] = _timings(story, story.n_told, perf_counter())
        if piece.logprob is not None:
            entry = TokenTexts(self._service.tokenizer, story.request.prompt_tokens)
            scored = chat_logprobs([entry.feed(piece.token, piece.logprob)], self._service.names)
            out["completion_probabilities"] = _with_ids(scored, [piece.logprob])
        return event(out)

    def last(self, job: Job, story: Story) -> bytes:
        assert story.completion is not None
        whole = self._whole(job, story)
        rest = story.completion.text[story.sent :]
        return event(whole | {"content": rest, "tokens": []})

    def end(self, job: Job) -> bytes:
        return b""

    def body(self, job: Job) -> bytes:
        answers = [self._whole(job, story) for story in job.stories]
        return encode(answers[0] if len(answers) == 1 else answers)

    def _whole(self, job: Job, story: Story) -> dict[str, Any]:
        done, request, service = story.completion, story.request, self._service
        assert done is not None
        word = stop_string(story, service.tokenizer)
        out: dict[str, Any] = {
            "index": story.index,
            "content": done.text,
            "tokens": done.tokens if self._request.return_tokens else [],
            "id_slot": -1,
            "stop": True,
            "model": service.model_name,
            "tokens_predicted": len(done.tokens),
            "tokens_evaluated": len(request.prompt_tokens),
            "generation_settings": {**story.parameters, "seed": big(request.seed)},
            "prompt": service.tokenizer.decode(request.prompt_tokens),
            "has_new_line": "\n" in done.text,
            "truncated": False,
            "stop_type": "word" if word else "eos" if done.finish_reason == "stop" else "limit",
            "stopping_word": word or "",
            "tokens_cached": story.n_cached,
            "timings": _timings(story, len(done.tokens), story.ended_at),
        }
        if self._request.receipt:
            out["receipt"] = make_receipt(service.identity, story, service.tokenizer)
        if done.logprobs is not None and not self._request.stream:
            texts = TokenTexts(service.tokenizer, request.prompt_tokens)
            pairs = zip(done.tokens, done.logprobs, strict=True)
            entries = [texts.feed(*pair) for pair in pairs]
            kept = cut(entries, len(done.text), whole=texts.end <= len(done.text))
            scored = chat_logprobs(kept, service.names)
            out["completion_probabilities"] = _with_ids(scored, [e.scored for e in kept])
        return out


def _timings(story: Story, n: int, now: float) -> dict[str, int | float]:
    """Of `n` tokens. The first is drawn when the prompt is read: only the others take time."""
    read = 1e3 * (story.read_at - story.begun_at)
    told = 1e3 * (now - story.read_at) if n > 1 else 0.0
    n_read, n_steps = len(story.request.prompt_tokens) - story.n_cached, max(0, n - 1)
    return {
        "cache_n": story.n_cached,
        "prompt_n": n_read,
        "prompt_ms": read,
        "prompt_per_token_ms": read / n_read,
        "prompt_per_second": 1e3 * n_read / read if read else 0.0,
        "predicted_n": n,
        "predicted_ms": told,
        "predicted_per_token_ms": told / n_steps if n_steps else 0.0,
        "predicted_per_second": 1e3 * n_steps / told if told else 0.0,
    }


def _with_ids(logprobs: dict[str, Any], scored: list[Any]) -> list[dict[str, Any]]:
    """llama.cpp's entries are OpenAI's with ids."""
    out = []
    for entry, own in zip(logprobs["content"], scored, strict=True):
        top = [
            {"id": token, **each}
            for each, (token, _) in zip(entry["top_logprobs"], own.top, strict=True)
        ]
        out.append({"id": own.token, **entry, "top_logprobs": top})
    return out


def props(service: Service) -> dict[str, Any]:
    tokenizer, llama = service.tokenizer, service.llama
    return {
        "default_generation_settings": {
            "n_ctx": llama.config.seq_len,
            "params": {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
        },
        "total_slots": service.engine.slots,
        "model_alias": service.model_name,
        "model_path": llama.path,
        "chat_template": llama.chat_template or "",
        "bos_token": service.names.name(tokenizer.bos_id) if tokenizer.bos_id >= 0 else "",
        "eos_token": service.names.name(tokenizer.eos_id) if tokenizer.eos_id >= 0 else "",
        "modalities": {"vision": False, "audio": False},
        "build_info": f"pyllama2c {__version__}",
    }


def slots(service: Service) -> list[dict[str, Any]]:
    """One entry a slot; what is told in it is nobody else's business."""
    busy, context = service.engine.n_stories, service.llama.config.seq_len
    return [
        {"id": i, "n_ctx": context, "speculative": False, "is_processing": i < busy}
        for i in range(service.engine.slots)
    ]
