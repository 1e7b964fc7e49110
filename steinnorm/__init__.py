"""Stein-shrinkage batch normalisation for JAX and Flax.

Here are the pure functions. The layers are in :mod:`steinnorm.linen` and :mod:`steinnorm.nnx`.
"""

from steinnorm import shrinkage as shrinkage
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

__version__ = "0.1.0"
