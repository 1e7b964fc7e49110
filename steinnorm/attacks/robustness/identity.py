"""What results depend on: stored results of another model, data or code must not be used."""

import dataclasses
import hashlib
import io
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks._competing import without_unreachable
from steinnorm.attacks._criterion import Criterion
from steinnorm.attacks._inputs import Problem
from steinnorm.attacks._model import traced_logits
from steinnorm.attacks._without_gradient import why_no_gradient
from steinnorm.attacks.catalogue import AttackSettings
from steinnorm.attacks.code_digest import code_digest
from steinnorm.attacks.files import write_bytes
from steinnorm.attacks.losses import per_example
from steinnorm.attacks.robustness.describe import describe
from steinnorm.attacks.robustness.program import model_digest

_MOST_VALUES = 2**20  # largest number of logits, and of gradient values, that are kept

# Largest relative differences that still count as the same model. The same program on the same
# machine has no difference at all, and a training step makes a larger one. If another machine
# differs by more, results are measured again.
_LOGITS, _GRADIENT = 1e-5, 1e-4

_UNKNOWN = "unknown "


class Fingerprint(NamedTuple):
    """Identifies a model by what it computes and by its answers.

    Attributes:
      program: hash of the model's code, attributes and arrays; if its code cannot be described, a
        random text, so that it is no other model.
      logits: logits of the first batch, of classes that compete, flattened, at most 2^20 evenly
        spaced values. They also depend on what callbacks read from elsewhere.
      gradient: gradient of the summed margin with respect to that batch, likewise; empty for a
        model without one.
    """

    program: str
    logits: np.ndarray
    gradient: np.ndarray

    @classmethod
    def of(cls, problem: Problem) -> "Fingerprint":
        """Returns the fingerprint of a problem's model on its batch."""
        model, x = problem.model, problem.x
        program = model_digest(model, x) or _UNKNOWN + secrets.token_hex()
        gradient = np.zeros(0)
        if not why_no_gradient(model, x):
            gradient = np.asarray(_gradient(model, x, problem.criterion.y))
        logits = without_unreachable(np.asarray(problem.logits))
        return cls(program, _subsample(logits), _subsample(gradient))

    @property
    def is_known(self) -> bool:
        """Whether the model's code can be described."""
        return not self.program.startswith(_UNKNOWN)

    def is_like(self, other: "Fingerprint") -> bool:
        """Returns whether both belong to the same model, up to rounding."""
        return (
            self.program == other.program
            and _differ(self.logits, other.logits) <= _LOGITS
            and _differ(self.gradient, other.gradient) <= _GRADIENT
        )

    def digest(self) -> str:
        """Returns a name for the model."""
        digest = hashlib.sha256(self.program.encode())
        digest.update(self.logits.tobytes() + self.gradient.tobytes())
        return digest.hexdigest()


def recognise_model(fingerprint: Fingerprint, path: Path) -> tuple[str, bool]:
    """Returns the name of the model, and whether the file belonged to another model before.

    Args:
      fingerprint: fingerprint of the model.
      path: file with the last model's fingerprint; it is replaced if the model is another one.
    """
    stored_name = None
    try:
        # From memory, because np.load leaves the handle of a damaged file open.
        with np.load(io.BytesIO(path.read_bytes())) as file:
            stored = Fingerprint(str(file["program"]), file["logits"], file["gradient"])
            stored_name = str(file["name"])
    except Exception:  # damaged files raise many errors, zlib.error among them
        stored = None
    if stored is not None and stored_name and fingerprint.is_like(stored):
        return stored_name, False
    buffer, name = io.BytesIO(), fingerprint.digest()
    kept = {**fingerprint._asdict(), "name": name}
    arrays: dict[str, Any] = {key: np.asarray(value) for key, value in kept.items()}
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())
    return name, stored is not None


def code_identity() -> dict[str, Any]:
    """Returns what all results depend on besides model, data and settings, as JSON."""
    return {
        "code": code_digest(Path(__file__).parents[1]),
        "jax": jax.__version__,
        "x64": jnp.arange(1.0).dtype == np.float64,
        "platform": jax.default_backend(),
        "matmul_precision": jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
    }


def describe_attack(attack: AttackSettings | Callable[..., Any]) -> dict[str, Any] | None:
    """Returns what an attack's results depend on, as JSON; None if that cannot be determined.

    A function is identified by its code, defaults, closure and the globals that it reads.
    """
    if isinstance(attack, AttackSettings):
        return dataclasses.asdict(attack)
    description = describe(attack)
    return (
        None
        if description is None
        else {"function": hashlib.sha256(description.encode()).hexdigest()}
    )


@jax.jit
def _gradient(model: jax.tree_util.Partial, x: jax.Array, y: jax.Array) -> jax.Array:
    def total(inputs: jax.Array) -> jax.Array:
        return jnp.sum(per_example("margin", traced_logits(model, inputs), Criterion(y)))

    return jax.grad(total)(x)


def _subsample(values: jax.Array | np.ndarray) -> np.ndarray:
    flat = np.asarray(values).ravel()
    return flat[:: max(1, -(-flat.size // _MOST_VALUES))].astype(np.float32)


def _differ(a: np.ndarray, b: np.ndarray) -> float:
    """Returns |a - b| / max(|a|, |b|); infinite for different shapes or non-finite values."""
    if a.shape != b.shape:
        return np.inf
    first, second = a.astype(np.float64), b.astype(np.float64)
    longer = max(np.linalg.norm(first), np.linalg.norm(second))
    if not np.isfinite(longer):
        return 0.0 if np.array_equal(first, second, equal_nan=True) else np.inf
    return float(np.linalg.norm(first - second) / longer) if longer else 0.0
