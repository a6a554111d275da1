"""A plugin for llama.cpp's tests: which do not apply, and why.

Besides, `test_cache_vs_nocache_prompt` is not skipped, as they do, and in tests under WORDS it does
not matter which words were told: those are llama.cpp's sampler's. Nothing else is changed.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

UNSKIPPED = "test_cache_vs_nocache_prompt"

# What llama.cpp's sampler drew (or what its grammar makes of a schema that says less) is left
# aside; all else that these assert holds.
WORDS = (
    r"test_completion\[",
    r"test_completion_stream\[",
    r"test_completion_with_openai_library$",
    r"test_completion_stream_with_openai_library$",
    r"test_chat_completion\[",
    r"test_chat_completion_stream\[",
    r"test_chat_completion_with_openai_library$",
    r"test_completion_with_response_format\[response_format1-",
)

FLAG = "a flag of llama.cpp's alone: "
REFUSED = "a feature that we refuse: "

# By what names begin with; the first that fits.
EXCLUDED = {
    r"test_server_multiple_addresses": f"{FLAG}several addresses in --host",
    r"test_server_props": f"{FLAG}--hf-repo, which makes the model a .gguf; ours is a .bin",
    r"test_load_split_model": f"{FLAG}--hf-repo, of another model",
    r"test_no_ui": f"{FLAG}--no-ui",
    r"test_server_model_aliases_and_tags": f"{FLAG}--tags, and several names in --alias",
    r"test_reasoning\[.*-tools2": f"{REFUSED}tools",
    r"test_reasoning\[(deepseek.*-(on|auto)-|Qwen-Qwen3.*-off-)": f"{FLAG}--reasoning",
    r"test_reasoning\[(Qwen-QwQ|Cohere).*-auto-": f"{FLAG}--reasoning",
    r"test_cors_origins": f"{FLAG}--cors-origins and --tools, of a server without a model",
    r"test_cors_proxy": f"{FLAG}--ui-mcp-proxy",
    r"test_local_media_file": f"{FLAG}--media-path, of a model that sees",
    r"test_metrics_embedding_prompt": f"{FLAG}--embedding, of another model",
    r"test_completion_stream_with_openai_library_stops": f"{FLAG}--hf-repo, of another model",
    r"test_json_prompt_no_mtmd": f"{REFUSED}prompts that are JSON objects",
    r"test_completion_with_tokens_input": f"{REFUSED}texts, ids and JSON mixed in one prompt",
    r"test_completion_response_fields": f"{REFUSED}response_fields",
    r"test_n_probs_post": f"{REFUSED}post_sampling_probs, backend_sampling",
    r"test_logit_bias\[False-": f"{REFUSED}texts as keys of logit_bias",
    r"test_chat_template_continue_final_message_vllm": f"{REFUSED}continue_final_message",
    r"test_chat_completion_with_timings_per_token": f"{REFUSED}timings_per_token",
    r"test_return_progress": f"{REFUSED}return_progress",
    r"test_metrics_timings_on_prompt_progress": f"{REFUSED}return_progress",
    r"test_chat_completions_token_count": f"{REFUSED}/chat/completions/input_tokens",
    r"test_date_inside_prompt": f"{REFUSED}tools, and llama.cpp's own variables of templates",
    r"test_add_generation_prompt": f"{REFUSED}add_generation_prompt",
    r"test_access_static_assets": f"{REFUSED}the files of llama.cpp's page",
    r"test_cors_options": f"{REFUSED}requests of any page; --cors-origin allows some",
}


@pytest.hookimpl(tryfirst=True)  # before -k
def pytest_collection_modifyitems(items: list[Any]) -> None:
    unused = set(EXCLUDED) | set(WORDS)
    for item in items:
        if item.originalname == UNSKIPPED:
            item.own_markers = [mark for mark in item.own_markers if mark.name != "skip"]
        why = next((p for p in EXCLUDED if re.match(p, item.name)), None)
        unused -= {why, *(p for p in WORDS if re.match(p, item.name))}
        if why is not None:
            item.add_marker(pytest.mark.skip(reason=EXCLUDED[why]))
    if unused:
        raise pytest.UsageError(f"llama.cpp has no such tests: {sorted(unused)}")


@pytest.fixture(autouse=True)
def _words(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(re.match(pattern, request.node.name) for pattern in WORDS):
        monkeypatch.setattr(request.module, "match_regex", lambda pattern, text: True)
