"""A hash of source code, stored with results to tell which code produced them."""

import ast
import functools
import hashlib
from pathlib import Path


@functools.cache
def code_digest(*folders: Path) -> str:
    """Returns a hash of all Python files in some folders, without docstrings and comments.

    Results that were stored with another hash come from other code and must be computed again.
    Edits of docstrings, comments and layout do not change the hash.

    The result is cached, so that it describes the files at the first call of a process.

    Args:
      *folders: packages, searched recursively. File names are hashed relative to them, so that the
        hash does not depend on where a package is installed.

    Returns:
      SHA-256 in hexadecimal.

    Raises:
      SyntaxError: a file is not valid Python.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{folder.name}/{path.relative_to(folder).as_posix()}\n".encode())
            digest.update(_without_texts(path.read_text()).encode())
    return digest.hexdigest()


def _without_texts(source: str) -> str:
    """Returns the dump of the syntax tree without docstrings, which have no effect."""
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
