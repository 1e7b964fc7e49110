"""What the tests of checkpoints share."""

import gc

import pytest


@pytest.fixture(scope="module")
def dropped_here():
    """Failed coroutines are collected with the tests that dropped them."""
    yield
    gc.collect()  # while their warnings are ignored
