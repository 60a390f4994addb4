"""Hooks of the documentation's site (`mkdocs.yml`): pages that stand elsewhere in the repository are part of it.

The README is the front page. A link that leads out of `docs/` leads to a page of the site: a text as it is, a program
as a block of code. So every relative link works in the repository and on the site, and MkDocs checks it.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "avalanche_ntk/kernels/README.md": "engine.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "conduct.md",
}
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")


def page_of(path: str) -> str:
    """Return where a file of the repository stands on the site.

    Args:
        path: The file, relative to the repository's root.

    Returns:
        Its place relative to `docs/`: that of the file itself where it lies there.
    """
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{path}.md"


def moved_links(text: str, folder: str, page: str) -> tuple[str, set[str]]:
    """Return a page's text with links that work on the site.

    Args:
        text: The page.
        folder: The folder of the repository in which the page stands.
        page: Where it stands on the site.

    Returns:
        The text, and the files outside `docs/` that it links to.
    """
    outside: set[str] = set()

    def moved(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, found[1]))
        if not (ROOT / path).is_file():
            return found[1]  # MkDocs warns of it
        if not path.startswith("docs/"):
            outside.add(path)
        return posixpath.relpath(page_of(path), posixpath.dirname(page) or ".")

    return LINK.sub(moved, text), outside


def content(path: str) -> str:
    """Return a file outside `docs/` as a page: Markdown as it is, anything else as a block of code."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    return f"# `{path}`\n\n````{'python' if path.endswith('.py') else 'text'}\n{text.rstrip()}\n````\n"


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that stand elsewhere, and those that they link to."""
    wanted, done = [*PAGES], set[str]()
    for file in files.documentation_pages():
        wanted += moved_links(file.content_string, posixpath.dirname(f"docs/{file.src_uri}"), file.src_uri)[1]
    while wanted:
        path = wanted.pop()
        if path in done:
            continue
        done.add(path)
        text, outside = moved_links(content(path), posixpath.dirname(path), page_of(path))
        wanted += outside
        files.append(File.generated(config, page_of(path), content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Let the links of a page of `docs/` lead to the site's pages."""
    if page.file.generated_by:
        return markdown
    return moved_links(markdown, posixpath.dirname(f"docs/{page.file.src_uri}"), page.file.src_uri)[0]
