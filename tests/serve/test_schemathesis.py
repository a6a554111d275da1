"""Requests made from /openapi.json: none that fits it, nor one that nearly does, makes the server
fail."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from http_server import serving
from hypothesis import HealthCheck, Phase, given, settings

from pyllama2c import Llama
from pyllama2c.serve.service import Limits

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

EXAMPLES = 20
"""of each endpoint, of either kind"""

bounded = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # an example says enough as it is found
    suppress_health_check=list(HealthCheck),
)


def asker(operation: Any, mode: Any, seen: set[int]) -> Any:
    """Sends what fits an operation, or nearly does; `seen` gets the statuses."""

    @bounded
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        answer = case.call(timeout=600)
        seen.add(answer.status_code)
        assert answer.status_code < 500, (answer.text, case.as_curl_command())
        if answer.status_code != 200:
            assert answer.json()["error"].keys() >= {"message", "type", "param", "code"}

    return ask


def test_no_request_makes_the_server_fail(
    storyteller: Llama, caplog: pytest.LogCaptureFixture
) -> None:
    modes = schemathesis.GenerationMode
    limits = Limits(n=2, prompts=4)
    statuses: dict[tuple[str, Any], set[int]] = {}
    with (
        caplog.at_level(logging.WARNING, "pyllama2c"),
        serving(storyteller, limits=limits) as running,
    ):
        schema = schemathesis.openapi.from_dict(running.http.get("/openapi.json").json())
        schema.config.update(base_url=running.url)
        for operation in (each.ok() for each in schema.get_all_operations()):
            for mode in (modes.POSITIVE, modes.NEGATIVE):
                if operation.method == "post" or mode is modes.POSITIVE:
                    seen = statuses.setdefault((operation.path, mode), set())
                    asker(operation, mode, seen)()
        running.wait_until_idle()
    for path in ("/v1/completions", "/tokenize"):
        assert 200 in statuses[path, modes.POSITIVE], statuses
        assert 400 in statuses[path, modes.NEGATIVE], statuses
    assert not [record for record in caplog.records if record.name.startswith("pyllama2c")]
