"""Train a Llama on the stories of a run file; run again to resume where it was killed.

python models/training/train.py models/training/storyteller.toml
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
from pathlib import Path

import matplotlib
import numpy as np
import sentencepiece as spm
import torch
import torch.nn.functional as F
from llama import Llama
from run import Run, Training, load_run
from tqdm import tqdm

matplotlib.use("Agg")
from matplotlib import pyplot

BOS = 1


class Windows:
    """Training windows of seq_len + 1 tokens.

    Every epoch shuffles the stories and cuts the new stream, so that a window seldom repeats.
    Which windows step i sees depends on the seed and i alone, so a resumed run sees the same.
    """

    def __init__(self, run: Run, stories: list[str], tokenizer: spm.SentencePieceProcessor):
        self.stories = [np.array([BOS, *ids]) for ids in tokenizer.encode(stories)]
        self.length, self.batch = run.model.seq_len + 1, run.training.batch_size
        self.seed = run.training.seed
        total = sum(len(story) for story in self.stories)
        self.steps_per_epoch = max(1, total // (self.length * self.batch))
        self.epoch, self.windows = -1, torch.empty(0)

    def __getitem__(self, step: int) -> torch.Tensor:
        epoch, i = divmod(step, self.steps_per_epoch)
        if epoch != self.epoch:
            order = list(range(len(self.stories)))
            random.Random(f"{self.seed} {epoch}").shuffle(order)
            stream = torch.from_numpy(np.concatenate([self.stories[j] for j in order]))
            count = self.steps_per_epoch * self.batch
            stream = stream.repeat(1 + count * self.length // len(stream))
            self.windows = stream[: count * self.length].view(count, self.length)
            self.epoch = epoch
        return self.windows[i * self.batch : (i + 1) * self.batch]


def learning_rate(step: int, t: Training) -> float:
    """Linear warm-up, then half a cosine down to a twentieth."""
    if step < t.warmup_steps:
        return t.learning_rate * (step + 1) / t.warmup_steps
    progress = (step - t.warmup_steps) / max(1, t.steps - t.warmup_steps)
    return t.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def bits_per_byte(model: Llama, tokenizer: spm.SentencePieceProcessor, texts: list[str]) -> float:
    """-log2 p of each text after BOS, over its UTF-8 bytes; what does not fit is left out."""
    model.eval()
    nats, n_bytes = 0.0, 0
    for text in texts:
        ids = torch.tensor([[BOS, *tokenizer.encode(text)]], device=model.table.device)
        ids = ids[:, : model.config.seq_len + 1]
        logits = model(ids[:, :-1]).float()
        nats += F.cross_entropy(logits[0], ids[0, 1:], reduction="sum").item()
        n_bytes += len(text.encode())
    model.train()
    return nats / math.log(2) / n_bytes


def plot(log: Path, out: Path) -> None:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    evaluated = [row for row in rows if "bits_per_byte" in row]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    left.plot([r["step"] for r in rows], [r["loss"] for r in rows], linewidth=0.5)
    left.set(xlabel="step", ylabel="training loss (nats per token)")
    right.plot([r["step"] for r in evaluated], [r["bits_per_byte"] for r in evaluated])
    right.set(xlabel="step", ylabel="validation bits per byte (averaged weights)")
    figure.tight_layout()
    figure.savefig(out)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="TOML file that describes the run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stop-after", type=int, help="stop early at this step, as if killed")
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    t, device = run.training, torch.device(arguments.device)
    torch.manual_seed(t.seed)

    tokenizer = spm.SentencePieceProcessor(model_file=str(run.out / "tokenizer.model"))
    stories = run.stories()
    random.Random(t.seed).shuffle(stories)
    n_validation = min(100, len(stories) // 20)
    validation, stories = stories[:n_validation], stories[n_validation:]
    windows = Windows(run, stories, tokenizer)

    model = Llama(run.model).to(device)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(t.ema_decay)
    )
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": t.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=t.learning_rate, betas=(0.9, 0.95), fused=True)

    checkpoint, log, step = run.out / "checkpoint.pt", run.out / "log.jsonl", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        lines = log.read_text().splitlines()
        log.write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] < step))
    elif log.exists():
        log.unlink()

    def save() -> None:
        temporary = checkpoint.with_suffix(".part")
        state = {"model": model.state_dict(), "average": average.state_dict()}
        torch.save(state | {"optimizer": optimizer.state_dict(), "step": step}, temporary)
        os.replace(temporary, checkpoint)

    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{n_parameters:,} parameters, {len(stories):,} stories, ", end="")
    print(f"{windows.steps_per_epoch} steps an epoch, {device}")
    end = min(t.steps, arguments.stop_after or t.steps)
    bar = tqdm(total=t.steps, initial=step, unit="step")
    while step < end:
        torch.manual_seed(t.seed * 1_000_003 + step)  # dropout, too, is the same after resuming
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, t)
        batch = windows[step].to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), t.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update_parameters(model)
        row = {"step": step, "loss": round(loss.item(), 5), "lr": learning_rate(step, t)}
        if (step + 1) % t.evaluate_every == 0 or step + 1 == end:
            row["bits_per_byte"] = round(bits_per_byte(average.module, tokenizer, validation), 5)
            bar.set_postfix(loss=row["loss"], bits_per_byte=row["bits_per_byte"])
        with log.open("a") as f:
            f.write(json.dumps(row) + "\n")
        step += 1
        bar.update()
        if "bits_per_byte" in row:
            save()
    bar.close()
    if log.exists():
        plot(log, run.out / "loss.svg")


if __name__ == "__main__":
    main()
