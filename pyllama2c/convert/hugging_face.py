"""Models as transformers saves them: config.json and safetensors, or PyTorch's files."""

from __future__ import annotations

from collections.abc import Callable, Collection
from errno import ENOENT
from fnmatch import filter as matching
from pathlib import Path

from pyllama2c.convert.json_files import read_json
from pyllama2c.convert.layout import collect
from pyllama2c.convert.model_config import ModelConfig, from_hugging_face
from pyllama2c.convert.tensors import Interleaved, Tensor, same
from pyllama2c.errors import CheckpointError, CheckpointNotFoundError, CheckpointWarning, warn

_CLASSIFIER, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

_Opener = Callable[[Path], dict[str, Tensor]]


def _safetensors(path: Path) -> dict[str, Tensor]:
    from pyllama2c.convert.safetensors_files import open_safetensors

    return open_safetensors(path)


def _torch(path: Path) -> dict[str, Tensor]:
    from pyllama2c.convert.torch_files import open_state_dict

    return open_state_dict(path)


_FORMATS: tuple[tuple[str, str, _Opener], ...] = (
    ("model.safetensors", "model*.safetensors", _safetensors),
    ("pytorch_model.bin", "pytorch_model*.bin", _torch),
)

SETTINGS = ("config.json", *(f"{whole}.index.json" for whole, _, _ in _FORMATS))


def _shards(folder: Path, names: Collection[str], whole: str, pattern: str) -> list[str]:
    """The files of one format: those that the index names, else all that match. A single file with
    all weights takes precedence over an index, as in transformers."""
    index = f"{whole}.index.json"
    if index not in names:
        return sorted(matching(names, pattern))
    if whole in names:
        return [whole]
    table = read_json(folder / index).object("weight_map")
    named = [name for _, name in table.items()]
    if wrong := [name for name in named if not isinstance(name, str) or Path(name).name != name]:
        raise CheckpointError(f"{folder / index} names {str(wrong[0])[:100]!r}, not a file name")
    for name in sorted(set(named) - set(names)):
        why = f"missing, but named by {index}"
        raise CheckpointNotFoundError(ENOENT, why, str(folder / name))
    return sorted(set(named))


def has_weights(names: Collection[str]) -> bool:
    return any(matching(names, pattern) for _, pattern, _ in _FORMATS)


def weight_files(folder: Path, names: Collection[str]) -> list[str]:
    """Which of `names`, all files of the folder, hold the weights. Of these files only an index
    must be in `folder`."""
    formats = (_shards(folder, names, whole, pattern) for whole, pattern, _ in _FORMATS)
    return next(filter(None, formats), [])


def _open_weights(folder: Path) -> dict[str, Tensor]:
    names = [path.name for path in folder.iterdir()]
    for whole, pattern, opener in _FORMATS:
        found: dict[str, Tensor] = {}
        for file in _shards(folder, names, whole, pattern):
            for name, tensor in opener(folder / file).items():
                if name in found:
                    raise CheckpointError(f"{tensor.name} is also in {found[name].name}")
                found[name] = tensor
        if found:
            return found
    patterns = " nor ".join(pattern for _, pattern, _ in _FORMATS)
    raise CheckpointNotFoundError(ENOENT, f"no weights: neither {patterns}", str(folder))


def open_folder(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The configuration, and the weights under GGUF's names and in its row order, not read yet."""
    source = read_json(folder / "config.json")
    config = from_hugging_face(source)
    tied = source.boolean("tie_word_embeddings", False)
    found = _open_weights(folder)
    if tied and _CLASSIFIER in found and _EMBEDDING in found:
        tied = same(found[_CLASSIFIER], found[_EMBEDDING])
        if not tied:
            warn(
                f"{found[_CLASSIFIER].name} differs from the embedding, although config.json sets "
                "tie_word_embeddings: it is kept, as in transformers 5",
                CheckpointWarning,
            )
    for name in list(found):
        # Old files hold RoPE's frequencies, which follow from the configuration, and some
        # hold the embedding a second time as a classifier.
        if name.endswith(".rotary_emb.inv_freq") or (tied and name == _CLASSIFIER):
            del found[name]
    tensors = collect(config, tied, found, lambda w: w.hugging_face, str(folder))
    for name, tensor in tensors.items():
        if name.endswith((".attn_q.weight", ".attn_k.weight")):
            tensors[name] = Interleaved(tensor, config.head_size)
    return config, tensors
