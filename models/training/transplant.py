"""Give a pretrained Llama the run's small vocabulary: where a teacher starts from.

A piece that the pretrained tokenizer has too keeps its embedding; another one gets the mean of the
embeddings of the tokens that spell it. All other weights stay as they are. A small vocabulary
makes a small model faster to tune and to run (SmolLM2's 49,152 tokens are a fifth of its weights),
and lets a pupil learn from the teacher's probabilities, token by token.

python models/training/transplant.py models/training/teacher.toml SmolLM2-135M-Instruct.Q4_1.gguf
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
import sentencepiece as spm
import torch
from gguf.quants import dequantize
from llama import Llama, weight_name
from numpy.typing import NDArray
from run import load_run

from pyllama2c import Llama as Engine
from pyllama2c.convert.layout import weights
from pyllama2c.files.whole import whole_file
from pyllama2c.tokenizers.base import BaseTokenizer

END_OF_TEXT = 0  # between SmolLM2's documents, so it stands for BOS, which is between stories
NEVER = 16  # a control token that SmolLM2 was not taught to say: for ids that stories do not use


def tokens_of_pieces(pieces: spm.SentencePieceProcessor, old: BaseTokenizer) -> list[list[int]]:
    """For each piece, the old tokens that spell it."""
    out = []
    for i in range(pieces.vocab_size()):
        if i == pieces.bos_id():
            out.append([END_OF_TEXT])
        elif pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i):
            out.append([NEVER])
        else:
            out.append(old.encode(pieces.id_to_piece(i).replace("▁", " ")))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="TOML file that describes the run")
    parser.add_argument("gguf", type=Path, help="the pretrained model, with its tokenizer")
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    reader = gguf.GGUFReader(arguments.gguf)
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def weight(name: str) -> torch.Tensor:
        tensor = tensors[name]
        values: NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(values.copy())

    model = Llama(run.model)
    names = weights(run.model.n_layers, tied=True)
    state = {weight_name(name.meta): weight(f"{name.gguf}.weight") for name in names}
    embedding = state["tok_embeddings.weight"]
    pieces = run.pieces()
    with Engine(arguments.gguf) as engine:
        spelled = tokens_of_pieces(pieces, engine.tokenizer)
    state["tok_embeddings.weight"] = torch.stack([embedding[ids].mean(dim=0) for ids in spelled])
    state["output.weight"] = state["tok_embeddings.weight"]  # SmolLM2's are tied
    model.load_state_dict(state)  # which checks every shape
    with whole_file(run.out / "start.pt") as file:
        torch.save(model.state_dict(), file)
    whole = sum(len(ids) == 1 for ids in spelled)
    print(f"wrote {run.out / 'start.pt'}: {whole} of {len(spelled)} pieces were tokens before")


if __name__ == "__main__":
    main()
