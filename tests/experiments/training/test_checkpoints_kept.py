"""Which checkpoints are kept: the two newest and the best."""

from experiments.training.checkpoints import Checkpoints
from tests.experiments.training.checkpoint_trees import DAMAGE_WARNS_LATER, save_step, tree

pytestmark = DAMAGE_WARNS_LATER


def test_an_empty_folder_has_none(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps == []
    assert checkpoints.load_newest(tree(0)) is None
    assert checkpoints.best_step() is None
    checkpoints.close()


def test_the_two_newest_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    best = (None, 0)
    kept = []
    for step, score in ((1, 0.1), (2, 0.9), (3, None), (4, 0.5), (5, None), (6, 0.7), (7, 0.95)):
        if score is not None and (best[0] is None or score > best[0]):
            best = (score, step)
        save_step(checkpoints, step, score, best)
        kept.append(checkpoints.steps)
        assert checkpoints.best_step() == best[1]
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6], [6, 7]]
    save_step(checkpoints, 7, 0.1, best)  # a step that is there already is not written again
    assert checkpoints.load(tree(0), 7)[1].score == 0.95
    checkpoints.close()


def test_the_best_is_kept_across_a_restart(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.3)):
        save_step(checkpoints, step, score, (max(score, 0.9 if step > 2 else 0), min(step, 2)))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    save_step(checkpoints, 4, 0.5, (0.9, 2))
    assert checkpoints.steps == [2, 3, 4]
    assert checkpoints.best_step() == 2
    save_step(checkpoints, 5, None, (0.9, 2))
    assert checkpoints.steps == [2, 4, 5]
    checkpoints.close()


def test_a_score_that_is_not_a_number_is_never_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step, score in ((1, 0.9), (2, float("nan")), (3, float("nan")), (4, 0.1)):
        save_step(checkpoints, step, score, (0.9, 1))
    assert checkpoints.steps == [1, 3, 4]
    assert checkpoints.best_step() == 1
    checkpoints.close()


def test_without_scores_the_best_is_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        save_step(checkpoints, step)
    assert checkpoints.steps == [2, 3]
    assert checkpoints.best_step() == 3
    checkpoints.close()
