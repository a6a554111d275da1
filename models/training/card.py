"""Measure a model for its card: bits per byte, variety beside real stories, samples unedited.

Prints Markdown; with --write it goes between the markers of models/README.md.

python models/training/card.py ../shared/text/heldout_tinystories.json --write \\
    --compare "the same in float32" build/practised/model.bin build/teacher/tokenizer.bin \\
    --compare stories260K.bin ../shared/models/stories260K.bin ../shared/models/tok512.bin
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from stories import distinct, repetition

from pyllama2c import Llama
from pyllama2c.cli.evaluate import evaluate, read_passages
from pyllama2c.files.whole import whole_file
from pyllama2c.generation.batch_story import Completion

CARD = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
N_SAMPLED = 200
TEMPERATURE = 0.8


def of_words(texts: list[str], count: int) -> list[str]:
    """The first `count` words of all texts together: distinct-n falls with length."""
    out = []
    for text in texts:
        words = text.split()[:count]
        out.append(" ".join(words))
        count -= len(words)
    return out


def told(llama: Llama, count: int, seed: int) -> list[Completion]:
    stories = llama.generate_batch(
        [""], n=count, temperature=TEMPERATURE, seed=seed, in_order=True, max_batch=64
    )
    return list(stories)


def rows_of_bits(models: list[tuple[str, Llama]], passages: list[str]) -> Iterator[str]:
    yield "| model | parameters | bits per byte | longer than the context |"
    yield "|---|---:|---:|---:|"
    for name, llama in models:
        result = evaluate(llama, passages)
        yield f"| {name} | {llama.n_parameters:,} | {result.bits_per_byte:.4f} | {result.long} |"


def rows_of_variety(sampled: list[str], real: list[str]) -> Iterator[str]:
    count = min(sum(len(text.split()) for text in texts) for texts in (sampled, real))
    yield f"| first {count:,} words | distinct-1 | distinct-2 | distinct-3 | repeated 4-grams |"
    yield "|---|---:|---:|---:|---:|"
    for name, texts in (("sampled", sampled), ("held-out passages", real)):
        cut = of_words(texts, count)
        figures = " | ".join(f"{distinct(cut, n):.3f}" for n in (1, 2, 3))
        repeated = sum(map(repetition, texts)) / len(texts)
        yield f"| {name} | {figures} | {repeated:.3f} |"


def samples(stories: list[Completion], first_seed: int) -> Iterator[str]:
    for i, story in enumerate(stories):
        ended = "ended by itself" if story.finish_reason == "stop" else "cut off by the context"
        yield f"\nSeed {first_seed + i} ({len(story.tokens)} tokens, {ended}):\n"
        yield "\n".join(f"> {line}".rstrip() for line in story.text.strip().split("\n"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("held_out", type=Path, help="JSON file with a list `passages`")
    parser.add_argument(
        "--compare",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "MODEL", "TOKENIZER"),
        help="another model for the first table",
    )
    parser.add_argument("--write", action="store_true", help="into models/README.md")
    arguments = parser.parse_args()
    passages = read_passages(arguments.held_out)
    ours = Llama(CARD.parent / "storyteller.bin", CARD.parent / "tokenizer.bin")
    models = [("storyteller.bin, as shipped", ours)]
    models += [(name, Llama(model, tokenizer)) for name, model, tokenizer in arguments.compare]
    many = told(ours, N_SAMPLED, 1)
    ended = sum(story.finish_reason == "stop" for story in many)
    lines = [
        *rows_of_bits(models, passages),
        "",
        f"{N_SAMPLED} stories sampled at temperature {TEMPERATURE}, top-p 0.9, seeds from 1 on, "
        f"beside the held-out passages; {ended} of them ended by themselves:",
        "",
        *rows_of_variety([story.text for story in many], passages),
        "",
        f"## Samples\n\nTemperature {TEMPERATURE}, top-p 0.9, no prompt, seeds 1 to 10, unedited.",
        *samples(many[:10], 1),
    ]
    block = "\n".join(lines)
    print(block)
    if arguments.write:
        card = CARD.read_text(encoding="utf-8")
        before, rest = card.split(BEGIN)
        after = rest.split(END)[1]
        with whole_file(CARD) as file:
            file.write(f"{before}{BEGIN}\n{block}\n{END}{after}".encode())


if __name__ == "__main__":
    main()
