"""Sphinx configuration of the site; `make docs` builds it into build/docs."""

import os
import re
from pathlib import Path
from typing import Any

from replica import __version__

PROJECT_DIR = Path(__file__).resolve().parent.parent
DOCS_DIR = PROJECT_DIR / "docs"

project = "replica-alexnet"
author = "The authors of replica-alexnet"
copyright = author
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "AlexNet, 2012"
html_copy_source = False
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

myst_heading_anchors = 4  # the anchors of GitHub, which the documents link to
nb_execution_mode = "off"  # a notebook shows the outputs that it was saved with
default_role = "code"  # docstrings write code in single backticks
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_use_rtype = False

# Documents outside of docs/, and the page that includes each.
PAGES = {
    "README.md": "index.md",
    "REPRODUCE.md": "reproducing.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "data_prep/FORMAT.md": "format.md",
}
INCLUDE = re.compile(r"```\{include\} (\S+)\n```\n")
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)")


def relink(text: str, directory: Path) -> str:
    """Makes relative links of a document, which hold in the repository, hold in the site.

    Links to documents go to their pages, links to other files stay (Sphinx copies the file), and
    a link to a directory becomes its name.

    Args:
        text: Markdown.
        directory: where the document is.
    """

    def replaced(match: re.Match[str]) -> str:
        path = os.path.relpath(directory / match["path"], PROJECT_DIR)
        if (PROJECT_DIR / path).is_dir():
            return f"`{path}`"
        target = PAGES.get(path) or os.path.relpath(PROJECT_DIR / path, DOCS_DIR)
        return f"{match['image']}[{match['text']}]({target}{match['anchor'] or ''})"

    return LINK.sub(replaced, text)


def read_source(app: Any, docname: str, source: list[str]) -> None:
    """Puts documents in the place of their include directives, and mends relative links."""

    def included(match: re.Match[str]) -> str:
        path = DOCS_DIR / match[1]
        app.env.note_dependency(str(path))
        return relink(path.read_text(), path.parent)

    if docname == "index" and not (DOCS_DIR / "tour.ipynb").exists():
        source[0] = source[0].replace("\ntour\n", "\n")
    if app.env.doc2path(docname).suffix == ".md":
        source[0] = INCLUDE.sub(included, relink(source[0], DOCS_DIR))


def mark_formulas(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Makes the indented formulas and examples of docstrings literal blocks."""
    for row in range(len(lines) - 1, 1, -1):
        paragraph, gap, line = lines[row - 2 : row + 1]
        if line.startswith("    ") and not gap and paragraph[:1].strip():
            lines[row:row] = ["::", ""]


def setup(app: Any) -> None:
    """Registers both; `mark_formulas` before napoleon reads the sections."""
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", mark_formulas, priority=400)
