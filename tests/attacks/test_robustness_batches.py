"""A model whose logits depend on the batch is measured by whole batches, as they come."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from steinnorm.attacks import BatchDependenceWarning, evaluate_robustness, fgsm
from tests.attacks.one_call import QUIET, measure
from tests.attacks.three_wrong import COUNT, PGD, WEIGHTS, X, Y, batches, linear


def test_an_nnx_model_in_training_mode_stays_as_it_is():
    class Normed(nnx.Module):
        def __init__(self):
            self.norm = nnx.BatchNorm(12, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.norm(x.reshape(x.shape[0], -1) - 0.5) @ jnp.asarray(WEIGHTS)

    model = Normed()
    before = np.asarray(model.norm.mean[...])
    with pytest.warns(BatchDependenceWarning):
        evaluate_robustness(model, X, Y, attacks="fgsm", epsilons=0.1, **QUIET)
    np.testing.assert_array_equal(model.norm.mean[...], before)
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate_robustness(model, X, Y, attacks="fgsm", epsilons=0.1, **QUIET)
    assert found.row("none").value == 22 / 25


def test_a_model_whose_logits_depend_on_the_batch_is_measured_by_whole_batches():
    def centred(x):
        flat = x.reshape(x.shape[0], -1)
        return (flat - jnp.mean(flat, axis=0, keepdims=True)) @ jnp.asarray(WEIGHTS)

    y = np.concatenate([np.asarray(jnp.argmax(centred(jnp.asarray(p)), 1)) for p, _ in batches(9)])
    with pytest.warns(BatchDependenceWarning) as seen:
        found = evaluate_robustness(
            centred, X, y, epsilons=0.05, attacks=("fgsm", PGD), batch_size=9, **QUIET
        )
    assert found.row("none").value == 1.0
    assert found.settings["batch_dependent"]
    assert [w.filename for w in seen] == [__file__]
    each = [found.per_example[name, 0.05] for name in ("fgsm", "pgd")]
    for place in range(3):
        members = each[0].batch == place
        fewest = min(results.summary["right"][members].sum() for results in each)
        worst = found.per_example["worst", 0.05].summary["right"][members].sum()
        assert worst == fewest
    assert "the attacker changes it" in str(found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = evaluate_robustness(
            centred, X, y, attacks=(), batch_size=9, batch_dependent=True, **QUIET
        )
    assert known.row("none").value == 1.0


@pytest.mark.parametrize(("dependent", "last"), [(True, 7), (False, 9)])
def test_only_a_batch_that_no_statistics_see_is_filled(dependent, last):
    sizes, keys = [], []

    def seen(logits_fn, x, y, *, threat, key):
        sizes.append(len(x))
        keys.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        return fgsm(logits_fn, x, y, threat=threat, key=key)

    settings = {"epsilons": 0.1, "batch_size": 9, "batch_dependent": dependent, **QUIET}
    found = evaluate_robustness(linear, X, Y, attacks=seen, **settings)
    assert sizes == [9, 9, last]
    assert len(set(keys)) == 3  # other random numbers for every batch
    assert found.row("seen", 0.1).n == COUNT


def test_intervals_of_batches_are_said_to_be_too_narrow(tmp_path):
    found = measure(tmp_path, batch_dependent=True)
    for text in (str(found), (tmp_path / "table.md").read_text()):
        assert "they assume independent examples" in text
    assert "independent" not in str(measure())
