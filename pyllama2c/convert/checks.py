"""What must be right before the first byte is written: the target, and what the file will be."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
from pathlib import Path

from pyllama2c._ffi import ffi
from pyllama2c.chat.template import ChatTemplate
from pyllama2c.convert.tensors import Given
from pyllama2c.convert.writer import Layout
from pyllama2c.engine.options import Options
from pyllama2c.engine.plan import plan_buffer, size
from pyllama2c.files.gguf import Gguf
from pyllama2c.files.hub import no_tokenizer
from pyllama2c.files.recognize import Kind, kind_of_file
from pyllama2c.tokenizers.gguf import has_tokenizer
from pyllama2c.tokenizers.source import TokenizerSource


def check_target(target: Path, source: Path) -> None:
    """OSError for a target that cannot be written, or that would take the place of a source."""
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name the file to write", str(target))
    folder = target.parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "nothing can be written there", str(folder))
    if not target.is_file() or kind_of_file(target) is Kind.GGUF:
        return
    for path in (*source.iterdir(), source.resolve().parent / "tokenizer.model"):
        if path.exists() and path.samefile(target):
            raise FileExistsError(errno.EEXIST, "is a file of the model's folder", str(target))


def check_opens(layout: Layout, target: Path, source: Path, tokenizer_file: Path) -> None:
    """The errors that opening the file would raise, and using its tokenizer and chat template; they
    name what those were read from.

    OSError where the disk has no room for it.
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
    """The file with nothing but zeros for weights, which take no room: holes in a file without a
    name, where the target will be."""
    folder = Path(os.path.realpath(target)).parent
    if target.exists() and not target.is_file():  # a pipe: it is in no folder
        folder = Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if layout.size > free:
        sizes = f"{size(layout.size)} are to be written, {size(free)} are free"
        raise OSError(errno.ENOSPC, sizes, str(target))
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(layout.head)
            first = next(iter(layout.tensors.values()))
            if isinstance(first, Given):  # RoPE's divisors, which opening looks at
                file.write(first.rows(0, first.shape[0]).data)
            file.truncate(layout.size)
            return mmap.mmap(file.fileno(), layout.size, access=mmap.ACCESS_READ)
    except OSError as error:  # such as a file system's limit, or the process's own
        why = f"{size(layout.size)} cannot be written: {error.strerror}"
        raise OSError(error.errno, why, str(target)) from error
