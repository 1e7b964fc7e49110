"""Problems of many files, collected and raised together."""

import pytest

from experiments.data.problems import (
    MOST_PROBLEMS,
    DataError,
    decode_all,
    first_line,
    raise_problems,
)


def test_all_are_decoded_and_problems_are_raised_together():
    steps = []

    def decode(position, item):
        if item % 2:
            raise DataError(f"item {item}")

    decode_all(range(0, 6, 2), decode, "items", lambda *step: steps.append(step))
    assert steps == [(1, 3, "items"), (2, 3, "items"), (3, 3, "items")]
    with pytest.raises(DataError, match=r"used:\n  item 1\n  item 3\n  item 5$"):
        decode_all(range(6), decode, "items")
    with pytest.raises(ZeroDivisionError):
        decode_all([0], lambda position, item: 1 / item, "items")


def test_no_further_item_is_begun_after_ten_problems():
    begun = []

    def decode(position, item):
        begun.append(position)
        raise DataError(f"item {position}")

    with pytest.raises(DataError, match="item 0"):
        decode_all([1] * 1000, decode, "items")
    assert MOST_PROBLEMS <= len(begun) < 100


def test_ten_problems_are_shown():
    raise_problems([])
    with pytest.raises(DataError, match=r"^one$"):
        raise_problems(["one"])
    with pytest.raises(DataError, match=r"p0\n(.*\n)*  p9\n  \.\.\. and 2 more$"):
        raise_problems([f"p{i}" for i in range(12)])


def test_errors_of_other_libraries_in_one_line():
    assert first_line(KeyError("a")) == "KeyError: 'a'"
    assert first_line(ValueError("one\n  two")) == "ValueError: one"
    assert first_line(AssertionError()) == "AssertionError"
