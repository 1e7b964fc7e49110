"""The checks are made at their own radius unless nothing is left there, and know the losses."""

import dataclasses
import types

import numpy as np
import pytest

from experiments import tasks
from experiments.configs.attacks import by_name
from experiments.configs.schema import ChecksConfig
from experiments.data.examples import Examples
from experiments.evaluation.fitted_checks import with_losses, with_room
from experiments.evaluation.run_checks import Checker
from experiments.results import ResultKey


def _results(share_right, attack="pgd", epsilon=0.0, norm_order="linf", statistics="running"):
    key = ResultKey("digits", "batch", 0, statistics, "", attack, epsilon, norm_order)
    right = np.arange(100) < 100 * share_right
    return types.SimpleNamespace(key=key, summary={"right": right})


def _radius(measured, own=0.3, statistics="running"):
    config = ChecksConfig(epsilon=own)
    examples = Examples(np.zeros((4, 2), np.uint8), np.zeros(4, np.int32))
    checker = Checker(config, tasks.create("classification", 10), examples, lambda source: 4, 0)
    chosen = with_room(checker, statistics, measured)
    assert dataclasses.replace(chosen, config=config) == checker
    return chosen.config.epsilon


CLEAN = _results(0.8, "clean", norm_order="")


@pytest.mark.parametrize(
    ("left", "wanted"),
    [
        ({0.1: 0.4, 0.3: 0.09}, 0.3),  # more than a tenth of the clean accuracy is left
        ({0.1: 0.7, 0.2: 0.3, 0.3: 0.07}, 0.2),
        ({0.1: 0.4, 0.2: 0.3}, 0.1),  # its own radius was not measured
        ({0.1: 0.0, 0.3: 0.0}, 0.3),
        ({}, 0.3),
    ],
)
def test_the_radius(left, wanted):
    measured = [CLEAN, *(_results(share, epsilon=radius) for radius, share in left.items())]
    assert _radius(measured) == wanted


def test_the_strongest_attack_of_the_same_ball_and_source_counts():
    others = [
        _results(0.79, "gaussian", 0.3, norm_order=""),  # noise has no ball
        _results(0.79, epsilon=0.3, norm_order="l2"),
        _results(0.79, epsilon=0.3, statistics="batch"),
        _results(0.79, "fgsm", 0.3),
    ]
    assert _radius([CLEAN, *others, _results(0.0, epsilon=0.3), _results(0.4, epsilon=0.1)]) == 0.1


def test_the_losses_are_those_of_the_same_ball_and_source():
    def measured(name, threat_model="", **key):
        found = _results(0.5, name, **{"epsilon": 0.1, **key})
        found.key = dataclasses.replace(found.key, threat_model=threat_model)
        found.attack = by_name(name)
        return found

    in_table = [
        measured("pgd", statistics="batch", threat_model="joint"),
        measured("apgd-dlr", statistics="batch", threat_model="independent"),
        measured("segpgd", statistics="batch", threat_model="joint"),
        measured("pgd-margin"),
        measured("pgd-margin", statistics="batch", epsilon=0.0),
        measured("autoattack-l2", statistics="batch", norm_order="l2", threat_model="joint"),
        measured("gaussian", statistics="batch", norm_order=""),
    ]
    examples = Examples(np.zeros((4, 2), np.uint8), np.zeros(4, np.int32))
    task = tasks.create("classification", 10)
    checker = Checker(ChecksConfig(), task, examples, lambda source: 4, 0)

    def losses(source, norm="linf"):
        one = dataclasses.replace(checker, config=ChecksConfig(norm=norm))
        return with_losses(one, source, in_table).losses

    assert losses("batch") == ("cross_entropy", "segpgd")
    assert losses("running") == ("margin",)
    assert losses("batch", "l2") == ("cross_entropy", "margin")
    assert losses("running", "l2") == ()
