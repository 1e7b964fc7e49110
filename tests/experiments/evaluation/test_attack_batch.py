"""Which attacks a task has: what cannot be measured is refused before anything is."""

import pytest

from experiments.configs import attacks
from experiments.errors import ConfigError
from experiments.evaluation.attack_batch import check_fits
from experiments.tasks import Binary, Classification, Segmentation


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("segpgd", Classification(10), "for a label per pixel"),
        ("autoattack", Segmentation(5), "for one label per example"),
        ("apgd-dlr", Binary(), "dlr needs 3 logits, got 2; take the margin"),
        ("apgd-t", Binary(), "targeted dlr needs 4 logits, got 2"),
        ("apgd-t", Classification(3), "targeted dlr needs 4 logits, got 3"),
        ("apgd-dlr", Segmentation(2), "dlr needs 3 logits"),
        ("apgd-t", Segmentation(5), "for one label per example"),
    ],
)
def test_what_a_task_does_not_have_is_refused(name, task, message):
    with pytest.raises(ConfigError, match=message):
        check_fits(attacks.by_name(name), task)


@pytest.mark.parametrize("task", [Classification(2), Classification(10), Binary()])
def test_the_rest_fits(task):
    for name in ("fgsm", "pgd-margin", "apgd", "apgd-margin", "fab-t", "square-l2", "gaussian"):
        check_fits(attacks.by_name(name), task)
    check_fits(attacks.by_name("apgd-t"), Classification(4))
    check_fits(attacks.by_name("apgd-dlr"), Segmentation(3))
