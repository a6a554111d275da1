"""Writes GGUF files: metadata and tensor infos by the `gguf` package, weights a few rows at a time.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gguf import GGUFValueType, GGUFWriter, LlamaFileType, RopeScalingType, TokenType
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray
from tqdm import tqdm

from pyllama2c.convert.model_config import ModelConfig
from pyllama2c.convert.tensors import Computed, Tensor, spans
from pyllama2c.convert.vocabulary import Vocabulary
from pyllama2c.errors import CheckpointError, TokenizerError
from pyllama2c.files.whole import whole_file
from pyllama2c.tokenizers.control_tokens import CONTROL, END_TEXTS
from pyllama2c.tokenizers.gguf import END_IDS

_ALIGNMENT = 32

_NO_TOKEN = 2**32 - 1
"""how files say that there is no BOS"""

_F32, _F16 = GGMLQuantizationType.F32, GGMLQuantizationType.F16
_Q8, _Q4 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0
_TYPES = {
    "float32": (_F32, LlamaFileType.ALL_F32),
    "float16": (_F16, LlamaFileType.MOSTLY_F16),
    "int8": (_Q8, LlamaFileType.MOSTLY_Q8_0),
    "int4": (_Q4, LlamaFileType.MOSTLY_Q4_0),
}
DTYPES = tuple(_TYPES)


def storage_type(name: str, shape: tuple[int, ...], dtype: str) -> GGMLQuantizationType:
    """What a weight is stored as: matrices in `dtype`, if possible.

    Norms stay float32. Embedding and classifier are int8 at most: int4 costs them more than it
    saves. Rows that do not divide into groups of 32 stay float16.
    """
    wanted, _ = _TYPES[dtype]
    if len(shape) == 1:
        return _F32
    if wanted is _Q4 and name in ("token_embd.weight", "output.weight"):
        wanted = _Q8
    return wanted if shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else _F16


def _bytes(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    values, size = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=object)) // values * size


def encode(x: NDArray[np.float32], kind: GGMLQuantizationType, name: str) -> NDArray[np.generic]:
    """Rows as the file holds them. CheckpointError for values that `kind` cannot hold."""
    largest = np.abs(x).max(initial=np.float32(0))
    if not np.isfinite(largest):
        raise CheckpointError(f"{name}: a weight is NaN or infinite")
    # float16 ends at 65504; as the scale of a group it is the group's largest weight / 127 or / 8.
    steps = {_F16: 1, _Q8: 127, _Q4: 8}.get(kind)
    if steps is not None and largest / steps >= 65520:
        raise CheckpointError(
            f"{name}: a weight of {largest:g} is beyond {kind.name}'s range; use float32"
        )
    # Groups whose weights are all near 1e-38 divide by zero on their way to becoming zero.
    with np.errstate(all="ignore"):
        out: NDArray[np.generic] = quantize(x, kind)
    return out


def _encoded(tensor: Tensor, kind: GGMLQuantizationType) -> Iterator[NDArray[np.generic]]:
    for start, stop in spans(tensor.shape):
        yield encode(tensor.rows(start, stop), kind, tensor.name)


def _add_config(writer: GGUFWriter, c: ModelConfig, name: str, dtype: str) -> None:
    writer.add_name(name)
    writer.add_file_type(_TYPES[dtype][1])
    writer.add_quantization_version(2)
    writer.add_context_length(c.context_length)
    writer.add_embedding_length(c.dim)
    writer.add_block_count(c.n_layers)
    writer.add_feed_forward_length(c.hidden_dim)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_key_length(c.head_size)
    writer.add_value_length(c.head_size)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_dimension_count(c.head_size)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_vocab_size(c.vocab_size)
    if c.rope_linear is not None:
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(c.rope_linear)


def add_vocabulary(writer: GGUFWriter, v: Vocabulary | None) -> None:
    if v is None:
        writer.add_tokenizer_model("no_vocab")
        return
    writer.add_tokenizer_model(v.model)
    if v.pre is not None:
        writer.add_tokenizer_pre(v.pre)
    pieces, types, scores = zip(*v.rows(), strict=True)
    writer.add_token_list(pieces)
    writer.add_token_types([TokenType(kind) for kind in types])
    if v.model == "llama":
        writer.add_token_scores(scores)
    else:
        writer.add_token_merges(v.merges)
    _add_own(writer, v)
    further = sorted(set(v.ends) - {v.eos, v.eot})
    if further:
        writer.add_array(END_IDS, further)
    # llama.cpp, which does not read our key, has two more for control tokens that it does not
    # recognize as an end by their text.
    unknown = [i for i in further if types[i] == CONTROL and pieces[i] not in END_TEXTS]
    eot, eom, *_ = [*unknown, None, None] if v.eot is None else [v.eot, *unknown, None]
    for add, token in (
        (writer.add_eot_token_id, eot),
        (writer.add_eom_token_id, eom),
        (writer.add_pad_token_id, v.pad),
        (writer.add_sep_token_id, v.sep),
        (partial(writer.add_uint32, "tokenizer.ggml.cls_token_id"), v.cls),
        (writer.add_mask_token_id, v.mask),
    ):
        if token is not None:
            add(token)
    # A missing key stands for an id.
    for add, token in (
        (writer.add_bos_token_id, v.bos),
        (writer.add_eos_token_id, v.eos),
        (writer.add_unk_token_id, v.unk),
    ):
        add(_NO_TOKEN if token is None else token)
    writer.add_add_bos_token(v.add_bos)
    writer.add_add_eos_token(v.add_eos)
    writer.add_add_space_prefix(v.add_space)
    if v.chat_template is not None:
        writer.add_chat_template(v.chat_template)


def _add_own(writer: GGUFWriter, v: Vocabulary) -> None:
    """What GGUF has no keys for; other readers ignore it."""
    if v.prepend_scheme is not None:
        writer.add_string("pyllama2c.tokenizer.prepend_scheme", v.prepend_scheme)
    if v.split_spaces:
        writer.add_bool("pyllama2c.tokenizer.split_spaces", True)
    if v.unk_surface is not None:
        key = "pyllama2c.tokenizer.unk_surface"
        writer.add_key_value(key, v.unk_surface, GGUFValueType.STRING)  # add_string omits ""
    writer.add_array("pyllama2c.tokenizer.lstrip", sorted(v.lstrip))
    writer.add_array("pyllama2c.tokenizer.rstrip", sorted(v.rstrip))
    if v.model == "llama" and v.merges:
        writer.add_array("pyllama2c.tokenizer.merges", v.merges)


class Layout(NamedTuple):
    """A GGUF file that is still to be written."""

    head: bytes
    """all that comes before the weights"""
    tensors: dict[str, Tensor]
    """by name, in the file's order"""
    kinds: dict[str, GGMLQuantizationType]
    size: int
    """of the whole file, in bytes"""


def _padded(n: int) -> int:
    return -(-n // _ALIGNMENT) * _ALIGNMENT


def _head(writer: GGUFWriter) -> bytes:
    """The package writes only to files, and only whole tensors: too large for a 70B model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "head")
        try:
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()
        data = path.read_bytes()
    return data.ljust(_padded(len(data)), b"\0")


def lay_out(
    config: ModelConfig,
    tensors: dict[str, Tensor],
    vocabulary: Vocabulary | None,
    dtype: str,
    *,
    name: str,
) -> Layout:
    """A model of architecture `llama`, all but its weights, which are not read yet."""
    divisors = config.rope_divisors()
    if divisors is not None:
        tensors = {"rope_freqs.weight": Computed("rope_freqs", divisors), **tensors}
    kinds = {n: storage_type(n, tensor.shape, dtype) for n, tensor in tensors.items()}
    sizes = {n: _bytes(tensor.shape, kinds[n]) for n, tensor in tensors.items()}
    writer = GGUFWriter(None, "llama")
    _add_config(writer, config, name, dtype)
    add_vocabulary(writer, vocabulary)
    for n, tensor in tensors.items():
        writer.add_tensor_info(n, tensor.shape, np.dtype(np.float32), sizes[n], kinds[n])
    try:
        head = _head(writer)
    except UnicodeEncodeError as error:  # JSON can name halves of surrogate pairs
        file = name if vocabulary is None else vocabulary.path
        raise TokenizerError(f"{file}: its tokenizer has invalid Unicode: {error}") from error
    return Layout(head, tensors, kinds, len(head) + sum(map(_padded, sizes.values())))


def write_gguf(target: Path, layout: Layout, *, progress: bool) -> None:
    """The file appears under its name once it is complete."""
    total = layout.size - len(layout.head)
    with (
        whole_file(target) as file,
        tqdm(total=total, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        file.write(layout.head)
        for n, tensor in layout.tensors.items():
            size = 0
            for rows in _encoded(tensor, layout.kinds[n]):
                file.write(rows.data)
                bar.update(rows.nbytes)
                size += rows.nbytes
            file.write(bytes(_padded(size) - size))
