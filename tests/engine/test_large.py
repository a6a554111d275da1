"""Weights past 4 GiB: offsets that do not fit 32 bits (llama2.c #164), in a sparse file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from tiny import Shape, TinyLlama

from pyllama2c import Llama

GIB = 1 << 30


def test_offsets_past_4_gib(tmp_path: Path) -> None:
    """An embedding of 4.1 GiB that is zero but for two rows, and the layers behind it."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 10 * GIB:
        pytest.skip(f"needs about 5 GiB of page cache; {free / GIB:.1f} GiB are free")
    vocab_size, last = 1 << 24, (1 << 24) - 1
    small = Shape(dim=66, hidden_dim=8, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=2)
    tiny = TinyLlama.random(small)
    image, row = tiny.v0(), 4 * small.dim
    large = TinyLlama(Shape(**{**small.__dict__, "vocab_size": vocab_size}), {})
    path = tmp_path / "large.bin"
    with path.open("wb") as f:  # token 0 stays token 0, token 1 becomes the last one
        f.write(large.fields(vocab_size) + image[28 : 28 + row])
        f.seek(28 + last * row)
        assert f.tell() > 4 * GIB
        f.write(image[28 + row :])
    expected = tiny.logits([1, 0, 1])
    with Llama(path) as llama:
        session = llama._engine.sessions.lease()
        for position, token in enumerate((last, 0, last)):
            session.feed([token], position, want_logits=int(position == 2))
        logits = session.logits(1, vocab_size)[0]
        np.testing.assert_allclose(logits[[0, last]], expected[2], rtol=0, atol=2e-5)
        assert not logits[1:last].any()
