"""For mkdocs: files of the repository that the pages link to become pages of the site.

docs/ is read on its own, too, where `../csrc/forward.c#L23` leads to the file. The site has no
files but its own, so it gets a page for each, with the lines as anchors.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)(?:#L(\d+))?\)")
FOLDER = "sources"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.docs_dir).parent
    linked = set()
    for file in files.documentation_pages():
        linked |= {target.rstrip("/") for target, _ in OUTSIDE.findall(file.content_string)}
    for target in sorted(linked):
        content = _page(target, root / target)
        files.append(File.generated(config, f"{FOLDER}/{target}.md", content=content))
    return files


def _page(name: str, path: Path) -> str:
    head = f"---\nsearch:\n  exclude: true\nhide: [navigation, toc]\n---\n\n# {name}\n\n"
    if path.is_dir():
        names = sorted(
            entry.name for entry in path.iterdir() if not entry.name.startswith((".", "__"))
        )
        return head + "".join(f"- {entry}\n" for entry in names)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return head + text
    fence = "`" * (1 + max(map(len, ["``", *re.findall("`+", text)])))
    language = {".h": "c", ".cuh": "cpp", ".cu": "cpp"}.get(path.suffix, path.suffix[1:])
    return f'{head}{fence}{{.{language or "text"} linenums="1"}}\n{text}\n{fence}\n'


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri.startswith(FOLDER + "/"):
        return markdown
    here = posixpath.dirname(page.file.src_uri) or "."

    def moved(match: re.Match[str]) -> str:
        target, line = match.groups()
        page_of = posixpath.relpath(f"{FOLDER}/{target.rstrip('/')}.md", here)
        return f"]({page_of}{f'#__codelineno-0-{line}' if line else ''})"

    return OUTSIDE.sub(moved, markdown)
