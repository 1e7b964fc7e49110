"""Attacks and noises for any function from a batch of inputs to a batch of logits.

Every gradient attack is called ``attack(logits_fn, x, y, *, threat, key=None, ...)`` and returns
an ``AttackResult``.  Gradients are those of the function of the whole batch, because a model with
batch statistics has no other: an image's logits depend on its companions.
"""

from experiments.attacks.gradient import fgsm as fgsm
from experiments.attacks.gradient import pgd as pgd
from experiments.attacks.logits import predict as predict
from experiments.attacks.noise import gaussian as gaussian
from experiments.attacks.noise import rademacher as rademacher
from experiments.attacks.noise import uniform as uniform
from experiments.attacks.threat import AttackResult as AttackResult
from experiments.attacks.threat import ShortReachWarning as ShortReachWarning
from experiments.attacks.threat import Threat as Threat
