"""`python -m docs.papers errors FILE`, `… man FOLDER`, `… completions FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from docs.papers import completions, errors, manual


def main(kind: str, place: Path) -> int:
    """Print one kind of paper; returns the exit status."""
    if kind == "errors":
        place.write_text(errors.page())
        return 0
    pages = {"man": manual.pages, "completions": completions.files}[kind]()
    for name, text in pages.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
