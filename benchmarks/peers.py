"""pyllama2c beside other engines, on the same weights, in one interleaved run.

    python benchmarks/peers.py --run omp=path/to/runomp --runq omp=path/to/runqomp --json out.json

Peers, each where it is installed: llama-cpp-python (with gguf), OpenVINO (exported by
optimum-intel), CTranslate2, transformers; binaries of llama2.c (run.c, runq.c) as they are given.
Scenarios: one stream (decode), many streams (batch), a prompt up to its last logits (prefill).
Every engine has a process of its own, which works only in its turn: no engine's idle threads or
memory allocator disturb another's, and one that hangs or crashes is left out and named.

Before anything is timed every engine continues a few prompts greedily. A float32 engine whose
tokens are not those of pyllama2c's float32 is reported as wrong and not timed. Engines are driven
through the fastest interface that gives token ids: llama.cpp through llama_decode, OpenVINO through
its infer request. Ratios are taken round by round, so that drift of the machine cancels.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import convert
import numpy as np
from common import finish, is_ours, model_files, parser, processor

from pyllama2c import Llama
from pyllama2c.cli.bench import SHAPES, read_bandwidth
from pyllama2c.convert.quantize import quantize_file

FIRST_BYTE, SPACE, FIRST_WORD = 3, 259, 260
"""ids of synthetic_files' pieces: of byte 0, of " " and of " w0" """
PROMPTS = 8
"""in a turn of prefill: one alone ends before the processor's caches hold the engine's weights"""
NOTE = """\
pyllama2c, run.c and runq.c sample (temperature 1, top-p 0.9); the other engines decode greedily,
without sampling, which is less work and favours them. In prefill nothing is sampled."""


@dataclass
class Setup:
    model: Path
    tokenizer: Path
    threads: int
    positions: int
    """the longest story of any scenario"""


class Engine:
    """One engine. `seed` None is greedy; engines that cannot sample, or need not, ignore it."""

    seconds: float | None = None
    """set by an engine that times itself"""

    def decode(self, prompt: list[int], n: int, seed: int | None) -> list[int]:
        """n new tokens."""
        return self.batch([prompt], n, seed)[0]

    def batch(self, prompts: list[list[int]], n: int, seed: int | None) -> list[list[int]]:
        """n new tokens of each prompt; prompts are of one length."""
        raise NotImplementedError

    def prefill(self, prompts: list[list[int]]) -> list[int]:
        """The likeliest next token of each prompt; one prompt after the other."""
        return [self.decode(prompt, 1, None)[0] for prompt in prompts]


class Pyllama2c(Engine):
    def __init__(self, s: Setup, dtype: str, speculative: bool | str = "auto"):
        options: dict[str, Any] = {"dtype": dtype, "speculative": speculative}
        self.llama = Llama(s.model, s.tokenizer, threads=s.threads, **options)

    def _options(self, n: int, seed: int | None) -> dict[str, Any]:
        return {"max_tokens": n, "temperature": float(seed is not None), "top_p": 0.9, "seed": seed}

    def decode(self, prompt: list[int], n: int, seed: int | None) -> list[int]:
        story = self.llama.generate(prompt, **self._options(n, seed))
        for _ in story:
            pass
        return story.tokens

    def batch(self, prompts: list[list[int]], n: int, seed: int | None) -> list[list[int]]:
        options = self._options(n, seed)
        options |= {"in_order": True, "max_batch": min(256, len(prompts))}
        return [c.tokens for c in self.llama.generate_batch(prompts, **options)]

    def sweep(self) -> tuple[int, float]:
        """Bytes of weights that a token reads, and the read bandwidth in bytes per second."""
        return self.llama.sweep_bytes, read_bandwidth(self.llama.sweep_bytes, self.llama.threads)


class Binary(Engine):
    """run.c or runq.c: a process a story; the speed is the one it prints (from the first token on).
    Prompts are BOS, a space and letters, which run.c's tokenizer makes byte pieces of here."""

    def __init__(self, s: Setup, path: str, model: Path):
        self.command = [path, str(model), "-z", str(s.tokenizer), "-p", "0.9"]

    def decode(self, prompt: list[int], n: int, seed: int | None) -> list[int]:
        text = bytes(i - FIRST_BYTE for i in prompt[2:]).decode()
        options = ["-n", str(len(prompt) - 1 + n), "-i", text]
        options += ["-t", str(float(seed is not None)), "-s", str(seed or 1)]
        done = subprocess.run(
            [*self.command, *options], capture_output=True, timeout=60, check=True
        )
        rate = re.search(rb"achieved tok/s: ([\d.]+)", done.stderr)
        if rate is None:
            raise RuntimeError(f"no tok/s from {self.command[0]}: {done.stderr[-200:]!r}")
        self.seconds = n / float(rate.group(1))
        return [FIRST_WORD + int(i) for i in re.findall(rb"w(\d+)", done.stdout)]


class LlamaCpp(Engine):
    def __init__(self, s: Setup, path: Path):
        import llama_cpp

        self.api, self.setup, self.contexts = llama_cpp, s, dict[int, Any]()
        self.capacity = max(512, s.positions)  # tokens per call
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)

    def _context(self, n_seq: int) -> tuple[Any, Any]:
        """A context for n_seq sequences, kept, and a batch with its arrays seen by numpy."""
        if n_seq not in self.contexts:
            params = self.api.llama_context_default_params()
            params.n_seq_max, params.n_batch, params.n_ubatch = n_seq, self.capacity, 512
            params.n_ctx = n_seq * -(-self.setup.positions // 256) * 256
            params.n_threads = params.n_threads_batch = self.setup.threads
            batch = self.api.llama_batch_init(self.capacity, 0, 1)
            for i in range(self.capacity):
                batch.n_seq_id[i] = 1
            context = self.api.llama_init_from_model(self.model, params)
            self.contexts[n_seq] = context, batch
        context, batch = self.contexts[n_seq]
        self.api.llama_memory_clear(self.api.llama_get_memory(context), False)
        return context, batch

    def batch(self, prompts: list[list[int]], n: int, seed: int | None) -> list[list[int]]:
        context, batch = self._context(len(prompts))
        fields = (batch.token, batch.pos, batch.logits)
        token, position, logits = (np.ctypeslib.as_array(f, (self.capacity,)) for f in fields)
        rows, at, out = np.array(prompts), 0, []
        for _ in range(n):
            count = rows.size
            token[:count] = rows.ravel()
            position[:count] = np.tile(np.arange(at, at + rows.shape[1]), len(rows))
            logits[:count] = np.tile(np.arange(rows.shape[1]) == rows.shape[1] - 1, len(rows))
            for i in range(count):
                batch.seq_id[i][0] = i // rows.shape[1]
            batch.n_tokens = count
            if self.api.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
            shape = (len(rows), self.vocab_size)
            scores = np.ctypeslib.as_array(self.api.llama_get_logits(context), shape)
            at += rows.shape[1]
            rows = scores.argmax(axis=1)[:, None]
            out.append(rows)
        return np.hstack(out).tolist()


class OpenVino(Engine):
    def __init__(self, s: Setup, path: Path, precision: str | None):
        from openvino import Core, opset13

        core = Core()
        model = core.read_model(path)
        # Logits of the last position only, as OpenVINO GenAI rewrites the same export.
        classifier = model.output("logits").get_node().input_value(0).get_node()
        last = opset13.gather(classifier.input_value(0), np.array([-1]), np.array(1))
        classifier.input(0).replace_source_output(last.output(0))
        model.validate_nodes_and_infer_types()
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": s.threads,
        }
        if precision is not None:
            options["INFERENCE_PRECISION_HINT"] = precision
        self.request = core.compile_model(model, "CPU", options).create_infer_request()

    def batch(self, prompts: list[list[int]], n: int, seed: int | None) -> list[list[int]]:
        self.request.reset_state()
        rows, at, out = np.array(prompts), 0, []
        beams = np.arange(len(rows), dtype=np.int32)
        for _ in range(n):
            end = at + rows.shape[1]
            inputs = {
                "input_ids": rows,
                "attention_mask": np.ones((len(rows), end), np.int64),
                "position_ids": np.tile(np.arange(at, end), (len(rows), 1)),
                "beam_idx": beams,
            }
            found = self.request.infer(inputs, share_inputs=True, share_outputs=True)
            rows, at = found["logits"][:, -1].argmax(axis=1)[:, None], end
            out.append(rows)
        return np.hstack(out).tolist()


class CTranslate2(Engine):
    def __init__(self, s: Setup, path: Path, kind: str):
        import ctranslate2

        options = {"compute_type": kind, "intra_threads": s.threads, "inter_threads": 1}
        self.generator = ctranslate2.Generator(str(path), device="cpu", **options)

    def batch(self, prompts: list[list[int]], n: int, seed: int | None) -> list[list[int]]:
        names = ["<unk>", "<s>", "</s>"]
        start = [[names[i] if i < 3 else convert.PIECE % i for i in p] for p in prompts]
        results = self.generator.generate_batch(
            start, max_length=n, sampling_topk=1, include_prompt_in_result=False
        )
        return [r.sequences_ids[0] for r in results]


class Transformers(Engine):
    def __init__(self, s: Setup, path: Path):
        import torch
        from transformers import LlamaForCausalLM

        torch.set_num_threads(s.threads)
        self.torch = torch
        self.model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0

    def batch(self, prompts: list[list[int]], n: int, seed: int | None) -> list[list[int]]:
        ids = self.torch.tensor(prompts)
        mask = self.torch.ones_like(ids)
        options = {"attention_mask": mask, "max_new_tokens": n, "do_sample": False}
        return self.model.generate(ids, **options)[:, ids.shape[1] :].tolist()


class Conversion(Engine):
    """Makes an engine's files in a process of its own, which takes torch with it when it ends."""

    def __init__(self, s: Setup, function: str, *kind: str):
        self.path = getattr(convert, function)(s.model, s.model.parent, *kind)

    def where(self) -> Path:
        return self.path


@dataclass
class Entry:
    """An engine of the run."""

    engine: type[Engine]
    arguments: tuple[Any, ...] = ()
    modes: tuple[str, ...] = ("decode", "batch", "prefill")
    needs: tuple[str, ...] = ()
    conversion: tuple[str, ...] = ()
    exact: bool = False
    """float32: tokens must be pyllama2c's"""


def entries(arguments: argparse.Namespace, int8_model: Path) -> dict[str, Entry]:
    single = ("decode", "prefill")
    out = {
        "pyllama2c float32": Entry(Pyllama2c, ("float32", True), exact=True),
        "pyllama2c float32 plain": Entry(Pyllama2c, ("float32", False), ("decode",), exact=True),
        "pyllama2c int8": Entry(Pyllama2c, ("int8",)),
        "pyllama2c int4": Entry(Pyllama2c, ("int4",), single),
    }
    for option, model in (("run", None), ("runq", int8_model)):
        for name, path in (pair.split("=", 1) for pair in getattr(arguments, option)):
            exact = option == "run"
            out[f"{option}.c {name}"] = Entry(Binary, (path, model), ("decode",), exact=exact)
    for kind in ("F32", "Q8_0", "Q4_0"):
        out[f"llama.cpp {kind}"] = Entry(
            LlamaCpp, needs=("llama_cpp", "gguf"), conversion=("gguf", kind), exact=kind == "F32"
        )
    # Left to itself, OpenVINO computes in bfloat16 where the processor can, float32 weights too.
    for name, kind, precision in (
        ("float32", "float32", "f32"),
        ("bf16", "float32", "bf16"),
        ("int8", "int8", None),
    ):
        out[f"OpenVINO {name}"] = Entry(
            OpenVino,
            (precision,),
            needs=("openvino", "optimum.intel", "torch"),
            conversion=("openvino", kind),
            exact=precision == "f32",
        )
    needs = ("transformers", "torch")
    out["CTranslate2 int8"] = Entry(
        CTranslate2, ("int8",), needs=("ctranslate2", *needs), conversion=("ctranslate2",)
    )
    out["transformers float32"] = Entry(
        Transformers, needs=needs, conversion=("hugging_face",), exact=True
    )
    return out


def serve(pipe: Any, log: str, engine: type[Engine], s: Setup, arguments: tuple[Any, ...]) -> None:
    """The process of one engine: answers each request with its result and the seconds it took."""
    with open(log, "w") as file:  # engines print a lot, from C too
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        it = engine(s, *arguments)
        pipe.send((None, 0.0))
        while True:
            mode, values = pipe.recv()
            it.seconds = None
            started = perf_counter()
            result = getattr(it, mode)(*values)
            elapsed = perf_counter() - started
            pipe.send((result, it.seconds or elapsed))
    except EOFError:
        pass
    except BaseException as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {str(error)[:300]}"))


class Worker:
    def __init__(self, engine: type[Engine], s: Setup, arguments: tuple[Any, ...], limit: float):
        self.limit, self.log = limit, str(s.model.parent / "engine.log")
        context = multiprocessing.get_context("spawn")  # a fork would inherit this one's threads
        self.pipe, theirs = context.Pipe()
        job = (theirs, self.log, engine, s, arguments)
        self.process = context.Process(target=serve, args=job, daemon=True)
        self.process.start()
        theirs.close()
        self._answer(300)

    def _answer(self, limit: float) -> tuple[Any, float]:
        try:
            if not self.pipe.poll(limit):
                raise RuntimeError(f"no answer within {limit:g} s")
            answer = self.pipe.recv()
            if isinstance(answer, Exception):
                raise answer
        except EOFError:
            self.process.join(5)
            self.close()
            raise RuntimeError(f"its process died, exit code {self.process.exitcode}") from None
        except RuntimeError:
            self.close()
            raise
        return answer

    def ask(self, mode: str, *values: Any) -> tuple[Any, float]:
        self.pipe.send((mode, values))
        return self._answer(self.limit)

    def close(self) -> None:
        self.process.kill()
        self.process.join()


Stories = list[tuple[list[int], list[int]]]


def right_stories(s: Setup, n: int) -> tuple[Stories, str]:
    """Prompts with their greedy continuations of n tokens, by pyllama2c in float32, and its isa.

    Synthetic models tend to repeat one word, which wrong weights would do, too: of many prompts,
    the 8 with the most different words, all of them words.
    """
    letters = np.frombuffer(b"abcdefghijklmnopqrstuv", np.uint8).astype(int) + FIRST_BYTE
    rows = np.random.default_rng(5).choice(letters, (256, 30))
    prompts = [[1, SPACE, *row] for row in rows.tolist()]
    with Llama(s.model, s.tokenizer, speculative=False, threads=s.threads) as llama:
        batch = llama.generate_batch(prompts, in_order=True, max_tokens=n, temperature=0)
        stories = [(c.prompt_tokens, c.tokens) for c in batch if min(c.tokens) >= FIRST_WORD]
        return sorted(stories, key=lambda pair: -len(set(pair[1])))[:8], llama.isa


def agreement(worker: Worker, e: Entry, right: Stories) -> tuple[int, int]:
    """Greedy tokens before the first that differs, in every mode, and how many there are."""
    n = len(right[0][1])
    found = [(worker.ask("decode", prompt, n, None)[0], story) for prompt, story in right]
    if "batch" in e.modes:
        prompts, stories = zip(*right, strict=True)
        found += zip(worker.ask("batch", list(prompts), n, None)[0], stories, strict=True)
    if "prefill" in e.modes:
        found += [(worker.ask("prefill", [p])[0], story[:1]) for p, story in right]
    same = 0
    for mine, theirs in found:
        equal = [a == b for a, b in zip(mine, theirs, strict=False)]
        same += [*equal, False].index(False)
    return same, sum(len(theirs) for _, theirs in found)


def start(a: argparse.Namespace, s: Setup, result: dict[str, Any]) -> dict[str, tuple[Entry, Any]]:
    """The engines that are installed and right; `result` gets the outcome of each."""
    int8_model = s.model.with_name("model-int8.bin")
    quantize_file(s.model, int8_model)
    right, result["isa"] = right_stories(s, 16)
    running: dict[str, tuple[Entry, Any]] = {}
    for name, e in entries(a, int8_model).items():
        if a.engines and not any(part.lower() in name.lower() for part in a.engines):
            continue
        if not set(e.modes) & set(a.only):
            continue
        missing = [m for m in e.needs if find_spec(m.split(".")[0]) is None]
        if missing:
            result["skipped"][name] = f"not installed: {', '.join(missing)}"
            continue
        try:
            arguments = e.arguments
            if e.engine is Binary:
                arguments = (arguments[0], arguments[1] or s.model)
            if e.conversion:
                conversion = Worker(Conversion, s, e.conversion, a.limit)
                arguments = (conversion.ask("where")[0], *arguments)
                conversion.close()
            worker = Worker(e.engine, s, arguments, a.limit)
            same, total = agreement(worker, e, right)
        except (RuntimeError, OSError) as error:
            result["skipped"][name] = str(error)
            continue
        result["same_greedy_tokens"][name] = [same, total]
        print(f"{name:26} {same} of {total} greedy tokens as pyllama2c float32", file=sys.stderr)
        if e.exact and same < total:
            worker.close()
            result["skipped"][name] = f"WRONG: {same} of {total} greedy tokens right; not timed"
            continue
        running[name] = e, worker
    return running


def scenario(mode: str, a: argparse.Namespace, vocab_size: int, seed: int) -> tuple[int, list[Any]]:
    """Tokens to count and the arguments of a turn. Prompts differ from round to round, so that
    pyllama2c's cached prompts never help; within a round every engine has the same."""
    rng = np.random.default_rng(1000 + seed)
    if mode == "decode":
        # Not BOS alone: its embedding is zeros, so that all tokens are equally likely after it, and
        # engines that sample would pay for that.
        return a.tokens, [[1, SPACE, FIRST_BYTE + ord("a") + seed % 26], a.tokens, seed]
    if mode == "prefill":
        prompts = rng.integers(FIRST_WORD, vocab_size, (PROMPTS, a.prompt))
        return prompts.size, [prompts.tolist()]
    first = rng.integers(FIRST_WORD, vocab_size, a.batch).tolist()
    return a.batch * a.batch_tokens, [[[1, i] for i in first], a.batch_tokens, seed]


def measure(a: argparse.Namespace, s: Setup, result: dict[str, Any]) -> None:
    running = start(a, s, result)
    scenarios = result["scenarios"]
    shares: dict[str, list[float]] = {}
    for mode in a.only:
        scenarios[mode] = {name: {"all": []} for name, (e, _) in running.items() if mode in e.modes}
    for seed in range(a.rounds + 1):  # round 0 warms up
        for mode in a.only:
            count, values = scenario(mode, a, abs(SHAPES[a.shape][5]), seed)
            turns = [name for name, (e, _) in running.items() if mode in e.modes]
            first = seed % max(1, len(turns))
            for name in turns[first:] + turns[:first]:
                e, worker = running[name]
                time.sleep(0.2)  # OpenMP threads of the previous engine spin this long
                try:
                    tokens, seconds = worker.ask(mode, *values)
                    expected = PROMPTS if mode == "prefill" else count
                    if e.engine is not Binary and np.size(tokens) != expected:
                        raise RuntimeError(f"{np.size(tokens)} tokens instead of {expected}")
                    if not seed:
                        continue
                    scenarios[mode][name]["all"].append(count / seconds)
                    # Speculation reads the weights less than once a token.
                    if mode == "decode" and e.engine is Pyllama2c and True not in e.arguments:
                        sweep, bandwidth = worker.ask("sweep")[0]
                        shares.setdefault(name, []).append(count / seconds * sweep / bandwidth)
                except (RuntimeError, OSError) as error:
                    result["skipped"][name] = f"{mode}, round {seed}: {error}"
                    worker.close()
                    del running[name]
                    for figures in scenarios.values():  # every list has every round
                        figures.pop(name, None)
        print(f"round {seed} of {a.rounds} done", file=sys.stderr)
    for _, worker in running.values():
        worker.close()
    for figures in scenarios.values():
        for name, f in figures.items():
            f["tokens_per_second"] = median(f["all"])
            f["ratio"] = {
                mine: median(x / y for x, y in zip(figures[mine]["all"], f["all"], strict=True))
                for mine in figures
                if is_ours(mine) and not is_ours(name)
            }
    result["share_of_read_bandwidth"] = {name: median(all_) for name, all_ in shares.items()}


def to_text(r: dict[str, Any]) -> str:
    lines = [
        f"{r['shape']}, {r['threads']} thread(s), {processor()}, {r['isa']}, "
        f"median of {r['rounds']} round(s)",
        NOTE,
    ]
    for mode, figures in r["scenarios"].items():
        mine = [name for name in figures if is_ours(name)]
        heads = "".join(f"{name.removeprefix('pyllama2c '):>15}" for name in mine)
        ratios = "pyllama2c is this many times as fast, by dtype" if mine else ""
        lines += ["", f"{r['title'][mode]:58}{ratios}"]
        lines += [f"{'':26}{'tok/s':>9}{'lowest':>9}{'highest':>9}{heads}"]
        for name, f in sorted(figures.items(), key=lambda pair: -pair[1]["tokens_per_second"]):
            rates = (f["tokens_per_second"], min(f["all"]), max(f["all"]))
            beside = "".join(f"{f['ratio'][m]:15.2f}" for m in mine) if f["ratio"] else ""
            lines += [f"{name:26}" + "".join(f"{rate:9,.0f}" for rate in rates) + beside]
    lines += [""]
    for name, share in r["share_of_read_bandwidth"].items():
        lines += [f"{name}: {share:.0%} of the read bandwidth measured beside it"]
    for name, (same, total) in r["same_greedy_tokens"].items():
        if same < total:
            lines += [f"{name}: {same} of {total} greedy tokens as pyllama2c float32"]
    lines += [", ".join(f"{name} {version}" for name, version in r["versions"].items())]
    lines += [f"skipped: {name} ({reason})" for name, reason in r["skipped"].items()]
    return "\n".join(lines)


def versions() -> dict[str, str]:
    names = "pyllama2c numpy llama_cpp_python gguf openvino optimum-intel nncf ctranslate2"
    out = {}
    for name in [*names.split(), "transformers", "torch"]:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def main() -> None:
    made = parser(__doc__, rounds=5)
    made.add_argument("--run", action="append", default=[], metavar="NAME=PATH")
    made.add_argument("--runq", action="append", default=[], metavar="NAME=PATH")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--only", type=words, default=["decode", "batch", "prefill"])
    made.add_argument("--engines", type=words, metavar="PART,...", help="parts of their names")
    made.add_argument("--tokens", type=int, default=200, help="of a decoded story")
    made.add_argument("--batch", type=int, default=64, help="stories of a batch")
    made.add_argument("--batch-tokens", type=int, default=100, help="of each story of a batch")
    made.add_argument("--prompt", type=int, default=200, help="tokens of a prefill")
    made.add_argument("--limit", type=float, default=120, help="seconds a turn may take")
    a = made.parse_args()
    if unknown := set(a.only) - {"decode", "batch", "prefill"}:
        made.error(f"--only: {', '.join(unknown)}?")
    os.environ |= {"OMP_NUM_THREADS": str(a.threads), "HF_HUB_OFFLINE": "1"}
    result: dict[str, Any] = {
        "isa": "",
        "shape": a.shape,
        "threads": a.threads,
        "rounds": a.rounds,
        "title": {
            "decode": f"decode: one stream of {a.tokens} tokens",
            "batch": f"batch: {a.batch} streams of {a.batch_tokens} tokens",
            "prefill": f"prefill: {a.prompt} tokens, last logits",
        },
        "scenarios": {},
        "same_greedy_tokens": {},
        "skipped": {},
        "versions": versions(),
    }
    with model_files(a.shape) as (model, tokenizer):
        positions = max(a.tokens, a.batch_tokens + 1, a.prompt, 50) + 1
        measure(a, Setup(model, tokenizer, a.threads, positions), result)
    finish(a, result, to_text(result))


if __name__ == "__main__":
    main()
