"""Attacks and noises for any function from a batch of inputs to a batch of logits.

Every attack is called ``attack(logits_fn, x, y, *, threat, key=None, ...)`` and returns an
``AttackResult``.  Gradients are those of the function of the whole batch, because a model with
batch statistics has no other: an image's logits depend on its companions.  ``companions`` has the
threat models for such models, ``batch_dependence`` finds out whether a model is one.
"""

from experiments.attacks.apgd import apgd as apgd
from experiments.attacks.dependence import batch_dependence as batch_dependence
from experiments.attacks.ensemble import autoattack as autoattack
from experiments.attacks.fab import fab as fab
from experiments.attacks.gradient import fgsm as fgsm
from experiments.attacks.gradient import pgd as pgd
from experiments.attacks.logits import predict as predict
from experiments.attacks.noise import NOISES as NOISES
from experiments.attacks.noise import clipped_cauchy as clipped_cauchy
from experiments.attacks.noise import gaussian as gaussian
from experiments.attacks.noise import rademacher as rademacher
from experiments.attacks.noise import truncated_gaussian as truncated_gaussian
from experiments.attacks.noise import uniform as uniform
from experiments.attacks.scanned import pgd_scan as pgd_scan
from experiments.attacks.segmentation import sea as sea
from experiments.attacks.segmentation import segpgd as segpgd
from experiments.attacks.square import square as square
from experiments.attacks.threat import AttackResult as AttackResult
from experiments.attacks.threat import BatchDependenceWarning as BatchDependenceWarning
from experiments.attacks.threat import LeftThreatError as LeftThreatError
from experiments.attacks.threat import NotFiniteError as NotFiniteError
from experiments.attacks.threat import ProbabilitiesWarning as ProbabilitiesWarning
from experiments.attacks.threat import RandomLogitsWarning as RandomLogitsWarning
from experiments.attacks.threat import ShortReachWarning as ShortReachWarning
from experiments.attacks.threat import Threat as Threat
