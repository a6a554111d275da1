"""What requests hold. Types are strict: 1.0 is no integer, nor is true a number; msgspec refuses
NaN, infinities, and fields that are not here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Tokens = list[Annotated[int, Meta(ge=0)]]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Most = Annotated[int, Meta(ge=-1, le=2**63 - 1)]
_TOP = Annotated[int, Meta(ge=0, le=20)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Repetition = Annotated[float, Meta(ge=1.2e-38, le=3.4e38)]

Seed = int | str
"""0 to 2**64 - 1, above 2**53 as decimal text, too; -1: a fresh one"""


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class Common(Struct, forbid_unknown_fields=True, kw_only=True):
    """What all that generate have in common. Defaults are OpenAI's."""

    model: str | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1)] | None = None
    stop: str | list[str] | None = None
    seed: Seed | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    # Not OpenAI's.
    top_k: Annotated[int, Meta(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: _Repetition | None = None
    stop_token_ids: Tokens | None = None
    ignore_eos: bool = False
    return_token_ids: bool = False
    receipt: bool = False
    json_schema: dict[str, Any] | str | bool | None = None
    regex: str | None = None
    grammar: str | None = None
    # Of no consequence here.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    cache_prompt: bool | None = None
    metadata: dict[str, Any] | None = None
    # Of consequence, but only one value is supported: see NEUTRAL.
    service_tier: Any = None
    store: Any = None


class CompletionRequest(Common, kw_only=True):
    """POST /v1/completions"""

    prompt: str | list[str | int | Tokens]
    max_tokens: Count | None = 16
    echo: bool | None = None
    logprobs: _TOP | None = None
    best_of: Any = None
    suffix: Any = None


class TextPart(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str


class Message(Struct, forbid_unknown_fields=True, kw_only=True):
    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: Any = None
    tool_call_id: Any = None
    function_call: Any = None
    audio: Any = None
    refusal: Any = None
    annotations: Any = None


class JsonSchema(Struct, forbid_unknown_fields=True, kw_only=True):
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | bool = True
    strict: bool | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | bool | None = None
    """llama.cpp's place for it"""


class ChatRequest(Common, kw_only=True):
    """POST /v1/chat/completions"""

    messages: list[Message]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: _TOP | None = None
    response_format: ResponseFormat | None = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None


class LlamaCppRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /completion: llama.cpp's names and defaults."""

    prompt: str | list[str | int | Tokens]
    model: str | None = None
    n_predict: _Most = -1
    max_tokens: _Most | None = None
    temperature: Annotated[float, Meta(ge=0)] = 0.8
    top_k: Annotated[int, Meta(ge=-1, lt=2**31)] = 40
    top_p: Annotated[float, Meta(ge=0, le=1)] = 0.95
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.05
    repeat_penalty: _Repetition = 1.0
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    seed: Seed = -1
    stop: str | list[str] | None = None
    stream: bool = False
    n_probs: _TOP = 0
    logit_bias: list[tuple[Count, float]] | dict[str, float] | None = None
    ignore_eos: bool = False
    return_tokens: bool = False
    json_schema: dict[str, Any] | None = None
    grammar: str | None = None
    cache_prompt: bool = True
    timings_per_token: bool = False
    parse_special: bool = False
    """of ours: control tokens in the prompt are read as such"""
    receipt: bool = False
    id_slot: Any = None
    samplers: Any = None
    n_keep: Any = None


class TokenizeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /tokenize: llama.cpp's `content` or vLLM's `prompt`."""

    content: str | None = None
    prompt: str | None = None
    model: str | None = None
    add_special: bool = False
    add_special_tokens: bool | None = None
    parse_special: bool = True
    with_pieces: bool = False
    return_token_strs: bool = False


class DetokenizeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /detokenize"""

    tokens: Tokens
    model: str | None = None


class TemplateRequest(ChatRequest, kw_only=True):
    """POST /apply-template: a chat's body, of which the messages make the prompt."""


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "tool_calls": ([],),
    "annotations": ([],),
    "samplers": (["penalties", "top_k", "top_p", "min_p", "temperature"],),
    "id_slot": (-1,),
    "n_keep": (0, -1),
    **dict.fromkeys(
        ("audio", "prediction", "verbosity", "web_search_options", "tool_call_id", "refusal"), ()
    ),
}
"""fields whose features are not supported: their only values, besides null"""
