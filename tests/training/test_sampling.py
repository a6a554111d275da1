"""Telling many stories at once in PyTorch: what a step with a past computes, what it chooses."""

from __future__ import annotations

from typing import Any

import pytest
from training import module, needs_packages

pytestmark = needs_packages

BOS = 1


def devices() -> list[Any]:
    try:
        import torch
    except ImportError:
        return ["cpu"]
    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return ["cpu", pytest.param("cuda", marks=no_gpu)]


def small_model(device: str, seed: int = 0) -> Any:
    """Of random weights, and not very sure of anything."""
    import torch

    torch.manual_seed(seed)
    llama = module("llama")
    config = llama.LlamaConfig(
        dim=32,
        hidden_dim=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        vocab_size=60,
        seq_len=200,
        tied=False,
    )
    model = llama.Llama(config).eval()
    torch.nn.init.normal_(model.output.weight, std=0.3)
    return model.to(device)


TEMPERATURE, TOP_P = 1.2, 0.8


def told(device: str, seed: int = 5) -> tuple[Any, Any]:
    """A model, and 40 of its stories that begin alike."""
    import torch

    model = small_model(device)
    begun = torch.tensor([[BOS, 7, 9]], device=device).repeat(40, 1)
    return model, module("sampling").tell(model, begun, 150, TEMPERATURE, TOP_P, seed)


@pytest.mark.parametrize("device", devices())
def test_a_step_with_a_past_is_a_whole_reading(device: str) -> None:
    import torch

    llama, model = module("llama"), small_model(device)
    tokens = torch.randint(0, 60, (3, 12), device=device)
    held = [torch.zeros(2, 3, 2, 20, 8, device=device) for _ in model.layers]
    parts = []
    with torch.no_grad():
        for begin, end in ((0, 4), (4, 5), (5, 12)):
            past = llama.Past(torch.arange(begin, end, device=device), held)
            parts.append(model(tokens[:, begin:end], past))
        torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=2e-5, rtol=0)


@pytest.mark.parametrize("device", devices())
def test_stories_are_told_by_the_models_probabilities(device: str) -> None:
    import torch

    lessons = module("lessons")
    model, stories = told(device)
    assert stories.ended.sum() > 5 and len(set(stories.lengths.tolist())) > 5
    first_choices = set()
    for i, length in enumerate(stories.lengths.tolist()):
        tokens = stories.tokens[i, :length]
        assert tokens[:3].tolist() == [BOS, 7, 9]
        assert (tokens[3:-1] != BOS).all() and bool(stories.ended[i]) == (tokens[-1] == BOS)
        with torch.no_grad():
            logits = model(tokens[None, :-1])[0]
        p = torch.softmax(logits, -1)[2:]
        at = slice(2, length - 1)
        marked = stories.probabilities[i, at].float()
        torch.testing.assert_close(marked, p.topk(lessons.K).values, atol=1e-3, rtol=0)
        of_ids = p.gather(1, stories.ids[i, at].long())
        torch.testing.assert_close(marked, of_ids, atol=1e-3, rtol=0)
        q = torch.softmax(logits / TEMPERATURE, -1)[2:]
        of_chosen = q.gather(1, tokens[3:, None])
        likelier = torch.where(q > of_chosen + 1e-6, q, 0).sum(1)
        assert (likelier < TOP_P + 1e-4).all()
        first_choices.add(tokens[3].item())
    assert len(first_choices) > 5


@pytest.mark.parametrize("device", devices())
def test_a_seed_tells_the_same_stories(device: str) -> None:
    first, again, other = (told(device, seed)[1] for seed in (5, 5, 6))
    assert (first.tokens == again.tokens).all() and not (first.tokens == other.tokens).all()


@pytest.mark.parametrize("device", devices())
def test_choices_follow_the_probabilities(device: str) -> None:
    import torch

    torch.manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], device=device)
    logits = p.log().repeat(20000, 1)
    for temperature, top_p, kept in ((1.0, 1.0, 4), (1.0, 0.7, 2), (0.5, 0.97, 3)):
        expected = p ** (1 / temperature)
        expected[kept:] = 0
        expected /= expected.sum()
        chosen = module("sampling").choose(logits, temperature, top_p)
        found = torch.bincount(chosen[:, 0], minlength=4) / 20000
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_a_model_in_bfloat16_is_nearly_the_same() -> None:
    import torch

    model = small_model("cpu")
    tokens = torch.randint(0, 60, (2, 30))
    with torch.no_grad():
        exact = torch.softmax(model(tokens), -1)
        rough = torch.softmax(module("sampling").in_bfloat16(model)(tokens).float(), -1)
    assert model.norm.weight.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.02, rtol=0)
