"""Checks before the first byte is written: of the target, and of the file to come."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
from pathlib import Path

from pyllama2c._ffi import ffi
from pyllama2c.chat.template import ChatTemplate
from pyllama2c.convert.tensors import Computed
from pyllama2c.convert.writer import Layout
from pyllama2c.engine.options import Options
from pyllama2c.engine.plan import plan_buffer, size
from pyllama2c.files.gguf import Gguf
from pyllama2c.files.hub import no_tokenizer
from pyllama2c.files.recognize import Kind, kind_of_file
from pyllama2c.tokenizers.gguf import has_tokenizer
from pyllama2c.tokenizers.source import TokenizerSource


def check_target(target: Path, source: Path) -> None:
    """OSError for a target that cannot be written, or that would overwrite a source file."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name the file to write", str(target))
    folder = target.parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "is not a writable folder", str(folder))
    if not target.is_file() or kind_of_file(target) is Kind.GGUF:
        return
    for path in (*source.iterdir(), source.resolve().parent / "tokenizer.model"):
        if path.exists() and path.samefile(target):
            raise FileExistsError(errno.EEXIST, "is one of the source files", str(target))


def check_opens(layout: Layout, target: Path, source: Path, tokenizer_file: Path) -> None:
    """Raises the errors that opening the finished file, or using its tokenizer and chat template,
    would raise; they name the source files.

    OSError if the disk has no room for it.
    """
    image = _image(layout, target)
    config = plan_buffer(ffi.from_buffer(image), Options(), str(source)).config

    def open_gguf() -> Gguf:
        return Gguf.from_buffer(image, str(tokenizer_file))

    if not has_tokenizer(open_gguf()):
        return
    found = TokenizerSource(config, None, no_tokenizer(str(source)), open_gguf)
    tokenizer = found.tokenizer
    if found.chat_template is not None:
        template = ChatTemplate(found.chat_template, tokenizer, str(source))
        tokenizer.encode_parts(template.parts([{"role": "user", "content": "Hi"}]))


def _image(layout: Layout, target: Path) -> mmap.mmap:
    """The file with zeros for weights, which take no disk space: holes in an unnamed file in the
    target's folder."""
    folder = Path(os.path.realpath(target)).parent
    if target.exists() and not target.is_file():  # a pipe, which takes no space in its folder
        folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if layout.size > free:
        sizes = f"the file needs {size(layout.size)}; {size(free)} are free"
        raise OSError(errno.ENOSPC, sizes, str(target))
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(layout.head)
            first = next(iter(layout.tensors.values()))
            if isinstance(first, Computed):  # RoPE's divisors, which opening checks
                file.write(first.rows(0, first.shape[0]).data)
            file.truncate(layout.size)
            return mmap.mmap(file.fileno(), layout.size, access=mmap.ACCESS_READ)
    except OSError as error:  # such as a limit of the file system or the process
        why = f"{size(layout.size)} cannot be written: {error.strerror}"
        raise OSError(error.errno, why, str(target)) from error
