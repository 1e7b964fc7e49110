"""Sphinx extension: formulas as MathML, which browsers show without a script from elsewhere."""

from typing import Any

import sphinx.application
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    formula = tex2mathml(_aligned(node.astext()), as_block=True)
    translator.body.append(f'<div class="math">{formula}</div>')
    raise nodes.SkipNode


def _aligned(tex: str) -> str:
    """Puts formulas of several lines into the environment that aligns them."""
    tex = tex.replace(r"\Big", "")  # in MathML parentheses are as high as what they hold
    return rf"\begin{{aligned}}{tex}\end{{aligned}}" if r"\\" in tex or "&" in tex else tex


def setup(app: sphinx.application.Sphinx) -> dict[str, bool]:
    """Makes this the renderer of formulas in HTML."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_inline, None), block_renderers=(_block, None)
    )
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
