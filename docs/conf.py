"""Sphinx's configuration; `make docs` builds the pages, with warnings as errors."""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

import convt_ext

ROOT = Path(__file__).resolve().parents[1]

project = "convt_ext"
author = "convt_ext contributors"
version = release = convt_ext.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"convt_ext {release}"
html_static_path = ["images"]
html_show_sphinx = False

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say shapes and dtypes, which annotations cannot
napoleon_custom_sections = [("Shapes", "notes_style")]

# A reference that leads nowhere is an error, but for those that need another project's index and so a network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"torch\..*")]

# Pages that are files of the project, or a section of one: in docs/ a line leads there, for whoever reads the sources.
PAGES = {
    "performance": ("README.md", "Performance"),
    "results": ("benchmarks/results/h100.md", None),
    "models": ("benchmarks/results/h100-models.md", None),
    "blocks": ("benchmarks/results/h100-blocks.md", None),
    "sweep": ("benchmarks/results/h100-sweep.md", None),
    "contributing": ("CONTRIBUTING.md", None),
    "changelog": ("CHANGELOG.md", None),
}
# Links to those files, by pages and by the files themselves, and to pages by the files.
LINKS = [
    (r"\]\((\.\./)*README\.md#performance\)", "](performance.md)"),
    (r"\]\((\.\./)*benchmarks/results/h100\.md\)", "](results.md)"),
    (r"\]\((\.\./)*benchmarks/results/h100-models\.md\)", "](models.md)"),
    (r"\]\((\.\./)*benchmarks/results/h100-blocks\.md\)", "](blocks.md)"),
    (r"\]\((\.\./)*benchmarks/results/h100-sweep\.md\)", "](sweep.md)"),
    (r"\]\(docs/", "]("),
    (r'(src|srcset)="docs/images/', r'\1="_static/'),
]


def project_text(file: str, section: str | None) -> str:
    """A file, or the section under one of its headings of the second level as a page."""
    text = (ROOT / file).read_text(encoding="utf-8")
    if section is None:
        return text
    found = re.search(rf"^## {section}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"{file} has no section {section}")
    return found[0].removeprefix("#")


def read_page(app: Sphinx, name: str, source: list[str]) -> None:
    """Puts a file in its page's place, and makes links lead to pages."""
    if name in PAGES:
        source[0] = project_text(*PAGES[name])
    for pattern, replacement in LINKS:
        source[0] = re.sub(pattern, replacement, source[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", read_page)
