"""Stein-shrinkage batch normalisation for JAX and Flax.

Here are the pure functions. The layers are in :mod:`steinnorm.linen` and :mod:`steinnorm.nnx`,
attacks in :mod:`steinnorm.attacks`, PyTorch's weights in :mod:`steinnorm.torch_weights`.
"""

from importlib import metadata as _metadata
from typing import TYPE_CHECKING

from steinnorm import shrinkage as shrinkage
from steinnorm.calibrated import Calibration as Calibration
from steinnorm.estimators import james_stein as james_stein
from steinnorm.estimators import jsnorm_mean as jsnorm_mean
from steinnorm.estimators import jsnorm_variance as jsnorm_variance
from steinnorm.estimators import lasso_mean as lasso_mean
from steinnorm.estimators import lasso_variance as lasso_variance
from steinnorm.estimators import moderated_variance as moderated_variance
from steinnorm.estimators import ridge_mean as ridge_mean
from steinnorm.estimators import ridge_variance as ridge_variance
from steinnorm.estimators import stein_mean as stein_mean
from steinnorm.estimators import stein_variance as stein_variance
from steinnorm.functional import Normalised as Normalised
from steinnorm.functional import stein_batch_norm as stein_batch_norm
from steinnorm.shrinkage import RunningStatistics as RunningStatistics
from steinnorm.shrinkage import Shrinkage as Shrinkage
from steinnorm.shrinkage import by_name as by_name
from steinnorm.shrinkage import combine as combine
from steinnorm.shrinkage import jsnorm as jsnorm
from steinnorm.shrinkage import lasso as lasso
from steinnorm.shrinkage import none as none
from steinnorm.shrinkage import ridge as ridge
from steinnorm.shrinkage import stein as stein
from steinnorm.shrinkage import stein_mean_only as stein_mean_only
from steinnorm.shrinkage import toward_running as toward_running
from steinnorm.statistics import BatchStatistics as BatchStatistics
from steinnorm.statistics import Moments as Moments
from steinnorm.statistics import batch_statistics as batch_statistics


def _version() -> str:
    """Returns the version that pyproject.toml gave the installed package.

    A folder that is only on the path has no version; "0+unknown" sorts below every release.
    """
    try:
        return _metadata.version("steinnorm")
    except _metadata.PackageNotFoundError:
        return "0+unknown"


__version__ = _version()

# Where people look for these names first is here. Importing them would load Flax or the attacks
# for everyone, and the layers are there twice; so the names only say where they are.
_ELSEWHERE = {
    "steinnorm.linen for Flax Linen, steinnorm.nnx for Flax NNX": (
        *("SteinBatchNorm", "calibrate", "freeze"),
    ),
    "steinnorm.linen": ("BatchNorm",),
    "steinnorm.nnx": ("CalibrationStat", "ShrinkageFactor", "convert", "revert"),
    "steinnorm.torch_weights": (
        *("batch_norms", "from_torch", "load_torch", "momentum_from_torch", "momentum_to_torch"),
        "to_torch",
    ),
    "steinnorm.attacks": (
        *("AttackResult", "AttackSettings", "LogitsFn", "NOISES", "Robustness", "Stage", "Threat"),
        *("BatchDependenceWarning", "LeftThreatError", "NotFiniteError", "ProbabilitiesWarning"),
        *("RadiusWarning", "RandomLogitsWarning", "ShortReachWarning", "VOID"),
        *("apgd", "autoattack", "batch_dependence", "clipped_cauchy", "evaluate_robustness"),
        *("expected_over_randomness", "fab", "fgsm", "gaussian", "pgd", "pgd_scan", "predict"),
        *("rademacher", "sea", "segpgd", "square", "truncated_gaussian", "uniform"),
    ),
}
_MODULES = ("attacks", "linen", "nnx", "torch_weights")


if not TYPE_CHECKING:  # type checkers find unknown names by themselves

    def __getattr__(name: str):
        """Says where a name is that is not here.

        Raises:
          ImportError: for names of other modules. Python would replace the text of an
            ``AttributeError`` by its own in ``from steinnorm import ...``.
          AttributeError: for all other names, also for modules that were not imported yet.
        """
        for where, names in _ELSEWHERE.items():
            if name in names:
                raise ImportError(f"{name} is not in steinnorm itself: import it from {where}.")
        hint = f"; write: import steinnorm.{name}" if name in _MODULES else ""
        raise AttributeError(f"module 'steinnorm' has no attribute {name!r}{hint}")
