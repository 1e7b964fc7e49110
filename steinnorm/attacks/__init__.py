"""Attacks and noises for any function from a batch of inputs to a batch of logits.

Every attack is called as ``attack(logits_fn, x, y, *, threat, key=None, ...)`` and returns an
``AttackResult``; only ``pgd_scan``, which is for use inside ``jit``, returns an array. Gradients
are taken through the whole batch, because in a model with batch statistics an image's logits depend
on its companions. ``batch_threats`` has threat models for such models, ``batch_dependence`` tests
whether a model is one, ``evaluate_robustness`` runs attacks on a data set, and
``checks.run_checks`` checks such an evaluation.

This package needs JAX, NumPy and, for confidence intervals, SciPy, which JAX requires. It imports
nothing else of steinnorm, and steinnorm does not import it.
"""

from steinnorm.attacks._criterion import VOID as VOID
from steinnorm.attacks._model import LogitsFn as LogitsFn
from steinnorm.attacks._model import predict as predict
from steinnorm.attacks.apgd import apgd as apgd
from steinnorm.attacks.autoattack import autoattack as autoattack
from steinnorm.attacks.catalogue import AttackSettings as AttackSettings
from steinnorm.attacks.dependence import batch_dependence as batch_dependence
from steinnorm.attacks.errors import BatchDependenceWarning as BatchDependenceWarning
from steinnorm.attacks.errors import LeftThreatError as LeftThreatError
from steinnorm.attacks.errors import NotFiniteError as NotFiniteError
from steinnorm.attacks.errors import ProbabilitiesWarning as ProbabilitiesWarning
from steinnorm.attacks.errors import RadiusWarning as RadiusWarning
from steinnorm.attacks.errors import RandomLogitsWarning as RandomLogitsWarning
from steinnorm.attacks.errors import ShortReachWarning as ShortReachWarning
from steinnorm.attacks.fab import fab as fab
from steinnorm.attacks.noise import NOISES as NOISES
from steinnorm.attacks.noise import clipped_cauchy as clipped_cauchy
from steinnorm.attacks.noise import gaussian as gaussian
from steinnorm.attacks.noise import rademacher as rademacher
from steinnorm.attacks.noise import truncated_gaussian as truncated_gaussian
from steinnorm.attacks.noise import uniform as uniform
from steinnorm.attacks.pgd import fgsm as fgsm
from steinnorm.attacks.pgd import pgd as pgd
from steinnorm.attacks.pgd_scan import pgd_scan as pgd_scan
from steinnorm.attacks.random_models import expected_over_randomness as expected_over_randomness
from steinnorm.attacks.result import AttackResult as AttackResult
from steinnorm.attacks.result import Stage as Stage
from steinnorm.attacks.robustness import Robustness as Robustness
from steinnorm.attacks.robustness import evaluate_robustness as evaluate_robustness
from steinnorm.attacks.segmentation import sea as sea
from steinnorm.attacks.segmentation import segpgd as segpgd
from steinnorm.attacks.square import square as square
from steinnorm.attacks.threat import Threat as Threat
