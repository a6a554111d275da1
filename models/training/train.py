"""Train a Llama on the stories of a run file; run again to resume where it was killed.

It starts from the averaged weights of the run file's `start`, another run's folder, or from
`start.pt` in its own (see transplant.py), where there is one.

python models/training/train.py models/training/storyteller.toml
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import platform
from itertools import accumulate
from pathlib import Path

import lessons
import matplotlib
import sentencepiece as spm
import torch
import torch.nn.functional as F
from llama import Llama, averaged_weights
from run import Run, Training, load_run
from torch import Tensor
from tqdm import tqdm
from windows import Batch, Windows

from pyllama2c.files.whole import whole_file

matplotlib.use("Agg")
from matplotlib import pyplot


def keep_freed_memory() -> None:
    """Have glibc keep what one step frees for the next one.

    It would hand the larger tensors back to the kernel and get them anew, zeroed page by page:
    a sixth of the time of a step on a CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_threshold, most = -1, -3, 2**31 - 1  # see mallopt(3)
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_threshold, most)
    libc.mallopt(m_trim_threshold, most)


def learning_rate(step: int, t: Training) -> float:
    """Linear warm-up, then half a cosine down to a twentieth; with `restarts` in every stage."""
    total = t.steps
    if t.restarts:
        for stage in t.stages:
            total = stage.steps
            if step < total:
                break
            step -= total
    if step < t.warmup_steps:
        return t.learning_rate * (step + 1) / t.warmup_steps
    progress = (step - t.warmup_steps) / max(1, total - t.warmup_steps)
    return t.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def cross_entropy(logits: Tensor, batch: Batch, hard_weight: float) -> Tensor:
    """Against the next tokens and, where a teacher left marks, against those.

    logits (batch_size, window, vocab_size). Of what the teacher finds unlikely there are no marks;
    a next token from among that counts whole. As often as the teacher's own stories go on with
    such tokens, that makes up for the missing marks.
    """
    logits, target = logits.float(), batch.tokens[:, 1:]
    total = logits.logsumexp(-1)
    hard = total - logits.gather(-1, target[..., None])[..., 0]
    if batch.ids is None or batch.probabilities is None:
        return hard.mean()
    marked = logits.gather(-1, batch.ids) - total[..., None]
    soft = -(batch.probabilities * marked).sum(-1)
    unmarked = (batch.ids != target[..., None]).all(-1)
    return (hard_weight * hard + (1 - hard_weight) * (soft + unmarked * hard)).mean()


@torch.no_grad()
def bits_per_byte(model: Llama, tokenizer: spm.SentencePieceProcessor, texts: list[str]) -> float:
    """-log2 p of each text after BOS, over its UTF-8 bytes; what does not fit is left out."""
    model.eval()
    nats, n_bytes = 0.0, 0
    for text in texts:
        ids = torch.tensor([[lessons.BOS, *tokenizer.encode(text)]], device=model.table.device)
        ids = ids[:, : model.config.seq_len + 1]
        with torch.autocast(ids.device.type, dtype=torch.bfloat16):
            logits = model(ids[:, :-1])
        nats += F.cross_entropy(logits[0].float(), ids[0, 1:], reduction="sum").item()
        n_bytes += len(text.encode())
    model.train()
    return nats / math.log(2) / n_bytes


def plot(log: Path, out: Path) -> None:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    evaluated = [row for row in rows if "bits_per_byte" in row]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    losses = [r["loss"] for r in rows]
    left.plot([r["step"] for r in rows], losses, linewidth=0.5, rasterized=True)  # of any length
    left.set(xlabel="step", ylabel="training loss (nats per token)")
    right.plot([r["step"] for r in evaluated], [r["bits_per_byte"] for r in evaluated])
    right.set(xlabel="step", ylabel="validation bits per byte (averaged weights)")
    figure.tight_layout()
    figure.savefig(out)
    pyplot.close(figure)


class Trainer:
    """Weights, their running average and the optimizer's state: all that a checkpoint holds."""

    def __init__(self, run: Run, device: torch.device):
        self.run, self.device, self.step = run, device, 0
        self.checkpoint, self.log = run.out / "checkpoint.pt", run.out / "log.jsonl"
        t = run.training
        self.model = Llama(run.model).to(device)
        start = run.out / "start.pt"
        if run.start:
            self.model.load_state_dict(averaged_weights(run.start))
        elif start.exists():
            self.model.load_state_dict(torch.load(start, map_location=device, weights_only=True))
        self.average = torch.optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(t.ema_decay)
        )
        matrices = [p for p in self.model.parameters() if p.dim() == 2]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        groups = [
            {"params": matrices, "weight_decay": t.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=t.learning_rate, betas=(0.9, 0.95), fused=True
        )
        # Stages differ in shape: each is compiled for its own, which is faster than for any.
        self.loss = torch.compile(self._loss, dynamic=False) if t.compile else self._loss
        self._resume()

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            self.log.unlink(missing_ok=True)
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        rows = [line for line in self.log.read_text().splitlines() if line]
        kept = [row for row in rows if json.loads(row)["step"] < self.step]
        self.log.write_text("".join(row + "\n" for row in kept))

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "average": self.average.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "step": self.step}
        with whole_file(self.checkpoint) as file:
            torch.save(state, file)

    def _loss(self, batch: Batch, hard_weight: float) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            logits = self.model(batch.tokens[:, :-1])
        return cross_entropy(logits, batch, hard_weight)

    def learn(self, batch: Batch, hard_weight: float) -> float:
        """One step; returns its loss in nats per token."""
        t = self.run.training
        torch.manual_seed(t.seed * 1_000_003 + self.step)  # dropout is the same after resuming
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, t)
        batch = Batch(*(None if part is None else part.to(self.device) for part in batch))
        loss = self.loss(batch, hard_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), t.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update_parameters(self.model)
        self.step += 1
        return loss.item()

    def note(self, row: dict[str, float]) -> None:
        with self.log.open("a") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="TOML file that describes the run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--stop-after", type=int, help="stop early at this step, as if killed")
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    t = run.training
    keep_freed_memory()
    torch.manual_seed(t.seed)
    run.out.mkdir(parents=True, exist_ok=True)
    tokenizer = run.pieces()
    texts, validation = run.split_stories()
    trainer = Trainer(run, torch.device(arguments.device))
    n_parameters = sum(p.numel() for p in trainer.model.parameters())
    print(f"{n_parameters:,} parameters, {trainer.device}")
    last = min(t.steps, arguments.stop_after or t.steps)
    ends = list(accumulate(stage.steps for stage in t.stages))
    with tqdm(total=t.steps, initial=trainer.step, unit="step") as bar:
        for stage, end in zip(t.stages, ends, strict=True):
            if trainer.step >= min(end, last):
                continue
            read = lessons.load(stage.lessons) if stage.lessons else None
            windows = Windows(stage, read or lessons.from_stories(texts, tokenizer), t.seed)
            bar.write(f"{windows.steps_per_epoch} steps an epoch, {stage}")
            for step in range(trainer.step, min(end, last)):
                batch = windows[step - (end - stage.steps)]
                row = {"step": step, "lr": learning_rate(step, t)}
                row["loss"] = round(trainer.learn(batch, stage.hard_weight), 5)
                evaluating = (step + 1) % t.evaluate_every == 0 or step + 1 == min(end, last)
                if evaluating:
                    average = bits_per_byte(trainer.average.module, tokenizer, validation)
                    row["bits_per_byte"] = round(average, 5)
                trainer.note(row)
                if evaluating:  # after the note: a row beyond the checkpoint is written again
                    trainer.save()
                bar.update()
                bar.set_postfix(loss=row["loss"])
    if trainer.log.exists():
        plot(trainer.log, run.out / "loss.svg")


if __name__ == "__main__":
    main()
