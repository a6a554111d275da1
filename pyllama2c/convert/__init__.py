"""Converts Hugging Face and Meta model folders to GGUF files, which llama.cpp reads too.

>>> from pyllama2c.convert import convert
>>> convert("open_llama_3b", "open_llama_3b.gguf", dtype="int8")  # doctest: +SKIP
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from pyllama2c import validate
from pyllama2c.errors import CheckpointError, CheckpointNotFoundError, UnsupportedError

_PACKAGES = ("gguf", "safetensors", "ml_dtypes")


def check_packages() -> None:
    """UnsupportedError if those of the extra `convert` are not installed."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"converting needs {', '.join(missing)}: pip install 'pyllama2c[convert]'"
        )


def _check_source(source: Path) -> None:
    if not source.exists():
        raise CheckpointNotFoundError(errno.ENOENT, "no such folder", str(source))
    if not source.is_dir():
        raise UnsupportedError(
            f"{source} is a file; pass the folder that holds a model's config.json or params.json. "
            "llama2.c's .bin files need no conversion; `pyllama2c quantize` makes them int8"
        )


def settings_files(names: Collection[str]) -> list[str]:
    """Which of `names`, all files of a folder, `convert` reads besides the weights; none if the
    folder holds no model."""
    from pyllama2c.convert import hugging_face, meta_folder
    from pyllama2c.convert.tokenizer_files import FILES

    if "config.json" in names:
        known = hugging_face.SETTINGS if hugging_face.has_weights(names) else ()
    else:
        known = meta_folder.SETTINGS if meta_folder.weight_files(names) else ()
    return [name for name in (*known, *FILES) if known and name in names]


def weight_files(folder: Path, names: Collection[str]) -> list[str]:
    """Which of `names` hold the weights. Only the settings must be in `folder`."""
    from pyllama2c.convert import hugging_face, meta_folder

    if "config.json" in names:
        return hugging_face.weight_files(folder, names)
    return meta_folder.weight_files(names)


def check_settings(folder: Path) -> None:
    """Raises what `convert` would for a Hugging Face folder's settings and tokenizer; the weights
    may still be missing."""
    from pyllama2c.convert.json_files import read_json
    from pyllama2c.convert.model_config import from_hugging_face
    from pyllama2c.convert.tokenizer_files import read_vocabulary

    if (folder / "config.json").is_file():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `convert` repeats them
            config = from_hugging_face(read_json(folder / "config.json"))
            read_vocabulary(folder, config.vocab_size)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: str = "float16",
    tokenizer: bool = True,
    name: str | None = None,
    progress: bool = False,
) -> int:
    """Writes the Llama in the folder `source` to `target`, a GGUF file; returns its bytes.

    `source` holds config.json with *.safetensors or pytorch_model*.bin (Hugging Face), or
    params.json with consolidated.*.pth (Meta), and the tokenizer: tokenizer.model or
    tokenizer.json; `tokenizer=False` leaves it out of the file. Weights are read and written a few
    rows at a time, so memory does not grow with the model. PyTorch's files are read without
    PyTorch, by a reader that cannot execute code.

    `dtype` of the matrices: float32, float16, int8 (Q8_0: groups of 32 with a float16 scale) or
    int4 (Q4_0; embedding and classifier Q8_0). Norms are float32, and matrices whose rows do not
    divide into groups of 32 are float16. `name` is the model's name in the file (None: the
    folder's).

    Before anything is written, the header is opened as the finished file would be: model, tokenizer
    and chat template. The file appears under its name once it is complete. CheckpointError and
    TokenizerError (for missing files, also FileNotFoundError) name the damaged or missing file and
    field, ChatTemplateError a template that makes no prompt, UnsupportedError an unsupported
    feature, OSError what cannot be read or written, including a full disk.
    """
    validate.file_path("source", source)
    validate.file_path("target", target)
    source, target = Path(source), Path(target)
    check_packages()
    _check_source(source)
    from pyllama2c.convert import hugging_face, meta_folder
    from pyllama2c.convert.checks import check_opens, check_target
    from pyllama2c.convert.tokenizer_files import read_vocabulary
    from pyllama2c.convert.writer import DTYPES, lay_out, write_gguf

    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    check_target(target, source)
    if (source / "config.json").is_file():
        config, tensors = hugging_face.open_folder(source)
    elif (source / "params.json").is_file():
        config, tensors = meta_folder.open_folder(source)
    else:
        raise CheckpointError(f"{source} holds neither config.json nor params.json")
    vocabulary = read_vocabulary(source, config.vocab_size) if tokenizer else None
    if name is None:
        name = os.fsencode(source.resolve().name).decode("utf-8", "replace")
    layout = lay_out(config, tensors, vocabulary, dtype, name=name)
    check_opens(layout, target, source, source if vocabulary is None else vocabulary.path)
    write_gguf(target, layout, progress=progress)
    return layout.size
