"""Write a trained run's averaged weights as files that the engine reads.

model.bin is llama2.c's v0 (float32), model-q8.bin its v2 (int8 groups). A model with a RoPE base
other than llama2.c's 10,000 becomes model.gguf (Q8_0) instead.

python models/training/export.py models/training/practice.toml --install
"""

from __future__ import annotations

import argparse
import shutil
import struct
from pathlib import Path

import numpy as np
import torch
from llama import Llama, LlamaConfig, averaged_weights, weight_name
from numpy.typing import NDArray
from run import Run, load_run

from pyllama2c.convert.quantize import quantize_file
from pyllama2c.files.whole import whole_file


def load_averaged(run: Run) -> Llama:
    model = Llama(run.model)
    model.load_state_dict(averaged_weights(run.out))
    return model.eval()


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().numpy()
    return array


def v0_bytes(model: Llama) -> bytes:
    """Legacy float32: a negative vocab_size says that the classifier has weights of its own."""
    c, layers = model.config, model.layers
    fields = (c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads)
    vocab_size = c.vocab_size if c.tied else -c.vocab_size
    tensors = [model.tok_embeddings.weight]
    tensors += [layer.attention_norm.weight for layer in layers]
    for name in ("wq", "wk", "wv", "wo"):
        tensors += [getattr(layer.attention, name).weight for layer in layers]
    tensors += [layer.ffn_norm.weight for layer in layers]
    for name in ("w1", "w2", "w3"):
        tensors += [getattr(layer, name).weight for layer in layers]
    tensors += [model.norm.weight, model.table[0], model.table[1]]
    if not c.tied:
        tensors.append(model.output.weight)
    header = struct.pack("<7i", *fields, vocab_size, c.seq_len)
    return b"".join([header, *(_array(tensor).tobytes() for tensor in tensors)])


def write_gguf(model: Llama, run: Run, target: Path) -> None:
    from pyllama2c.convert.layout import weights
    from pyllama2c.convert.model_config import ModelConfig
    from pyllama2c.convert.sentencepiece_model import read_sentencepiece
    from pyllama2c.convert.tensors import Computed, Tensor
    from pyllama2c.convert.writer import lay_out, write_gguf

    c: LlamaConfig = model.config
    config = ModelConfig(
        dim=c.dim,
        hidden_dim=c.hidden_dim,
        n_layers=c.n_layers,
        n_heads=c.n_heads,
        n_kv_heads=c.n_kv_heads,
        head_size=c.dim // c.n_heads,
        vocab_size=c.vocab_size,
        context_length=c.seq_len,
        norm_eps=1e-5,
        rope_theta=c.rope_theta,
        rope_linear=None,
        rope_llama3=None,
    )
    state = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for weight in weights(c.n_layers, c.tied):
        name = weight_name(weight.meta)
        tensors[f"{weight.gguf}.weight"] = Computed(name, _array(state[name]))
    vocabulary = read_sentencepiece(run.tokenizer / "tokenizer.model", c.vocab_size)
    layout = lay_out(config, tensors, vocabulary, "int8", name=run.out.name)
    write_gguf(target, layout, progress=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="TOML file that describes the run")
    parser.add_argument("--install", action="store_true", help="as the embedded model in models/")
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    model = load_averaged(run)
    if run.model.rope_theta != 10000:
        write_gguf(model, run, run.out / "model.gguf")
        return
    with whole_file(run.out / "model.bin") as file:
        file.write(v0_bytes(model))
    size = quantize_file(run.out / "model.bin", run.out / "model-q8.bin", run.group_size)
    print(f"wrote {run.out / 'model.bin'} and model-q8.bin ({size:,} bytes)")
    if arguments.install:
        models = Path(__file__).resolve().parent.parent
        shutil.copyfile(run.out / "model-q8.bin", models / "storyteller.bin")
        shutil.copyfile(run.tokenizer / "tokenizer.bin", models / "tokenizer.bin")
        print(f"installed into {models}")


if __name__ == "__main__":
    main()
