"""What Ray adds: `write_dataset` with two actors of one thread against `generate_batch` with two.

    python benchmarks/ray_overhead.py --stories 20000

The start of the cluster is not counted, that of the actors is.
"""

from __future__ import annotations

import argparse
import tempfile
from time import perf_counter

import ray

from pyllama2c import Llama
from pyllama2c.integrations.ray import write_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stories", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    prompts = ["Once upon a time"] * arguments.stories
    made = {"seed": 1, "max_tokens": arguments.tokens}
    one = []
    for _ in range(arguments.rounds):  # before Ray is there, whose processes take time too
        started = perf_counter()
        with Llama(threads=2) as llama:
            for story in llama.generate_batch(prompts, **made):
                assert story.error is None
        one.append(perf_counter() - started)
    # One CPU more than the actors have, for the tasks that read.
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    rows = ray.data.from_items([{"id": i, "prompt": p} for i, p in enumerate(prompts)])
    for alone in one:
        with tempfile.TemporaryDirectory() as folder:
            started = perf_counter()
            assert write_dataset(rows, folder, made, actors=2) == len(prompts)
            ours = perf_counter() - started
        print(f"one process {alone:.1f} s, Ray {ours:.1f} s: {ours / alone - 1:+.1%}")


if __name__ == "__main__":
    main()
