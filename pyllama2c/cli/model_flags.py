"""Flags that say which model, and how it is computed."""

from __future__ import annotations

import argparse


def add_file(parser: argparse._ActionsContainer, *name: str) -> None:
    """The flags of a model, wherever it is computed."""
    parser.add_argument(
        *(name or ("model",)),
        nargs="?",
        help="a GGUF file, a llama2.c checkpoint, a known model's name, or hf://owner/name[/file] "
        "[the embedded one]",
    )
    parser.add_argument("-z", "--tokenizer", metavar="PATH", help="tokenizer.bin of the model")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "int8", "int4"),
        default="auto",
        help="what weights are computed with; auto: what the file holds",
    )
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="positions of a story at most; default: the model's",
    )
    parser.add_argument(
        "--kv-dtype",
        choices=("float32", "float16"),
        default="float32",
        help="what keys and values are kept in; float16: half the memory of a context [float32]",
    )


def add_model(parser: argparse._ActionsContainer, *name: str) -> None:
    """Those of `add_file`, and how this computer computes it."""
    add_file(parser, *name)
    parser.add_argument(
        "--no-speculative",
        action="store_true",
        help="do not let an int8 copy draft tokens; the story is the same",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: by the model's size")
    parser.add_argument(
        "--isa",
        choices=["auto", "scalar", "avx2", "avxvnni", "avx512", "neon", "dotprod", "i8mm", "runq"],
        help="kernels; all compute the same bits, but runq, which rounds as runq.c does",
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="cpu, cuda or cuda:N (an NVIDIA card): the story is the same [$PYLLAMA2C_DEVICE, cpu]",
    )
