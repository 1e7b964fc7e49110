"""Which attacks a task has: what cannot be measured is refused before anything is."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from experiments.configs import attacks
from experiments.errors import ConfigError
from experiments.evaluation.attack_batch import AttackedModel, check_fits
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


def _logits(scale, x):
    return scale * x.reshape(len(x), -1)[:, :3]


def test_autoattack_takes_the_batch_of_the_evaluation_whole():
    """Its own batches of 128 would be several, whatever batch the user asked for."""
    seen = []
    model = AttackedModel(jax.tree_util.Partial(_logits, 8.0), on_progress=seen.append)
    attack = dataclasses.replace(attacks.by_name("autoattack"), steps=2, queries=2)
    x = jax.random.uniform(jax.random.key(0), (130, 1, 3, 1))
    y = jnp.argmax(x.reshape(130, 3), axis=1)
    found = model.attack(attack, 0.01, (x, y), jax.random.key(1))
    assert seen[0] == "apgd-ce 130 of 130"
    assert found.outputs.shape == (130, 3)
