"""What is said of the shrinkage of a training, and that it is said once."""

import pytest

from experiments.models.norms import NORMS, shrinkage
from experiments.results import LoggedStep
from experiments.training.shrinkage_notes import ShrinkageNotes


def rows(*epochs):
    """Two logged steps an epoch; each epoch has (mean factor, variance factor) by layer."""
    for number, layers in enumerate([*epochs, epochs[-1]]):
        factors = {
            layer: {"mean_factor": mean, "variance_factor": variance}
            for layer, (mean, variance) in layers.items()
        }
        for part in (0.1, 0.6):
            yield LoggedStep(step=1, epoch=number + part, loss=1.0, accuracy=0.5, factors=factors)


def said(norm, *epochs):
    notes = ShrinkageNotes(shrinkage(norm))
    return [line for row in rows(*epochs) for line in notes.look(row)]


def test_a_rule_that_does_nothing_is_named_once():
    same = {"a": (0.9999, 1.0), "b": (1.0, 1.0002)}
    first, second = said("ridge", same, same, same)
    assert first == (
        "ridge: the rule for the means is inactive: its factors are within 0.0001 of 1 in all 2 "
        "layers, as in batch norm"
    )
    assert "rule for the variances is inactive: its factors are within 0.0002" in second


def test_one_layer_is_enough_to_be_active():
    assert said("ridge", {"a": (1.0, 1.0), "b": (0.9, 1.1)}) == []


def test_what_a_rule_leaves_alone_is_not_its_inactivity():
    assert said("stein_mean_only", {"a": (0.5, 1.0)}) == []
    assert said("batch", {"a": (1.0, 1.0)}) == []
    assert said("group", {}) == []


def test_layers_that_stopped_centring_are_counted_and_the_lowest_is_named():
    before = {"a": (0.8, 1.1), "b": (0.7, 1.1), "c": (0.5, 1.1)}
    after = {"a": (0.05, 1.1), "b": (0.02, 1.1), "c": (0.5, 1.1)}
    (line,) = said("stein", before, after, after)
    assert line == (
        "stein: 2 of 3 layers have stopped centring their input (factor of the means below 0.1; "
        "lowest 0.02, b)"
    )


def test_towards_the_running_means_a_small_factor_centres_as_well():
    assert said("toward_running", {"a": (0.01, 0.01)}) == []


@pytest.mark.parametrize("norm", NORMS)
def test_targets(norm):
    known = {"batch": "", "group": "", "toward_running": "running"}
    known |= {"batch_renorm": "", "learnt_noise": ""}  # not one rule for the whole training
    assert ShrinkageNotes(shrinkage(norm)).target == known.get(norm, "zero")
