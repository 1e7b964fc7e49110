"""Networks with batch norm under attack: found out in training mode, and left as they were."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.evaluation.attack_batch import as_logits_fn
from experiments.models.norms import in_evaluation, norm_factory
from experiments.models.resnet import ResNet
from steinnorm.attacks import BatchDependenceWarning, Threat, apgd, autoattack, fgsm, pgd, square
from steinnorm.attacks._dependence_check import depends_on_batch
from steinnorm.attacks._inputs import Problem
from tests.attacks.problems import KEY, draws

THREAT = Threat("linf", 0.1)


def _network(outputs):
    return ResNet(
        norm_factory("batch"),
        channels_in=1,
        outputs=outputs,
        width=2,
        stage_sizes=(1,),
        rngs=nnx.Rngs(jax.random.key(0, impl="rbg")),
    )


def test_a_model_left_in_training_mode_is_found_out():
    x, y = draws(6, 6, 6, 1), jnp.array([0, 1, 2, 3, 0, 1])
    model = _network(outputs=4)
    training = as_logits_fn(model)
    assert depends_on_batch(Problem.of(training, x, y, THREAT))
    with pytest.warns(BatchDependenceWarning, match="logits change with its companions"):
        autoattack(training, x, y, threat=THREAT, key=KEY, steps=2, queries=2)
    for attack, settings in ((apgd, {"steps": 2}), (square, {"queries": 2})):
        with pytest.warns(BatchDependenceWarning, match="training mode"):
            attack(training, x, y, threat=THREAT, key=KEY, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            attack(training, x, y, threat=THREAT, key=KEY, batch_dependent=True, **settings)
    evaluated = as_logits_fn(in_evaluation(model, "running"))
    assert not depends_on_batch(Problem.of(evaluated, x, y, THREAT))
    assert depends_on_batch(Problem.of(as_logits_fn(in_evaluation(model, "batch")), x, y, THREAT))


# "training": the statistics of every batch that the attack looks at would be recorded.
@pytest.mark.parametrize(
    ("statistics", "attack"),
    [("running", fgsm), ("batch", pgd), ("training", fgsm), ("training", pgd), ("training", apgd)],
)
@pytest.mark.filterwarnings("ignore::steinnorm.attacks.BatchDependenceWarning")
def test_an_attack_leaves_the_model_as_it_was(statistics, attack):
    model = _network(outputs=3)
    x = draws(4, 6, 6, 1)
    y = jnp.array([0, 1, 2, 0])
    nnx.jit(lambda model, x: model(x))(model, x)  # running statistics that are not the first ones
    before = jax.tree.map(np.array, nnx.state(model))
    view = model if statistics == "training" else in_evaluation(model, statistics)
    settings = {} if attack is fgsm else {"steps": 2}
    attack(as_logits_fn(view), x, y, threat=Threat("linf", 0.1), **settings)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, nnx.state(model)))
