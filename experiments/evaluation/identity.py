"""What the numbers of an evaluation depend on, so that a change of it is noticed."""

import hashlib
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import steinnorm
from experiments.data.examples import Examples
from steinnorm.attacks.code_digest import code_digest
from steinnorm.functional import CALIBRATED
from steinnorm.nnx import CalibrationStat


def identity_of(
    model: nnx.Module,
    examples: Examples,
    batch_size: int,
    source: str = "running",
    calibrated_on: str = "",
) -> dict[str, Any]:
    """Returns all that an evaluation depends on, whichever its attacks, as JSON gives it back.

    Args:
      model: the trained model, calibrated or not, before it is made ready for evaluation.
      examples: the test part.
      batch_size: test examples per batch.
      source: of the norm's statistics.
      calibrated_on: where these are calibrated, ``inputs_digest`` of
        ``experiments.evaluation.calibration.Calibrating``. What the calibration found is left out:
        the next one may be rounded differently.
    """
    assert calibrated_on or source not in CALIBRATED
    data = hashlib.sha256(np.ascontiguousarray(examples.inputs).data)
    data.update(np.ascontiguousarray(examples.targets).data)
    return {
        **({"calibrated_on": calibrated_on} if source in CALIBRATED else {}),
        "weights": weights_digest(nnx.state(model, nnx.Not(CalibrationStat))),
        "data": data.hexdigest(),
        "batch_size": batch_size,
        "platform": jax.default_backend(),
        "matmul_precision": jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
        "code": code_version(),
        "versions": [module.__version__ for module in (steinnorm, jax, flax)],
    }


def code_version() -> str:
    """Returns a hash of the code of both packages: models and tasks count as much as attacks."""
    return code_digest(Path(steinnorm.__file__).parent, Path(__file__).parents[1])


def is_of(identity: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Returns whether results with the first identity, which may say more, fit the second."""
    return {name: identity.get(name) for name in wanted} == wanted


def weights_digest(model: Any) -> str:
    """Returns a hash of all arrays of a model, or of any pytree."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        nnx.state(model) if isinstance(model, nnx.Module) else model
    ):
        if isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()
