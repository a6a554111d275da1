"""`serve` and `verify`."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path

from pyllama2c.cli.flags import load
from pyllama2c.cli.streams import say, show
from pyllama2c.errors import UnsupportedError

KEY_VARIABLE = "PYLLAMA2C_API_KEY"


def serve(arguments: argparse.Namespace) -> int:
    try:
        from pyllama2c.serve.app import App
        from pyllama2c.serve.run import HttpServer, listen, log_to_stderr, run
        from pyllama2c.serve.security import Guard, is_loopback
        from pyllama2c.serve.service import Limits, Service
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"the server needs the package {error.name}: pip install 'pyllama2c[serve]'"
        ) from None
    key = _key(arguments)
    if not (is_loopback(arguments.host) or key or arguments.insecure):
        raise ValueError(
            f"--host {arguments.host} lets other machines ask: set {KEY_VARIABLE} or "
            "--api-key-file, or say --insecure"
        )
    limits = Limits(
        body_bytes=arguments.max_body,
        queued=arguments.max_queued,
        wait=arguments.wait_timeout,
        request=arguments.request_timeout,
        join_seconds=arguments.join_ms / 1000,
    )
    with listen(arguments.host, arguments.port) as listener, load(arguments) as llama:
        service = Service(llama, slots=arguments.slots, limits=limits, model_name=arguments.alias)
        hosts = [arguments.host, *(arguments.allowed_host or ())]
        guard = Guard(hosts, arguments.cors_origin or (), key)
        app = App(service, guard, strict_model=arguments.strict_model)
        log_to_stderr()

        def ready() -> None:
            facts = f"{llama.config.dtype}, {service.engine.slots} slots"
            say(f"{service.model_name}: {facts}, {_url(listener)}")

        run(HttpServer(service, app, listener, arguments.drain_timeout), ready)
    return 0


def _key(arguments: argparse.Namespace) -> str | None:
    if arguments.api_key_file is None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        return key or None
    key = Path(arguments.api_key_file).read_text("utf-8", "surrogateescape").strip()
    if not key:
        raise ValueError(f"{arguments.api_key_file} is empty; it must hold a key")
    return key


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def verify(arguments: argparse.Namespace) -> int:
    try:
        from pyllama2c.serve.receipts import load_receipt
        from pyllama2c.serve.receipts import verify as tell_again
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"receipts need the package {error.name}: pip install 'pyllama2c[serve]'"
        ) from None
    receipt = load_receipt(arguments.receipt)
    with load(arguments) as llama:
        try:
            verdict = tell_again(llama, receipt)
        except TypeError as error:  # of the file's, not of a caller's
            raise ValueError(f"{arguments.receipt}: {error}") from None
    if verdict["identical"]:
        show("identical")
        return 0
    for difference in verdict["differences"]:
        show(difference)
    return 1
