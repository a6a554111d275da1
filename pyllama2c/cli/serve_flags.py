"""The flags of `serve`, `verify` and `page`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from pyllama2c.cli.model_flags import add_file, add_model


def _above(least: float, kind: type[float] = float) -> Callable[[str], float]:
    """A number of at least `least`."""

    def number(text: str) -> float:
        value = kind(text)
        if not least <= value <= 1e9:  # NaN, too
            raise ValueError
        return value

    number.__name__ = f"number (at least {least:g})"  # argparse's message says it
    return number


def add_serve(commands: Any) -> None:
    serve: argparse.ArgumentParser = commands.add_parser(
        "serve", help="answer HTTP requests, as OpenAI's API does"
    )
    add_model(serve.add_argument_group("model"))
    serve.add_argument("--alias", metavar="NAME", help="the model's name for clients")
    add = serve.add_argument_group("listening").add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="[127.0.0.1]")
    add("--port", type=int, default=8080, metavar="N", help="0: any that is free [8080]")
    add("--api-key-file", metavar="PATH", help="holds the key [$PYLLAMA2C_API_KEY; none]")
    add("--insecure", action="store_true", help="let other machines ask without a key")
    add(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help="a name of this server, besides localhost; may be given several times",
    )
    add(
        "--cors-origin",
        action="append",
        metavar="ORIGIN",
        help="let this origin's web pages ask (*: all); may be given several times",
    )
    add("--strict-model", action="store_true", help="answer 404 for any other model's name")
    limits = serve.add_argument_group("limits")
    add = limits.add_argument
    whole, seconds = _above(1, int), _above(0)
    add("--slots", type=whole, metavar="N", help="stories at a time [64, or what fits]")
    add("--max-queued", type=whole, default=256, metavar="N", help="requests that wait [256]")
    add("--max-body", type=whole, default=1 << 20, metavar="N", help="bytes [1 MiB]")
    add("--wait-timeout", type=seconds, default=60.0, metavar="S", help="for a slot [60]")
    add("--request-timeout", type=seconds, default=600.0, metavar="S", help="in all [600]")
    add("--drain-timeout", type=seconds, default=30.0, metavar="S", help="at shutdown [30]")
    add(
        "--join-ms",
        type=seconds,
        default=0.0,
        metavar="MS",
        help="send a stream's events together that come within this time; 25 saves work [0]",
    )


def add_verify(commands: Any) -> None:
    verify: argparse.ArgumentParser = commands.add_parser(
        "verify", help="tell a receipt's story again"
    )
    verify.add_argument("receipt", metavar="RECEIPT", help="a file: what `receipt: true` returned")
    add_model(verify)


def add_page(commands: Any) -> None:
    page: argparse.ArgumentParser = commands.add_parser(
        "page", help="write a web page that tells stories by itself"
    )
    page.add_argument("target", metavar="HTML", help="the file to write")
    add_file(page)
    page.set_defaults(no_speculative=True, threads=None, isa="auto", device="cpu")
