"""Per-example results: whole or not at all, and refused where they are not what was asked for."""

import dataclasses

import numpy as np
import pytest

from experiments.evaluation import per_example
from experiments.evaluation.per_example import SHOWN, PerExampleResults, Values
from experiments.results import ResultKey

ABOUT = {
    "config": "digits",
    "norm": "stein",
    "seed": 0,
    "class_names": ["0", "1"],
    "statistics": "batch",
    "threat_model": "joint",
    "attack": "pgd-l2",
    "epsilon": 8 / 255,
    "norm_order": "l2",
    "attack_settings": {"name": "pgd-l2", "kind": "pgd"},
    "identity": {"weights": "abc", "measured": 13},
}


def _results(count, place, first=0):
    numbers = np.arange(first, first + count)
    return PerExampleResults(
        about=ABOUT,
        summary={"right": numbers % 2 == 0, "loss": numbers / 2},
        distance=numbers * 0.01,
        batch=np.full(count, place),
        values=Values(0.1 * place, 0.5 + 0.1 * place, place),
        zero_gradients=1,
        shown={"x": np.repeat(numbers[:, None], 3, axis=1), "y": numbers},
    )


KEY = ResultKey("digits", "stein", 0, "batch", "joint", "pgd-l2", 8 / 255, "l2")


def test_results_grow_and_come_back(tmp_path):
    assert per_example.load(tmp_path, KEY) is None
    results = _results(5, 0)
    assert (len(results), results.batches) == (5, 1)
    results = results.extended(_results(6, 1, first=5)).extended(_results(2, 2, first=11))
    results.save(tmp_path)
    assert (tmp_path / "evaluation" / "batch-joint-pgd-l2-0.03137254901960784.npz").exists()
    found = per_example.load(tmp_path, KEY)
    assert found.about == ABOUT
    assert found.key == KEY
    assert found.identity == {"weights": "abc", "measured": 13}
    assert found.class_names == ["0", "1"]
    assert (found.attack.name, found.attack.kind) == ("pgd-l2", "pgd")
    assert (len(found), found.batches, found.zero_gradients) == (13, 3, 3)
    assert found.values == Values(0.0, 0.7, 3)
    assert found.is_complete
    assert not _results(5, 0).is_complete
    np.testing.assert_array_equal(found.summary["loss"], np.arange(13) / 2)
    np.testing.assert_array_equal(found.shown["y"], np.arange(SHOWN))
    (again,) = per_example.load_all(tmp_path)
    assert again.about == found.about


def test_a_file_that_is_cut_short_or_strange_is_no_result(tmp_path):
    _results(5, 0).save(tmp_path)
    path = per_example.path_of(tmp_path, KEY)
    content = path.read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert per_example.load(tmp_path, KEY) is None
    path.write_text("no archive")
    assert per_example.load(tmp_path, KEY) is None
    assert per_example.load_all(tmp_path) == []


@pytest.mark.parametrize("missing", ["norm", "epsilon", "identity"])
def test_results_that_do_not_say_what_they_are_of_are_none(missing, tmp_path):
    strange = _results(5, 0)
    about = {name: value for name, value in ABOUT.items() if name != missing}
    path = per_example.path_of(tmp_path, KEY)
    dataclasses.replace(strange, about=about).write(path)
    assert path.exists()
    assert per_example.load(tmp_path, KEY) is None
    assert per_example.load_all(tmp_path) == []


def test_another_key_in_the_file_is_not_taken(tmp_path):
    _results(5, 0).write(per_example.path_of(tmp_path, dataclasses.replace(KEY, norm="batch")))
    assert per_example.load(tmp_path, dataclasses.replace(KEY, norm="batch")) is None
    assert per_example.load(tmp_path, KEY) is not None  # the norm is not in the file's name


def test_radii_that_nearly_agree_have_files_of_their_own(tmp_path):
    radii = (2 / 255, 0.00784314, 0.0078431373, float(np.nextafter(2 / 255, 1)))
    for place, epsilon in enumerate(radii):
        results = _results(3, 0, first=place)
        about = {**ABOUT, "epsilon": epsilon}
        dataclasses.replace(results, about=about).save(tmp_path)
    for place, epsilon in enumerate(radii):
        found = per_example.load(tmp_path, dataclasses.replace(KEY, epsilon=epsilon))
        np.testing.assert_array_equal(found.shown["y"], np.arange(place, place + 3))
    assert len(per_example.load_all(tmp_path)) == len(radii)
