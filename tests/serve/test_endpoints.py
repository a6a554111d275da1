"""Facts, metrics, tokens, and llama.cpp's endpoints."""

from __future__ import annotations

import re
from typing import Any

import pytest
from http_server import Running, serving

from pyllama2c import Llama

PROMPT = "Once upon a time"


def test_facts(server: Running, storyteller: Llama) -> None:
    http = server.http
    assert http.get("/health").json() == {"status": "ok"} == http.get("/v1/health").json()
    (model,) = http.get("/models").json()["data"]
    assert model["id"] == "storyteller" and model["meta"]["n_vocab"] == 2048
    props = http.get("/props").json()
    assert props["total_slots"] == 64
    assert props["default_generation_settings"]["n_ctx"] == storyteller.config.seq_len
    slots = http.get("/slots").json()
    assert len(slots) == 64 and not any(slot["is_processing"] for slot in slots)


def test_aliases(server: Running) -> None:
    assert server.ok("/completions", prompt="x", max_tokens=1)["object"] == "text_completion"
    messages = [{"role": "user", "content": "x"}]
    assert server.ok("/chat/completions", messages=messages, max_tokens=1)["choices"]


def test_openapi(server: Running) -> None:
    document = server.http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    references = re.findall(r"#/components/schemas/(\w+)", str(document))
    assert set(references) <= document["components"]["schemas"].keys()
    jsonschema = pytest.importorskip("jsonschema")
    schema = document["components"]["schemas"]["CompletionRequest"]
    whole = schema | {"components": document["components"]}
    jsonschema.validate({"prompt": "x", "max_tokens": 5, "stop": ["a"]}, whole)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"prompt": "x", "logprobs": 21}, whole)


def test_tokens_and_text(server: Running, storyteller: Llama) -> None:
    tokenizer = storyteller.tokenizer
    for text in ("", "Once upon a time", "日本 é\0<s>", "  two  spaces\n"):
        ids = tokenizer.encode(text)
        assert server.ok("/tokenize", content=text, parse_special=False)["tokens"] == ids
        assert server.ok("/detokenize", tokens=ids) == {"content": text, "prompt": text}
        body = {"content": text, "add_special": True, "parse_special": False}
        with_bos = server.ok("/tokenize", **body)["tokens"]
        assert with_bos == [tokenizer.bos_id, *ids]
    vllm = server.ok("/tokenize", prompt="Once", add_special_tokens=True, return_token_strs=True)
    assert vllm["count"] == len(vllm["tokens"]) == len(vllm["token_strs"])
    assert vllm["max_model_len"] == storyteller.config.seq_len
    named = server.ok("/tokenize", content="<s>Once</s>", add_special=True)["tokens"]
    assert named == [tokenizer.bos_id, *tokenizer.encode("Once"), tokenizer.eos_id]
    info = server.http.get("/tokenizer_info").json()
    assert server.ok("/tokenize", content=info["bos_token"])["tokens"] == [tokenizer.bos_id]
    pieces = server.ok("/tokenize", content="é", with_pieces=True)["tokens"]
    joined = b"".join(
        p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces
    )
    assert joined == " é".encode()
    assert server.post("/detokenize", tokens=[2048]).status_code == 400
    assert server.post("/tokenize").status_code == 400


def test_llama_cpps_completion(server: Running, storyteller: Llama) -> None:
    body = {"prompt": PROMPT, "n_predict": 30, "seed": 5}
    answer = server.ok("/completion", **body, return_tokens=True)
    own = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
    story = storyteller.generate(PROMPT, seed=5, max_tokens=30, **own)
    assert answer["content"] == story.read() and answer["tokens"] == story.tokens
    assert answer["stop"] and answer["stop_type"] == "limit" and not answer["truncated"]
    assert (answer["tokens_evaluated"], answer["tokens_predicted"]) == (5, 30)
    assert answer["generation_settings"]["seed"] == 5
    *chunks, last = server.events("/completion", **body)
    assert "".join(chunk["content"] for chunk in chunks) + last["content"] == answer["content"]
    assert [chunk["tokens"] for chunk in chunks] == [[token] for token in story.tokens]
    assert not any(chunk["stop"] for chunk in chunks)
    assert last["stop"] and last["tokens_predicted"] == 30
    word = server.ok("/completion", **body | {"n_predict": 200}, stop=["!", " a"])
    assert (word["stop_type"], word["stopping_word"]) == ("word", " a")
    both = server.ok("/completion", **body | {"prompt": [PROMPT, "A cat"]})
    assert [each["index"] for each in both] == [0, 1]
    end = server.ok("/completion", **body | {"n_predict": -1})
    assert end["stop_type"] == "eos"
    on = server.ok("/completion", **body | {"n_predict": -1}, ignore_eos=True, return_tokens=True)
    assert on["stop_type"] == "limit" and len(on["tokens"]) == 512 - 5 + 1
    bias = on["generation_settings"]["logit_bias"]
    assert bias == {str(token): None for token in storyteller.tokenizer.ends}  # minus infinity
    assert not storyteller.tokenizer.ends.intersection(on["tokens"])


def test_timings(storyteller: Llama) -> None:
    """The prompt's time is not the story's, streamed or not; each story has its own."""
    long = "The lion and the rabbit went to the park. " * 20
    body: dict[str, Any] = {"prompt": [long, PROMPT], "n_predict": 1, "seed": 5}
    with serving(storyteller, slots=1) as server:
        whole = server.ok("/completion", **body)
        streamed = [each for each in server.events("/completion", **body) if each["stop"]]
        for answer in (*whole, *streamed):
            timings = answer["timings"]
            assert timings["prompt_n"] + timings["cache_n"] == answer["tokens_evaluated"]
            assert timings["prompt_ms"] > 0 and timings["predicted_n"] == 1
            for name in ("ms", "per_token_ms", "per_second"):  # it came with the prompt's last
                assert timings[f"predicted_{name}"] == 0
        assert whole[0]["timings"]["prompt_ms"] != whole[1]["timings"]["prompt_ms"]
        timings = server.ok("/completion", **body | {"prompt": long, "n_predict": 9})["timings"]
        rate = 8e3 / timings["predicted_ms"]
        assert timings["predicted_per_second"] == pytest.approx(rate)
        assert timings["predicted_per_token_ms"] == pytest.approx(1e3 / rate)
        body |= {"n_predict": 9, "timings_per_token": True}
        *chunks, _ = server.events("/completion", **body | {"prompt": PROMPT})
        seen = [chunk["timings"] for chunk in chunks]
        assert [each["predicted_n"] for each in seen] == list(range(1, 10))
        times = [each["predicted_ms"] for each in seen]
        assert times[0] == 0 and times == sorted(set(times))
        nothing = server.ok("/completion", **body | {"n_predict": 0})
        assert all(each["timings"]["predicted_ms"] == 0 for each in nothing)


def test_tokens_found_in_the_cache(storyteller: Llama) -> None:
    """Of each story of /completion; of a request of OpenAI's, one choice reads for all."""
    long, other = (f"{name} and the rabbit went to the park. " * 9 for name in ("A lion", "Tom"))
    n, m = (1 + len(storyteller.tokenizer.encode(text)) for text in (long, other))
    with serving(storyteller, slots=4) as server:

        def cached(prompt: Any, **body: Any) -> int:
            usage = server.ok("/v1/completions", prompt=prompt, max_tokens=2, **body)["usage"]
            told: int = usage["prompt_tokens_details"]["cached_tokens"]
            return told

        for expected in ([0, 0], [n - 1, m - 1]):
            answers = server.ok("/completion", prompt=[long, other], n_predict=2)
            assert [answer["tokens_cached"] for answer in answers] == expected
            assert [answer["timings"]["cache_n"] for answer in answers] == expected
        assert cached([other, long], n=2) == n - 1 + m - 1
        assert cached("Once more", n=3) == 1  # BOS
        body = {"prompt": long, "max_tokens": 2, "stream_options": {"include_usage": True}}
        usage = server.events("/v1/completions", **body)[-2]["usage"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": n - 1}


def test_slots_tell_the_same_text(server: Running) -> None:
    """llama.cpp's test_completion_parallel_slots cannot ask this."""
    answers = server.ok("/completion", prompt=[PROMPT] * 16, temperature=0, n_predict=40)
    assert len({answer["content"] for answer in answers}) == 1


def test_metrics(storyteller: Llama) -> None:
    with serving(storyteller, slots=4) as server:
        server.ok("/v1/completions", prompt=PROMPT, max_tokens=10, ignore_eos=True, n=3)
        server.events("/v1/completions", prompt=PROMPT, max_tokens=10, ignore_eos=True)
        server.post("/v1/completions", prompt=5)
        server.http.get("/a/path/of%0asomebody's")
        server.wait_until_idle()
        text = server.http.get("/metrics").text
        for name, value in {
            "prompt_tokens_total": 20,
            "tokens_predicted_total": 40,
            "requests_processing": 0,
            "requests_deferred": 0,
            "requests_cancelled_total": 0,
            "e2e_seconds_count": 2,
            "queue_seconds_count": 2,
            "time_to_first_token_seconds_count": 1,
            "time_per_output_token_seconds_count": 1,
        }.items():
            assert server.metric(name) == value, name
        assert server.metric("prompt_tokens_cached_total") >= 12
        assert server.metric("sweep_rows_count") >= 20
        assert '{route="/v1/completions",status="400"} 1\n' in text
        assert '{route="other",status="404"} 1\n' in text
        names: dict[str, Any] = dict(re.findall(r"# TYPE (\S+) (\w+)", text))
        assert names["pyllama2c:sweep_rows"] == "histogram"
        for line in text.splitlines():
            assert re.fullmatch(r"# (HELP|TYPE) .*|pyllama2c:\w+(\{[^{}]*\})? [\d.e+-]+", line), (
                line
            )


def test_a_prompts_cache_is_shared(server: Running) -> None:
    """Of many stories of one prompt, one reads it."""
    long = "The lion and the rabbit went to the park. " * 8
    before = server.metric("prompt_tokens_total"), server.metric("prompt_tokens_cached_total")
    server.ok("/v1/completions", prompt=long, n=16, max_tokens=2)
    server.wait_until_idle()
    after = server.metric("prompt_tokens_total"), server.metric("prompt_tokens_cached_total")
    read = (after[0] - before[0]) - (after[1] - before[1])
    assert read < 2 * (after[0] - before[0]) / 16
