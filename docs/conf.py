"""Configuration of the documentation site: ``make docs`` writes it to ``site/``.

The source folder is the repository's root, so that README.md is the start page and links between
the pages are the same on the site and in the repository.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

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
html_css_files = ["site.css"]
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
napoleon_attr_annotations = False  # signatures have them
napoleon_custom_sections = [("Warns", "params_style")]

# The sidebar: captions and pages, with a shorter title where the page's own is long.
# tests/test_site.py checks that no page is left out.
CONTENTS = {
    "The layer": [
        *("docs/norms", "docs/linen", "docs/nnx", "docs/convert", "docs/layer", "docs/devices"),
        "Calibrate for other test data <docs/calibrate>",
    ],
    "Attacks": ["Attacks, and when to believe them <docs/attacks>"],
    "Experiments": ["experiments/README", "docs/clusters", "examples/README"],
    "Background": [
        *("docs/estimators", "Theory <docs/theory>"),
        *sorted(f"docs/{page.stem}" for page in Path(__file__).parent.glob("results*.md")),
        *("All result tables <docs/results/README>", "docs/speed"),
    ],
    "Taking part": [
        *("docs/extending", "Development <docs/development>", "CONTRIBUTING", "CHANGELOG"),
    ],
    "Reference": [
        *("docs/api/steinnorm", "docs/api/linen", "docs/api/nnx", "docs/api/torch_weights"),
        "docs/api/attacks",
    ],
}
RESULTS = [
    "The demo on the digits <demo>",
    "Shifted CIFAR-10 <shift>",
    "Shifted digits <shift/digits>",
    "Shifted CIFAR-10, trained without augmentation <shift/no_augmentation>",
    "Shifted CamVid <shift/camvid>",
    "Eight norms on CIFAR-10, five seeds <compared/cifar10/report>",
    "Every source of statistics on CIFAR-10 <compared/cifar10-sources/report>",
    "AutoAttack of eight norms on CIFAR-10 <compared/cifar10-autoattack/report>",
    "APGD on whole batches of CIFAR-10 <compared/cifar10-joint/report>",
    "PGD on the margin of whole batches of CIFAR-10 <compared/cifar10-joint-margin/report>",
    "CIFAR-10 after adversarial training <compared/cifar10-adversarial/report>",
    "Hippocampus volumes <compared/hippocampus/report>",
    "AutoAttack on hippocampus volumes <compared/hippocampus-autoattack/report>",
    "Street scenes of CamVid <compared/camvid/report>",
    "Street scenes of CamVid under SEA <compared/camvid-sea/report>",
    "Another rule at test time <compared/rule_at_test>",
    "Times on a GPU <device_times>",
    "Training on batches of 2 <compared/batches-of-2/report>",
    "Training on batches of 4 <compared/batches-of-4/report>",
    "*",
    "*/*",
]
TOCTREE = "\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {}\n\n{}\n```\n"


def _add_contents(app: sphinx.application.Sphinx, docname: str, source: list[str]) -> None:
    """Adds the sidebar's contents, which readers of the Markdown files do not see."""
    if docname == root_doc:
        source[0] += "".join(TOCTREE.format(c, "\n".join(pages)) for c, pages in CONTENTS.items())
    if docname == "docs/results/README":
        source[0] += TOCTREE.format("Results", "\n".join(RESULTS))


def _short_types(app: sphinx.application.Sphinx, *event: Any) -> tuple[Any, Any] | None:
    """Writes ArrayLike as it is called, where Sphinx writes how it refers to it."""
    signature, result = event[-2:]
    if signature is None:
        return None
    return signature.replace("TypeAliasForwardRef('ArrayLike')", "ArrayLike"), result


def _add_index(app: sphinx.application.Sphinx, exception: Exception | None) -> None:
    """Gives the start page the name that web servers look for."""
    if exception is None and app.builder.format == "html":
        shutil.copy(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: sphinx.application.Sphinx) -> None:
    """Connects the functions above."""
    app.connect("source-read", _add_contents)
    app.connect("autodoc-process-signature", _short_types)
    app.connect("build-finished", _add_index)
