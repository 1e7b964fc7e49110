"""What is promised: every public function is in the table, and documented with examples."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Callable

import pytest

from steinnorm import estimators
from tests.estimators.cases import ROWS


def _public_functions() -> dict[str, Callable]:
    return {
        name: member
        for name, member in vars(estimators).items()
        if not name.startswith("_")
        and inspect.isfunction(inspect.unwrap(member))
        and member.__module__ == estimators.__name__
    }


def test_every_public_function_is_in_the_table() -> None:
    assert set(_public_functions()) == {row.name for row in ROWS}
    assert set(getattr(estimators, "__all__", _public_functions())) >= set(_public_functions())


@pytest.mark.parametrize("name", sorted(_public_functions()))
def test_docstrings_say_what_and_show_it(name: str) -> None:
    text = inspect.getdoc(_public_functions()[name]) or ""
    for part in ("Args:", "Returns:", ">>>", "(C,)"):
        assert part in text, f"{name}: no {part!r} in the docstring"


def test_docstring_examples_run() -> None:
    result = doctest.testmod(estimators, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
    assert result.attempted >= len(_public_functions())
