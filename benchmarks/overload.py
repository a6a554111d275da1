"""What the server does when twice as many ask as it has room for.

    python benchmarks/overload.py [--seconds 60] [--model MODEL]

Needs wrk (Debian: apt install wrk). Ends with an error unless every answer was a 200 or a 429,
memory stayed as it was, and Ctrl-C ended the server within its drain time.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

SLOTS, QUEUED, DRAIN_SECONDS = 64, 256, 30
CONNECTIONS = 2 * (SLOTS + QUEUED)
"""each of which asks again as soon as it is answered"""

WARM_SECONDS = 10
MOST_GROWTH = 0.05

SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
local bodies, n = {%s}, 0
function request()
  n = n + 1
  return wrk.format(nil, nil, nil, bodies[n %% #bodies + 1])
end
"""


def bodies() -> str:
    """Lua strings: streamed and not, of several lengths and prompts."""
    prompts = ["Once upon a time", "The lion and the rabbit " * 8, "One day"]
    made = [
        {"prompt": prompt, "max_tokens": tokens, "stream": stream, "ignore_eos": True}
        for prompt in prompts
        for tokens in (1, 20, 100)
        for stream in (True, False)
    ]
    return ", ".join(f"'{json.dumps(body)}'" for body in made)


class Server:
    """`pyllama2c serve` as its own process."""

    def __init__(self, model: str | None):
        command = [sys.executable, "-m", "pyllama2c", "serve", "--port", "0"]
        command += ["--slots", str(SLOTS), "--max-queued", str(QUEUED)]
        command += ["--drain-timeout", str(DRAIN_SECONDS), *([model] if model else [])]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://[\d.:]+", line)
        if found is None:
            raise RuntimeError(line + self.process.stdout.read())
        self.url = found[0]

    @property
    def mib(self) -> float:
        """Main memory that it has."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found is not None
        return int(found[1]) / 1024

    def metrics(self, pattern: str) -> dict[str, float]:
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            text = answer.read().decode()
        return {name: float(value) for name, value in re.findall(rf"^{pattern} (.+)$", text, re.M)}

    def wait_until_idle(self) -> None:
        while any(self.metrics(r"pyllama2c:(requests_(?:processing|deferred))").values()):
            time.sleep(0.1)


def wrk(url: str, script: str, seconds: int) -> list[str]:
    command = ["wrk", "-t", "1", "-c", str(CONNECTIONS), "-d", str(seconds)]
    return [*command, "--timeout", "120", "-s", script, f"{url}/v1/completions"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--model")
    arguments = parser.parse_args()
    wrong: list[str] = []
    server = Server(arguments.model)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT % bodies())
        script.flush()
        memory = [server.mib]
        for seconds in (WARM_SECONDS, arguments.seconds):
            ran = subprocess.run(
                wrk(server.url, script.name, seconds), capture_output=True, text=True, check=True
            )
            server.wait_until_idle()
            memory.append(server.mib)
        print(ran.stdout)
        answers = server.metrics(
            r'pyllama2c:requests_total\{route="/v1/completions",status="(\d+)"\}'
        )
        print("answers by status:", {status: int(n) for status, n in answers.items()})
        print("MiB at the start, warm, after:", [round(each, 1) for each in memory])
        if set(answers) != {"200", "429"}:
            wrong.append("other answers than 200 and 429")
        if memory[2] > (1 + MOST_GROWTH) * memory[1]:
            wrong.append("memory grew")
        load = subprocess.Popen(wrk(server.url, script.name, 15), stdout=subprocess.DEVNULL)
        time.sleep(5)
        started = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        rest, _ = server.process.communicate(timeout=2 * DRAIN_SECONDS)
        seconds_to_end = time.monotonic() - started
        load.terminate()
        load.wait()
    print(
        f"Ctrl-C under load: ended after {seconds_to_end:.1f} s, exit {server.process.returncode}"
    )
    print(rest, end="")
    if seconds_to_end > DRAIN_SECONDS + 3:
        wrong.append("Ctrl-C took longer than the drain time")
    if "Traceback" in rest:
        wrong.append("a traceback in the log")
    if wrong:
        sys.exit("; ".join(wrong))


if __name__ == "__main__":
    main()
