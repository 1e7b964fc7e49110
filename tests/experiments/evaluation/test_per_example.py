"""Per-example results: whole or not at all, and refused where they are not what was asked for."""

import numpy as np

from experiments.evaluation import per_example as cells
from experiments.evaluation.per_example import SHOWN, Cell, Values

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


def _cell(count, place, first=0):
    numbers = np.arange(first, first + count)
    return Cell(
        about=ABOUT,
        summary={"right": numbers % 2 == 0, "loss": numbers / 2},
        distance=numbers * 0.01,
        batch=np.full(count, place),
        values=Values(0.1 * place, 0.5 + 0.1 * place, place),
        zero_gradients=1,
        shown={"x": np.repeat(numbers[:, None], 3, axis=1), "y": numbers},
    )


def test_a_cell_grows_and_comes_back(tmp_path):
    assert cells.load(cells.path_of(tmp_path, ABOUT)) is None
    cell = _cell(5, 0)
    assert (len(cell), cell.batches) == (5, 1)
    cell = cell.extended(_cell(6, 1, first=5)).extended(_cell(2, 2, first=11))
    path = cell.save(tmp_path)
    assert path == tmp_path / "evaluation" / "batch-joint-pgd-l2-0.0313725.npz"
    found = cells.load(path)
    assert found.about == ABOUT
    assert (len(found), found.batches, found.zero_gradients) == (13, 3, 3)
    assert found.values == Values(0.0, 0.7, 3)
    assert found.is_complete
    assert not _cell(5, 0).is_complete
    np.testing.assert_array_equal(found.summary["loss"], np.arange(13) / 2)
    np.testing.assert_array_equal(found.shown["y"], np.arange(SHOWN))
    (again,) = cells.load_all(tmp_path)
    assert again.about == found.about


def test_a_file_that_is_cut_short_or_strange_is_no_result(tmp_path):
    path = _cell(5, 0).save(tmp_path)
    content = path.read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert cells.load(path) is None
    path.write_text("no archive")
    assert cells.load(path) is None
    assert cells.load_all(tmp_path) == []
