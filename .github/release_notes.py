"""Prints what CHANGELOG.md says of a tag's version: `python .github/release_notes.py v0.1.0`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def notes(tag: str, version: str, changelog: str) -> str:
    """The section headed `## VERSION (YYYY-MM-DD)`, without its heading."""
    if tag != f"v{version}":
        raise SystemExit(f"the tag is {tag}, but pyllama2c.__version__ is {version}")
    for section in re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        if heading.split(" ")[0] != version:
            continue
        if not re.fullmatch(r"\S+ \(\d{4}-\d\d-\d\d\)", heading):
            raise SystemExit(f"CHANGELOG.md: '## {heading}' has no date (YYYY-MM-DD)")
        if not text.strip():
            raise SystemExit(f"CHANGELOG.md: nothing stands below '## {heading}'")
        return text.strip() + "\n"
    raise SystemExit(f"CHANGELOG.md has no section '## {version} (YYYY-MM-DD)'")


if __name__ == "__main__":
    init = (ROOT / "pyllama2c" / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', init, re.MULTILINE)
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(notes(sys.argv[1], version, (ROOT / "CHANGELOG.md").read_text("utf-8")))
