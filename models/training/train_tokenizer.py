"""Train a SentencePiece BPE tokenizer with byte fallback and write llama2.c's tokenizer.bin.

python models/training/train_tokenizer.py models/training/storyteller.toml
"""

from __future__ import annotations

import argparse
import io
import struct
from pathlib import Path

import sentencepiece as spm
from run import load_run
from tqdm import tqdm

from pyllama2c.files.whole import whole_file


def write_tokenizer_bin(model: spm.SentencePieceProcessor, path: Path) -> None:
    """llama2.c's format: int32 longest piece; then per piece float32 score, int32 length, bytes."""
    pieces = []
    for i in range(model.vocab_size()):
        piece = {1: "\n<s>\n", 2: "\n</s>\n"}.get(i, model.id_to_piece(i)).replace("▁", " ")
        pieces.append((model.get_score(i), piece.encode()))
    with whole_file(path) as f:
        f.write(struct.pack("<i", max(len(piece) for _, piece in pieces)))
        for score, piece in pieces:
            f.write(struct.pack("<fi", score, len(piece)) + piece)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="TOML file that describes the run")
    run = load_run(parser.parse_args().run)
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(tqdm(run.split_stories()[0], desc="stories", unit="")),
        model_writer=model,
        model_type="bpe",
        vocab_size=run.model.vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        max_sentence_length=1 << 20,
        minloglevel=1,
    )
    run.tokenizer.mkdir(parents=True, exist_ok=True)
    (run.tokenizer / "tokenizer.model").write_bytes(model.getvalue())
    processor = spm.SentencePieceProcessor(model_proto=model.getvalue())
    write_tokenizer_bin(processor, run.tokenizer / "tokenizer.bin")
    print(f"wrote {run.out / 'tokenizer.bin'}: {processor.vocab_size()} pieces")


if __name__ == "__main__":
    main()
