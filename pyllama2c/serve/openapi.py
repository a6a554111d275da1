"""/openapi.json, made from the structs that requests are decoded with."""

from __future__ import annotations

from typing import Any

import msgspec

from pyllama2c import __version__
from pyllama2c.serve import schema

_POSTS: dict[str, tuple[str, type[msgspec.Struct]]] = {
    "/v1/completions": ("Continue prompts", schema.CompletionRequest),
    "/v1/chat/completions": ("Answer a conversation", schema.ChatRequest),
    "/completion": ("Continue prompts, by llama.cpp's names", schema.LlamaCppRequest),
    "/tokenize": ("Text to token ids", schema.TokenizeRequest),
    "/detokenize": ("Token ids to text", schema.DetokenizeRequest),
    "/apply-template": ("A conversation as a prompt", schema.TemplateRequest),
}
_API = {
    "/api/verify": "Tell a receipt's story again and compare",
    "/api/tokens": "How a story begins (docs/page.md, as the next two)",
    "/api/next": "The token after a story, and how it was chosen",
    "/api/attention": "What a token looked at",
}
"""objects, of which docs say the fields"""

_GETS = {
    "/api/model": "The model, as the page shows it",
    "/v1/models": "The model",
    "/health": "Whether requests are taken",
    "/metrics": "Counters and histograms, in Prometheus's text format",
    "/props": "Settings, by llama.cpp's names",
    "/slots": "Stories under way",
    "/version": "This server's version",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_STATUSES = {
    "400": "The request is wrong; `param` names the field",
    "401": "A key is needed",
    "403": "A host or an origin that is not allowed",
    "404": "There is no such model (--strict-model)",
    "405": "Another method is needed",
    "413": "The body is too large",
    "415": "The body is not application/json",
    "429": "Too many requests wait",
    "500": "The engine failed",
    "503": "The server is shutting down, or the request took too long",
}


def document() -> dict[str, Any]:
    kinds = [kind for _, kind in _POSTS.values()]
    references, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    failures = {
        status: {"description": text, "content": error} for status, text in _STATUSES.items()
    }
    paths: dict[str, Any] = {}
    for (path, (summary, _)), reference in zip(_POSTS.items(), references, strict=True):
        content = {"application/json": {"schema": reference}}
        answer: dict[str, Any] = {"application/json": {"schema": {}}, "text/event-stream": {}}
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": content},
                "responses": {"200": {"description": "The answer", "content": answer}, **failures},
            }
        }
    anything = {"application/json": {"schema": {"type": "object"}}}
    for path, summary in _API.items():
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": anything},
                "responses": {
                    "200": {"description": "The answer", "content": anything},
                    **failures,
                },
            }
        }
    for path, summary in _GETS.items():
        kind = "text/plain" if path == "/metrics" else "application/json"
        ok = {"description": "The answer", "content": {kind: {"schema": {}}}}
        paths[path] = {"get": {"summary": summary, "responses": {"200": ok, **failures}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "pyllama2c", "version": __version__},
        "paths": paths,
        "components": {"schemas": {**components, "Error": _ERROR}},
    }
