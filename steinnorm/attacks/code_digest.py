"""A hash of code, which what was measured with other code does not share."""

import ast
import functools
import hashlib
from pathlib import Path


@functools.cache
def code_digest(*folders: Path) -> str:
    """Returns a hash of all Python files under some folders, without docstrings and comments.

    Whatever else changes in the code changes the hash, so that results of another version of it are
    told apart; a sentence in a docstring does not.

    Args:
      folders: packages; they are hashed under their own names, wherever they lie.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{folder.name}/{path.relative_to(folder).as_posix()}\n".encode())
            digest.update(_without_texts(path.read_text()).encode())
    return digest.hexdigest()


def _without_texts(source: str) -> str:
    """Returns the syntax tree in words; strings that stand alone do nothing and are left out."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
