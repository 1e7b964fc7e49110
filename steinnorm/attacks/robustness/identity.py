"""What results depend on, so that those of another model, data or code are not taken for ours."""

import dataclasses
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._criterion import Criterion
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks._model import traced_logits
from steinnorm.attacks.catalogue import AttackSettings
from steinnorm.attacks.code_digest import code_digest
from steinnorm.attacks.files import write_bytes
from steinnorm.attacks.losses import per_example
from steinnorm.attacks.robustness.described import arrays_digest, described

_MOST = 2**20  # values of logits and of gradients that are kept

# Far above what the same program gives on the same machine, which is no difference at all, and
# below what a step of training does.  Where another machine rounds more, results are made again.
_LOGITS, _GRADIENT = 1e-5, 1e-4


class Fingerprint(NamedTuple):
    """A model by what it answers: a plain function has no weights that could be compared.

    Attributes:
      arrays: a hash of the model's arrays, where it is a pytree with arrays; else empty.
      logits: of the first batch, flat, at most 2^20 evenly spaced ones.
      gradient: of the summed margin with respect to that batch, the same of it.  Two models may
        have the same logits and other gradients, such as one that hides them.
    """

    arrays: str
    logits: np.ndarray
    gradient: np.ndarray

    @classmethod
    def of(cls, problem: Problem) -> "Fingerprint":
        """Returns that of the model of a problem, on its batch."""
        gradient = _gradient(problem.model, problem.x, problem.criterion.y)
        return cls(arrays_digest(problem.model), _some(problem.logits), _some(gradient))

    def is_like(self, other: "Fingerprint") -> bool:
        """Returns whether both are of one model, but for rounding."""
        return (
            self.arrays == other.arrays
            and _differ(self.logits, other.logits) <= _LOGITS
            and _differ(self.gradient, other.gradient) <= _GRADIENT
        )

    def digest(self) -> str:
        """Returns a name for the model."""
        found = hashlib.sha256(self.arrays.encode())
        found.update(self.logits.tobytes() + self.gradient.tobytes())
        return found.hexdigest()


def recognised(fingerprint: Fingerprint, path: Path) -> tuple[str, bool]:
    """Returns the name of the model, and whether another one was there before.

    Args:
      fingerprint: of the model.
      path: of the file that holds the last one's; it is written anew where it is of another.
    """
    found = None
    try:
        # From memory: of a damaged file np.load leaves the handle open.
        with np.load(io.BytesIO(path.read_bytes())) as file:
            before = Fingerprint(str(file["arrays"]), file["logits"], file["gradient"])
            found = str(file["name"])
    except Exception:  # a damaged file fails in many ways, zlib.error among them
        before = None
    if before is not None and found and fingerprint.is_like(before):
        return found, False
    buffer, name = io.BytesIO(), fingerprint.digest()
    kept = {**fingerprint._asdict(), "name": name}
    arrays: dict[str, Any] = {key: np.asarray(value) for key, value in kept.items()}
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())
    return name, before is not None


def code_identity() -> dict[str, Any]:
    """Returns what all results depend on besides model, data and settings; as JSON."""
    return {
        "code": code_digest(Path(__file__).parents[1]),
        "jax": jax.__version__,
        "x64": jnp.arange(1.0).dtype == np.float64,
    }


def settings_of(attack: AttackSettings | Callable[..., Any]) -> dict[str, Any] | None:
    """Returns what an attack's results depend on, as JSON; None where nobody can tell.

    A function of one's own is told by its code, its defaults, what it closes over and what globals
    it reads.
    """
    if isinstance(attack, AttackSettings):
        return dataclasses.asdict(attack)
    words = described(attack)
    return None if words is None else {"function": hashlib.sha256(words.encode()).hexdigest()}


@jax.jit
def _gradient(model: jax.tree_util.Partial, x: jax.Array, y: jax.Array) -> jax.Array:
    def total(inputs: jax.Array) -> jax.Array:
        return jnp.sum(per_example("margin", traced_logits(model, inputs), Criterion(y)))

    return jax.grad(total)(x)


def _some(values: jax.Array) -> np.ndarray:
    flat = np.asarray(values).ravel()
    return flat[:: max(1, -(-flat.size // _MOST))].astype(np.float32)


def _differ(a: np.ndarray, b: np.ndarray) -> float:
    """Length of the difference as a share of the longer one; infinite where they do not compare."""
    if a.shape != b.shape:
        return np.inf
    here, there = a.astype(np.float64), b.astype(np.float64)
    longer = max(np.linalg.norm(here), np.linalg.norm(there))
    if not np.isfinite(longer):
        return 0.0 if np.array_equal(here, there, equal_nan=True) else np.inf
    return float(np.linalg.norm(here - there) / longer) if longer else 0.0
