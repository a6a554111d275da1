"""What llama.cpp's tests start for `llama-server`: our server, with its flags, defaults and keys.

Flags that only choose how llama.cpp computes are taken and ignored. What is translated besides:
defaults of --temp, --seed and --n-predict go into requests, /completions is llama.cpp's own
endpoint, not OpenAI's, `__verbose` and a few more keys of llama.cpp's alone are added, and names
are spelt its way. No answer's text, token, number or status is made here, but for 501 where
--metrics or --slots is missing; metrics that we do not count are 0. Of a model other than
stories260K only /health answers.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

STORIES = "ggml-org/test-model-stories260K"
CONTEXT = 512
"""of stories260K; llama.cpp would let a story run on beyond it"""

# llama.cpp has these templates under these names; the first is for models without any.
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant{{ '\n' }}",
    "llama3": "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}",
    "command-r": "{% for m in messages %}<|START_OF_TURN_TOKEN|><|{{ m.role | upper }}_TOKEN|>"
    "{{ m.content | trim }}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
}


def flags(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add = parser.add_argument
    add("--port", type=int, required=True)
    add("--host", default="127.0.0.1")
    add("--hf-repo", default="")
    add("--alias")
    add("--temp", type=float, default=0.8)
    add("--seed", type=int, default=-1)
    add("--n-predict", type=int, default=-1)
    add("--ctx-size", type=int, default=CONTEXT)
    add("--parallel", type=int, default=1)
    add("--api-key")
    add("--chat-template")
    add("--chat-template-file", type=Path)
    for name in ("--kv-unified", "--metrics", "--slots", "--verbose"):
        add(name, action="store_true")
    return parser.parse_known_args(words)[0]


def answer_health(host: str, port: int) -> None:
    class Health(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            is_health = self.path == "/health"
            body = b'{"status": "ok"}' if is_health else b'{"error": {"message": "no model"}}'
            self.send_response(200 if is_health else 501)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_OPTIONS = _answer  # noqa: N815

    ThreadingHTTPServer((host, port), Health).serve_forever()


class Shim:
    """ASGI, around the App."""

    def __init__(self, app: Any, options: argparse.Namespace):
        self._app, self._options = app, options
        self._started_at = datetime.now().timestamp()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path, options = scope["path"], self._options
        if (path == "/metrics" and not options.metrics) or (path == "/slots" and not options.slots):
            from pyllama2c.serve.streams import send_whole

            await send_whole(send, 501, b'{"error": {"message": "start it with that flag"}}')
            return
        if path == "/completions":
            path = "/completion"
        asked, verbose = None, False
        if scope["method"] == "POST":
            body = await _read(receive)
            asked, verbose = self._asked(path, body)
            if asked is not None:
                body = json.dumps(asked).encode()
            receive = _sent_again(body, receive)
            scope["headers"] = _with_length(scope["headers"], body)
        # 1.0: else events go past ASGI, and past this.
        inner = {**scope, "path": path, "http_version": "1.0"}
        prompt = await self._prompt(inner, asked["messages"]) if asked and verbose else ""
        await self._app(inner, receive, self._translated(path, asked or {}, prompt, send))

    def _asked(self, path: str, body: bytes) -> tuple[dict[str, Any] | None, bool]:
        """The request with llama.cpp's defaults, without fields that are only llama.cpp's."""
        options = self._options
        asked = json.loads(body)  # theirs is always JSON
        if not isinstance(asked, dict) or not path.endswith(("/completion", "completions")):
            return None, False
        asked.setdefault("temperature", options.temp)
        asked.setdefault("seed", options.seed)
        most = "n_predict" if path == "/completion" else "max_tokens"
        if most not in asked and options.n_predict >= 0:
            asked[most] = options.n_predict
        if not path.endswith("/chat/completions"):
            return asked, False
        asked.pop("id_slot", None)
        return asked, asked.pop("verbose", False) or options.verbose

    async def _prompt(self, scope: Any, messages: Any) -> str:
        """What the template makes of the messages, as our /apply-template says."""
        body = json.dumps({"messages": messages}).encode()
        whole = bytearray()

        async def keep(message: Any) -> None:
            whole.extend(message.get("body", b""))

        inner = {
            **scope,
            "path": "/apply-template",
            "headers": _with_length(scope["headers"], body),
        }
        await self._app(inner, _sent_again(body, None), keep)
        # llama.cpp writes the space that tokenizers put before a text.
        return str(json.loads(whole).get("prompt", "")).replace("<s>", "<s> ", 1)

    def _translated(self, path: str, asked: dict[str, Any], prompt: str, send: Any) -> Any:
        """`send`, for our answers."""
        start: Any = None
        is_stream, rest = False, b""

        async def translated(message: Any) -> None:
            nonlocal start, is_stream, rest
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                is_stream = kind.startswith(b"text/event-stream")
                start = message
                if is_stream:
                    await send(message)
                return
            more, body = message.get("more_body", False), rest + message.get("body", b"")
            if is_stream:
                *events, rest = body.split(b"\n\n")
                told = [self._event(path, asked, event) for event in events]
                await send({**message, "body": b"".join(told)})
                return
            rest = body
            if more:
                return
            if path == "/metrics":
                body = _metrics(body.decode()).encode()
                when = str(int(self._started_at)).encode()
                start["headers"].append((b"Process-Start-Time-Unix", when))
            else:
                body = self._whole(path, asked, prompt, body)
            await send({**start, "headers": _with_length(start["headers"], body)})
            await send({"type": "http.response.body", "body": body})

        return translated

    def _event(self, path: str, asked: dict[str, Any], event: bytes) -> bytes:
        if event.startswith(b"data: {"):
            value = self._value(path, asked, json.loads(event[6:]))
            for choice in value.get("choices", ()):
                delta = choice.get("delta", {})
                if delta.get("role") == "assistant":
                    delta["content"] = None  # which OpenAI has as ""
            event = b"data: " + json.dumps(value).encode()
        return event + b"\n\n"

    def _whole(self, path: str, asked: dict[str, Any], prompt: str, body: bytes) -> bytes:
        try:
            value = json.loads(body)
        except ValueError:
            return body
        if isinstance(value, list):
            return json.dumps([self._value(path, asked, each) for each in value]).encode()
        value = self._value(path, asked, value)
        if prompt and "choices" in value:
            value["__verbose"] = {"prompt": prompt}
        if path == "/apply-template" and "prompt" in value:
            value["prompt"] = value["prompt"].removeprefix("<s>")  # left to /completion
        if path == "/props" and "default_generation_settings" in value:
            params = value["default_generation_settings"]["params"]
            params |= {"seed": self._options.seed, "temperature": self._options.temp}
        return json.dumps(value).encode()

    def _value(self, path: str, asked: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
        error = value.get("error")
        if isinstance(error, dict) and error.get("code") == "context_length_exceeded":
            error["type"] = "exceed_context_size_error"
        if fingerprint := value.get("system_fingerprint"):
            value["system_fingerprint"] = f"b-{fingerprint}"
        settings = value.get("generation_settings")
        if path == "/completion" and settings is not None:
            bias = settings["logit_bias"] or {}
            settings["logit_bias"] = [{"token": int(k), "bias": v} for k, v in bias.items()]
            settings["n_predict"] = settings["max_tokens"]
            settings |= {"adaptive_target": -1.0, "adaptive_decay": 0.9}  # a sampler that is off
        return value


_METRICS_OF_LLAMA_CPP = {
    "prompt_seconds_total": "counter",
    "tokens_predicted_seconds_total": "counter",
    "n_tokens_max": "counter",
    "spec_decode_num_draft_tokens_total": "counter",
    "spec_decode_num_accepted_tokens_total": "counter",
    "spec_decode_num_drafts_total": "counter",
    "prompt_tokens_seconds": "gauge",
    "predicted_tokens_seconds": "gauge",
    "n_busy_slots_per_decode": "gauge",
}
"""which we do not count; 0"""


def _metrics(text: str) -> str:
    """Ours by llama.cpp's names; their reader knows no histograms."""
    text = text.replace("pyllama2c:", "llamacpp:")
    sweeps = re.search(r"^llamacpp:sweep_rows_count (\d+)$", text, re.MULTILINE)
    assert sweeps
    text = re.sub(r"^llamacpp:\w+_(bucket{.*}|sum|count) .*\n", "", text, flags=re.MULTILINE)
    # Theirs counts apart what was found in the cache.
    total, cached = (
        int(re.search(rf"^llamacpp:{name} (\d+)$", text, re.MULTILINE)[1])  # type: ignore[index]
        for name in ("prompt_tokens_total", "prompt_tokens_cached_total")
    )
    text = text.replace(
        f":prompt_tokens_total {total}\n", f":prompt_tokens_total {total - cached}\n"
    )
    values = {"n_decode_total": ("counter", sweeps[1])}
    values |= {name: (kind, "0") for name, kind in _METRICS_OF_LLAMA_CPP.items()}
    for name, (kind, value) in values.items():
        text += f"# HELP llamacpp:{name} llama.cpp's.\n# TYPE llamacpp:{name} {kind}\n"
        text += f"llamacpp:{name} {value}\n"
    return text


async def _read(receive: Any) -> bytes:
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


def _sent_again(body: bytes, receive: Any) -> Any:
    sent = False

    async def again() -> Any:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_length(headers: Any, body: bytes) -> list[tuple[bytes, bytes]]:
    others = [(name, value) for name, value in headers if name != b"content-length"]
    return [*others, (b"content-length", b"%d" % len(body))]


def main(models: Path, words: list[str]) -> None:
    options = flags(words)
    if options.hf_repo != STORIES:
        answer_health(options.host, options.port)
        return
    from pyllama2c import Llama
    from pyllama2c.serve.app import App
    from pyllama2c.serve.run import HttpServer, listen, log_to_stderr, run
    from pyllama2c.serve.security import Guard
    from pyllama2c.serve.service import Service

    name = options.chat_template or "chatml"
    template = TEMPLATES.get(name, name)  # else it is one
    if options.chat_template_file is not None:
        template = options.chat_template_file.read_text(encoding="utf-8")

    class Stories(Llama):
        chat_template = template  # type: ignore[assignment]

    share = 1 if options.kv_unified else options.parallel
    context = min(options.ctx_size // share, CONTEXT)
    files = models / "stories260K.bin", models / "tok512.bin"
    with listen(options.host, options.port) as listener, Stories(*files, context=context) as llama:
        service = Service(llama, slots=options.parallel, model_name=options.alias)
        app = App(service, Guard(key=options.api_key))
        log_to_stderr()
        server = HttpServer(service, Shim(app, options), listener, 1.0)  # type: ignore[arg-type]
        run(server, lambda: None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
