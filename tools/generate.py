"""Write the generated documents, or with --check say which of them are stale.

docs/settings.md comes from modelport.settings, docs/errors/ from modelport.errors and error_pages.py, docs/openapi.json
from the running application's routes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import error_pages
import settings_page

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    """Write what changed; with `--check`, write nothing and return 1 when something would."""
    check = "--check" in arguments
    stale = 0
    for path, text in _documents().items():
        if path.is_file() and path.read_text() == text:
            continue
        stale += 1
        print(f"{path.relative_to(ROOT)} is {'stale: run `make generate`' if check else 'written'}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for path in _left_over():
        stale += 1
        print(f"{path.relative_to(ROOT)} describes a code that is gone{': run `make generate`' if check else ''}")
        if not check:
            path.unlink()
    return 1 if check and stale else 0


def _documents() -> dict[Path, str]:
    documents = {ROOT / "docs" / "settings.md": settings_page.page()}
    documents |= {ROOT / "docs" / "errors" / f"{name}.md": text for name, text in error_pages.pages().items()}
    return documents


def _left_over() -> list[Path]:
    known = {f"{name}.md" for name in error_pages.pages()}
    return [path for path in sorted((ROOT / "docs" / "errors").glob("*.md")) if path.name not in known]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
