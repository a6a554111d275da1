"""The lm-evaluation-harness model class against the harness's own backend for transformers: one
random model, its weights and tokenizer written for both."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from environment import real_file
from tiny import Array, Shape, TinyLlama
from tokenizer_keys import byte_level_keys, chat_model

NEEDED = ("lm_eval", "torch", "transformers", "accelerate")

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of those packages about themselves
    pytest.mark.usefixtures("offline"),
]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The packages, if they are here, with their caches in a folder of the test's own."""
    cache = str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", cache)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        for name in NEEDED:
            pytest.importorskip(name)
        yield


def transformers_tokenizer(path: Path) -> Any:
    """What a published Llama 2 tokenizer.json says, from a tokenizer.bin."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    data, at, pieces, scores = path.read_bytes(), 4, [], []
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + length].decode().replace(" ", "▁"))
        scores.append(score)
        at += 8 + length
    pieces[:3] = ["<unk>", "<s>", "</s>"]
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for i in sorted(range(259, len(pieces)), key=lambda i: -scores[i]):
        piece = pieces[i]
        pairs = [(piece[:n], piece[n:]) for n in range(1, len(piece))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    bpe = models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    spaces = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence(
        [spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<unk>", **specials)


def save_for_transformers(model: TinyLlama, folder: Path) -> None:
    """The same weights as a LlamaForCausalLM, whose heads pair number j with number j + half."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    s, w = model.shape, model.weights

    def halves(rows: Array) -> Array:
        heads = rows.reshape(-1, s.head_size // 2, 2, s.dim)
        return heads.transpose(0, 2, 1, 3).reshape(rows.shape)

    config = LlamaConfig(
        hidden_size=s.dim,
        intermediate_size=s.hidden_dim,
        num_hidden_layers=s.n_layers,
        num_attention_heads=s.n_heads,
        num_key_value_heads=s.n_kv_heads,
        vocab_size=s.vocab_size,
        max_position_embeddings=s.seq_len,
        rms_norm_eps=1e-5,
        tie_word_embeddings=s.tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    state = {"model.embed_tokens.weight": w["embedding"], "model.norm.weight": w["final_norm"]}
    state["lm_head.weight"] = w["classifier"]
    places = {"wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj"}
    places |= {"wo": "self_attn.o_proj", "w1": "mlp.gate_proj", "w2": "mlp.down_proj"}
    places |= {"w3": "mlp.up_proj", "attention_norm": "input_layernorm"}
    places |= {"ffn_norm": "post_attention_layernorm"}
    for name, place in places.items():
        for layer, rows in enumerate(w[name]):
            rows = halves(rows) if name in ("wq", "wk") else rows
            state[f"model.layers.{layer}.{place}.weight"] = rows
    theirs = LlamaForCausalLM(config)
    theirs.load_state_dict({k: torch.tensor(v, dtype=torch.float32) for k, v in state.items()})
    theirs.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(offline: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    shape = Shape(dim=64, hidden_dim=96, vocab_size=32000, seq_len=128, tied=False)
    model = TinyLlama.random(shape, seed=11)
    model.weights["classifier"][2] *= 1.5  # so that some answers end
    (folder / "model.bin").write_bytes(model.v1())
    (folder / "tokenizer.bin").symlink_to(real_file("llama2_tokenizer.bin"))
    save_for_transformers(model, folder)
    return folder


@pytest.fixture(scope="module", params=[None, False], ids=["bos", "no bos"])
def both(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[Any, Any]]:
    """Our model and theirs: with BOS, which is the default of both, and without."""
    from lm_eval.models.huggingface import HFLM

    from pyllama2c.integrations.lm_eval import HarnessLM

    tokenizer = transformers_tokenizer(folder / "tokenizer.bin")
    bos = {} if request.param is None else {"add_bos_token": request.param}
    theirs = HFLM(str(folder), tokenizer=tokenizer, device="cpu", batch_size=4, **bos)
    ours = HarnessLM(folder / "model.bin", **bos)
    yield ours, theirs
    ours.llama.close()


WORDS = (
    "Once upon a time there was a tiny cat named Tom who liked to play in the park with his "
    "friend Max. One day they saw a big tree, and 3 birds sang: “Hello!”\nThe end. 日本 ☃  ok"
)
CONTEXTS = [WORDS[:n] for n in (1, 4, 10, 30, 75, 100, 101, 140, 160)]
CONTEXTS += ["Tom ", "Tom  ", "Question:\n", "日本", WORDS * 5, "<s>Tom", "", ""]
ANSWERS = [" a", "b", " the cat sat on the mat", "日", ".", " ", WORDS[:60], "\n\nAnswer: 42"]


def ask(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, i) for i, argument in enumerate(arguments)]


def test_loglikelihood(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    pairs = [(context, answer) for context in CONTEXTS for answer in ANSWERS]
    # Answers that the model itself gives, so that some are greedy.
    own = theirs.generate_until(
        ask("generate_until", *((c, {"max_gen_toks": 3}) for c in CONTEXTS[:9]))
    )
    pairs += [(c, f" {text}") for c, text in zip(CONTEXTS, own, strict=False) if text.strip()]
    # "O" and "b" are one token together, and nothing is left to score: theirs fails as well.
    pairs = [pair for pair in pairs if not pair[0] or ours._encode_pair(*pair)[1]]
    assert len(pairs) > 100
    pairs += [(WORDS * 5, WORDS * 2)]  # an answer that leaves the context little room
    requests = ask("loglikelihood", *pairs)
    got = ours.loglikelihood(requests, disable_tqdm=True)
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    np.testing.assert_allclose([g[0] for g in got], [e[0] for e in expected], rtol=0, atol=1e-3)
    assert [g[1] for g in got] == [e[1] for e in expected]
    assert {g[1] for g in got} == {True, False}


def test_loglikelihood_rolling(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    requests = ask("loglikelihood_rolling", *((text,) for text in [*CONTEXTS, WORDS * 9]))
    got = ours.loglikelihood_rolling(requests, disable_tqdm=True)
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-3)


def test_generate_until(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    for context in ("<s>Tom", "Tom"):  # theirs looks for BOS in the first of a batch only
        request = ask("generate_until", (context, {"until": [], "max_gen_toks": 24}))
        assert ours.generate_until(request) == theirs.generate_until(request)
    contexts = [context for context in CONTEXTS if context and "<s>" not in context]
    plain = [(context, {"until": [], "max_gen_toks": 24}) for context in contexts]
    answers = theirs.generate_until(ask("generate_until", *plain), disable_tqdm=True)
    assert ours.generate_until(ask("generate_until", *plain), disable_tqdm=True) == answers
    lengths = {len(ours.llama.tokenizer.encode(answer)) for answer in answers}
    assert min(lengths) < 20 <= max(lengths), "some should end with EOS, and some not"
    # Stop strings that come up: across tokens, with spaces, several at once.
    stopped = []
    for context, answer in zip(contexts, answers, strict=True):
        middle = len(answer) // 2
        for until in ([answer[3:6]], answer[middle : middle + 4], [" ", "zzz"], [answer[8:9]]):
            stopped.append((context, {"until": until, "max_tokens": 24, "do_sample": False}))
    got = ours.generate_until(ask("generate_until", *stopped), disable_tqdm=True)
    assert got == theirs.generate_until(ask("generate_until", *stopped), disable_tqdm=True)
    assert sum(len(g) < 10 for g in got) > 10


CHOICES = [" cat", " big tree", " end of the day."]
QUESTIONS = [
    {"question": f"{name} {verb} the", "choices": CHOICES, "gold": (i + j) % 3}
    for i, name in enumerate(("Tom", "Lily", "The bird"))
    for j, verb in enumerate(("saw", "liked", "ate", "is"))
]
TASK = """
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
"""
TASKS = {
    "tiny_choice": """
output_type: multiple_choice
num_fewshot: 2
fewshot_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "tiny_perplexity": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}{{choices[gold]}} It was a nice day."
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "tiny_answer": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{TASK % data}{text}")
    return folder


def test_the_same_results(both: tuple[Any, Any], tasks: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results = []
    for model in both:
        done = lm_eval.simple_evaluate(
            model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0
        )
        assert done is not None
        results.append(done)
    ours, theirs = (result["results"] for result in results)
    for metric in ("acc,none", "acc_norm,none"):
        assert ours["tiny_choice"][metric] == theirs["tiny_choice"][metric]
    assert 0 < ours["tiny_choice"]["acc,none"] < 1
    for metric in ("word_perplexity,none", "bits_per_byte,none"):
        got, expected = (r["tiny_perplexity"][metric] for r in (ours, theirs))
        assert got == pytest.approx(expected, rel=1e-4)
    answers = [[s["resps"] for s in result["samples"]["tiny_answer"]] for result in results]
    assert answers[0] == answers[1] and len(set(map(str, answers[0]))) > 3


def test_as_a_command(folder: Path, tasks: Path, tmp_path: Path) -> None:
    arguments = f"pretrained={folder / 'model.bin'},max_length=100"
    done = subprocess.run(
        [sys.executable, "-m", "pyllama2c.integrations.lm_eval", "run",
         "--model", "pyllama2c", "--model_args", arguments, "--tasks", "tiny_choice",
         "--include_path", str(tasks), "--batch_size", "auto:4",
         "--output_path", str(tmp_path), "--limit", "4"],
        cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "|tiny_choice|" in done.stdout
    (report,) = tmp_path.rglob("results_*.json")
    assert 0 <= json.loads(report.read_text())["results"]["tiny_choice"]["acc,none"] <= 1


@pytest.fixture
def ours(folder: Path) -> Iterator[Any]:
    from pyllama2c.integrations.lm_eval import HarnessLM

    model = HarnessLM(folder / "model.bin", batch_size=3)
    yield model
    model.llama.close()


def test_sampled_answers(ours: Any) -> None:
    """The seed decides; a request's own parameters reach the sampler."""
    options = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    requests = ask("generate_until", *[("Tom", options)] * 5)
    first = ours.generate_until(requests)
    assert first == ours.generate_until(requests) and len(set(first)) > 1
    ours.seed += 1000
    assert first != ours.generate_until(requests)
    greedy = ours.generate_until(ask("generate_until", ("Tom", {**options, "do_sample": False})))
    only_one = ours.generate_until(ask("generate_until", ("Tom", {**options, "top_k": 1})))
    assert greedy == only_one


def test_answers_are_kept_for_a_second_run(ours: Any, tmp_path: Path) -> None:
    from lm_eval.api.model import CachingLM

    requests = ask("loglikelihood", ("Tom", " a"), ("Tom", " b"))
    texts = ask("generate_until", ("Tom", {"until": [], "max_gen_toks": 4}))
    cached = CachingLM(ours, str(tmp_path / "cache.db"))
    first = cached.loglikelihood(requests), cached.generate_until(texts)
    ours.llama.close()  # the second time it is not asked
    again = cached.loglikelihood(requests), cached.generate_until(texts)
    assert [list(map(tuple, first[0])), first[1]] == [list(map(tuple, again[0])), again[1]]


def test_without_bos(offline: None) -> None:
    """EOS stands before a text then, as with the harness's own backend."""
    from pyllama2c import Llama
    from pyllama2c.integrations.lm_eval import HarnessLM

    pytest.importorskip("tokenizers", reason="byte-level tokenizers need the tokenizers package")
    keys = byte_level_keys()
    next(key for key in keys if key.name.endswith("bos_token_id")).value = 2**32 - 1
    with Llama.from_buffer(chat_model(keys).build()) as llama:
        ours, ids = HarnessLM(llama), llama.tokenizer.encode("<s>hello")
        assert ours.prefix_token_id == ours.eot_token_id == 2
        assert ours.tok_encode("<s>hello") == ids
        (total,) = ours.loglikelihood_rolling(ask("loglikelihood_rolling", ("<s>hello",)))
        assert total == pytest.approx(sum(llama.score([2, *ids]).logprobs[1:]))
        assert len(ours.loglikelihood(ask("loglikelihood", ("", "hello")))) == 1


def test_wrong_requests(ours: Any, folder: Path) -> None:
    from pyllama2c.integrations.lm_eval import HarnessLM

    for options, message in (
        ({"max_gen_toks": 128}, "max_gen_toks is 128; it must be less than max_length"),
        ({"num_beams": 4}, "num_beams must be 1"),
        ({"typical_p": 0.5}, "typical_p is not known; known: until, max_gen_toks, do_sample, temp"),
        ({"temperature": -1.0, "do_sample": True}, "temperature is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.generate_until(ask("generate_until", ("a", {"max_gen_toks": 5, **options})))
    with pytest.raises(ValueError, match="a continuation has 0 tokens; it must have 1 to 128"):
        ours.loglikelihood(ask("loglikelihood", ("a", "")))
    with pytest.raises(ValueError, match=r"a continuation has \d+ tokens"):
        ours.loglikelihood(ask("loglikelihood", ("a", WORDS * 9)))
    ours.add_bos_token = False
    with pytest.raises(ValueError, match="a context has no tokens, not even BOS"):
        ours.loglikelihood(ask("loglikelihood", (" ", "a")))
    for wrong, message in (
        ({"max_length": 129}, "max_length is 129; it must be 1 to the model's 128"),
        ({"batch_size": 0}, "batch_size is 0; it must be 1 to 256 or auto"),
        ({"batch_size": "many"}, "batch_size is 'many'; it must be 1 to 256 or auto"),
        ({"pretrained": "no.bin"}, "No such file"),
    ):
        with pytest.raises(ValueError, match=message):
            HarnessLM(**{"pretrained": folder / "model.bin", **wrong})
