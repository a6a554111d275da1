"""Models of many gigabytes: do they load, how fast are they, and does `info` predict their memory?

    python benchmarks/large.py [--folder /tmp] [--json benchmarks/results/large.json]

Writes a GGUF file of random int8 or int4 blocks (or float16) in a model's exact shape (streamed: no
float32 copy is ever made; up to 7.2 GB of disk, 13.5 in float16, removed again), opens it in a fresh interpreter and generates to
the end of --context, so that all its memory is used. Peaks are the
system's VmHWM, in which pages of the mapped file count while they are mapped, less what the
interpreter had before it opened the model. Needs the gguf package (pip install .[convert]).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, parser, table
from gguf import GGMLQuantizationType, GGUFWriter
from numpy.typing import NDArray

from pyllama2c.cli.bench import tokenizer_image
from pyllama2c.cli.info import describe
from pyllama2c.engine.options import Options

# dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
SHAPES = {
    "llama-2-7b": (4096, 11008, 32, 32, 32, 32000, 4096),
    "open_llama_3b": (3200, 8640, 26, 32, 32, 32000, 2048),
}
# blocks of 32 values: type, bytes of integers (0: float16), the scale for weights of about 0.02
BLOCKS = {
    "int8": (GGMLQuantizationType.Q8_0, 32, 0.02 / 74),
    "int4": (GGMLQuantizationType.Q4_0, 16, 0.02 / 4.6),
    "float16": (GGMLQuantizationType.F16, 0, 0.02),
}
PIECE = 1 << 20
"""blocks that are made once and written repeatedly, each time from another start"""

CHILD = """
import json, sys, time
from pyllama2c import Llama

def memory():
    lines = open("/proc/self/status").read().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: 1024 * int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM")}

path, tokenizer, context, tokens = sys.argv[1:3] + [int(word) for word in sys.argv[3:]]
before = memory()
started = time.perf_counter()
llama = Llama(path, tokenizer, context=context)
seconds = time.perf_counter() - started
opened = memory()
story = llama.generate([1] + [5] * (context - tokens - 1), max_tokens=tokens, seed=1,
                       stop_tokens=())
story.read()
print(json.dumps({
    "open_seconds": seconds, "threads": llama.threads, "isa": llama.isa, "sweep": llama.sweep_bytes,
    "tokens_per_second": story.stats.tokens_per_second, "tokens": len(story.tokens),
    "prefill_tokens_per_second": story.stats.prefill_tokens_per_second,
    "before": before, "opened": opened, "told": memory(),
}))
"""


def write(path: Path, shape: str, dtype: str) -> None:
    """A file whose matrices are random blocks of the type that `dtype` takes as they are."""
    dim, hidden, layers, heads, kv_heads, vocab, context = SHAPES[shape]
    kind, n_bytes, scale = BLOCKS[dtype]
    blocks = _blocks(n_bytes, scale)
    head = dim // heads
    matrices = {
        "attn_q": (dim, dim),
        "attn_k": (kv_heads * head, dim),
        "attn_v": (kv_heads * head, dim),
        "attn_output": (dim, dim),
        "ffn_gate": (hidden, dim),
        "ffn_up": (hidden, dim),
        "ffn_down": (dim, hidden),
    }
    tensors: list[tuple[str, tuple[int, ...]]] = [("token_embd", (vocab, dim))]
    for layer in range(layers):
        tensors += [(f"blk.{layer}.{name}", size) for name, size in matrices.items()]
        tensors += [(f"blk.{layer}.{name}", (dim,)) for name in ("attn_norm", "ffn_norm")]
    tensors += [("output_norm", (dim,)), ("output", (vocab, dim))]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_embedding_length(dim)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, size in tensors:
        count = int(np.prod(size))
        both = (kind, count // 32 * blocks.shape[1]) if len(size) == 2 else (None, 4 * count)
        writer.add_tensor_info(f"{name}.weight", size, np.dtype(np.float32), both[1], both[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    rng = np.random.default_rng(1)
    with path.open("ab") as file:
        for _, size in tensors:
            file.write(bytes(-file.tell() % 32))
            if len(size) == 1:
                file.write(np.ones(size, np.float32).data)
                continue
            left = int(np.prod(size)) // 32
            while left:
                start = int(rng.integers(PIECE // 2))
                part = blocks[start : start + min(left, PIECE - start)]
                file.write(part.data)
                left -= len(part)
        file.write(bytes(-file.tell() % 32))


def _blocks(n_bytes: int, scale: float) -> NDArray[np.uint8]:
    rng = np.random.default_rng(2)
    if n_bytes == 0:
        return (scale * rng.standard_normal((PIECE, 32), np.float32)).astype("<f2").view(np.uint8)
    blocks = np.empty((PIECE, n_bytes + 2), np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    blocks[:, 2:] = rng.integers(0, 256, (PIECE, n_bytes), np.uint8)
    return blocks


def measure(folder: Path, shape: str, dtype: str, context: int, tokens: int) -> dict[str, Any]:
    path, tokenizer = folder / f"{shape}-{dtype}.gguf", folder / "tokenizer.bin"
    tokenizer.write_bytes(tokenizer_image(SHAPES[shape][5]))
    try:
        write(path, shape, dtype)
        facts = describe(str(path), Options(context=context))
        command = [sys.executable, "-c", CHILD, str(path), str(tokenizer)]
        done = subprocess.run(
            [*command, str(context), str(tokens)], capture_output=True, check=False
        )
    finally:
        path.unlink(missing_ok=True)
    if done.returncode:
        raise SystemExit(done.stderr.decode()[-1000:])
    seen = json.loads(done.stdout)
    plan = next(p for p in facts["memory"]["plans"] if p["dtype"] == "auto")
    base = seen["before"]["VmRSS"]
    return {
        "shape": shape,
        "dtype": facts["dtype"],
        "parameters": facts["parameters"],
        "file_bytes": facts["file_bytes"],
        "predicted": {name: plan[name] for name in ("weights", "cache", "scratch", "peak")},
        "predicted_opened": plan["weights"],
        "predicted_resident": plan["resident"],
        "resident": seen["told"]["VmRSS"] - base,
        "peak": seen["told"]["VmHWM"] - base,
        "peak_to_predicted": (seen["told"]["VmHWM"] - base) / plan["peak"],
        "weights_gb_per_second": seen["tokens_per_second"] * seen["sweep"] / 1e9,
        **seen,
        "opened": seen["opened"]["VmRSS"] - base,
    }


def main() -> None:
    made = parser(__doc__, rounds=1)
    made.add_argument("--folder", type=Path, help="where the files go [a temporary folder]")
    made.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    made.add_argument("--dtypes", nargs="+", choices=BLOCKS, default=["int8", "int4"])
    made.add_argument("--context", type=int, default=256, metavar="N", help="positions [256]")
    made.add_argument("--tokens", type=int, default=32, metavar="N", help="of the story [32]")
    arguments = made.parse_args()
    rows = []
    for shape in arguments.shapes:
        for dtype in arguments.dtypes:
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                row = measure(Path(folder), shape, dtype, arguments.context, arguments.tokens)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr)
    head = ["GB", "file", "predicted peak", "peak", "off by", "opened", "resident", "s to open"]
    head += ["prefill tok/s", "tok/s", "GB/s"]
    lines = [
        [
            f"{row['shape']} {row['dtype']}",
            *(f"{n / 1e9:.2f}" for n in (row["file_bytes"], row["predicted"]["peak"], row["peak"])),
            f"{row['peak_to_predicted'] - 1:+.1%}",
            *(f"{n / 1e9:.2f}" for n in (row["opened"], row["resident"])),
            f"{row['open_seconds']:.1f}",
            f"{row['prefill_tokens_per_second']:.1f}",
            f"{row['tokens_per_second']:.2f}",
            f"{row['weights_gb_per_second']:.1f}",
        ]
        for row in rows
    ]
    result = {"context": arguments.context, "tokens": arguments.tokens, "rows": rows}
    finish(arguments, result, table(head, lines))


if __name__ == "__main__":
    main()
