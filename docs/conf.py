"""Configuration of the documentation site: ``make docs`` writes it to ``site/``.

The source folder is the repository's root, so that README.md is the start page and links between
the pages are the same on the site and in the repository.
"""

import shutil
import sys
from pathlib import Path

import sphinx.application

import steinnorm

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "steinnorm"
author = "The steinnorm developers"
version = release = steinnorm.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml"]
root_doc = "README"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**"]
include_patterns += ["experiments/README.md", "examples/README.md"]
exclude_patterns = ["docs/_*"]
highlight_language = "none"  # of blocks that do not say: most are commands and their output

# Headings are link targets under the names that GitHub gives them.
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"steinnorm {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
html_show_copyright = False
pygments_style = "default"
pygments_dark_style = "github-dark"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}  # the union behind it fills half a page
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Warns", "params_style")]

# The sidebar: captions and pages. tests/test_site.py checks that no page is left out.
CONTENTS = {
    "The layer": [
        *("docs/norms", "docs/linen", "docs/nnx", "docs/convert", "docs/layer", "docs/devices"),
        "docs/calibrate",
    ],
    "Attacks": ["docs/attacks"],
    "Experiments": ["experiments/README", "docs/clusters", "examples/README"],
    "Background": ["docs/estimators", "docs/theory", "docs/results**"],
    "Speed": ["docs/speed"],
    "Extending": ["docs/extending", "docs/development", "CONTRIBUTING", "CHANGELOG"],
    "Reference": [
        *("docs/api/steinnorm", "docs/api/linen", "docs/api/nnx", "docs/api/torch_weights"),
        "docs/api/attacks",
    ],
}


def _add_contents(app: sphinx.application.Sphinx, docname: str, source: list[str]) -> None:
    """Adds the sidebar's contents to the start page, where readers of README.md do not see them."""
    if docname == root_doc:
        for caption, pages in CONTENTS.items():
            listed = "\n".join(pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n{listed}\n```\n"


def _add_index(app: sphinx.application.Sphinx, exception: Exception | None) -> None:
    """Gives the start page the name that web servers look for."""
    if exception is None and app.builder.format == "html":
        shutil.copy(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: sphinx.application.Sphinx) -> None:
    """Connects the two functions above."""
    app.connect("source-read", _add_contents)
    app.connect("build-finished", _add_index)
