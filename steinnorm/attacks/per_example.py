"""Results of one attack at one strength, example by example: what every table is made from.

They lie in a file each, which is written anew, whole, after every batch, so that an evaluation that
was stopped goes on with the next one.  The attacked inputs themselves are not kept, but for the
first few, for pictures.
"""

import dataclasses
import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from steinnorm.attacks.files import write_bytes

SHOWN = 8
"""How many of the first examples are kept as they were attacked, for pictures."""

_SUMMARY, _SHOWN = "summary/", "shown/"


class Values(NamedTuple):
    """What the attacked inputs consist of.

    Attributes:
      min: the smallest value.
      max: the largest value.
      nan_count: how many values are not finite.
    """

    min: float
    max: float
    nan_count: int

    @classmethod
    def of(cls, inputs: np.ndarray) -> "Values":
        """Returns those of a batch (k, ...)."""
        return cls(float(inputs.min()), float(inputs.max()), int((~np.isfinite(inputs)).sum()))

    def merged(self, other: "Values") -> "Values":
        """Returns those of two batches together."""
        low, high = min(self.min, other.min), max(self.max, other.max)
        return Values(low, high, self.nan_count + other.nan_count)


@dataclasses.dataclass(frozen=True)
class PerExample:
    """One attack at one strength on the first examples of a data set, in their order.

    Attributes:
      about: what was measured, and all that the numbers depend on; JSON.
      summary: what is kept of each example, such as ``right`` (N,) and ``loss`` (N,).
      distance: (N,) change of each example, in the norm of the ball; 0 where there is no ball.
      batch: (N,) number of the batch that the example was in.
      values: of the inputs as they were attacked.
      zero_gradients: examples whose gradient was all zero in the attack's last step.
      shown: of the first examples, ``x`` and ``x_adv`` (k, ...), ``y`` and ``prediction``, the
        prediction being that for ``x_adv``.
      digests: a hash of the data of each batch, where the whole data are not known at the start;
        else empty.
    """

    about: dict[str, Any]
    summary: dict[str, np.ndarray]
    distance: np.ndarray
    batch: np.ndarray
    values: Values
    zero_gradients: int = 0
    shown: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    digests: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def batches(self) -> int:
        """How many batches are done."""
        return int(self.batch[-1]) + 1 if len(self) else 0

    def extended(self, more: "PerExample") -> Self:
        """Returns this with the results of the next batch behind it.

        Args:
          more: results of the same attack; their ``about`` is not looked at.
        """
        shown = dict(self.shown)
        for name, value in more.shown.items():
            if name in shown and len(shown[name]) < SHOWN:
                room = SHOWN - len(shown[name])
                shown[name] = np.concatenate([shown[name], value[:room]])
        return dataclasses.replace(
            self,
            summary={n: np.concatenate([v, more.summary[n]]) for n, v in self.summary.items()},
            distance=np.concatenate([self.distance, more.distance]),
            batch=np.concatenate([self.batch, more.batch]),
            values=self.values.merged(more.values),
            zero_gradients=self.zero_gradients + more.zero_gradients,
            shown=shown,
            digests=self.digests + more.digests,
        )

    def write(self, path: Path) -> None:
        """Writes a file, whole or not at all.

        Args:
          path: of the file, an ``.npz``.
        """
        buffer = io.BytesIO()
        numbers = {
            "zero_gradients": self.zero_gradients,
            "values": self.values._asdict(),
            "digests": list(self.digests),
        }
        np.savez_compressed(
            buffer,
            about=np.array(json.dumps(self.about)),
            numbers=np.array(json.dumps(numbers)),
            distance=self.distance,
            batch=self.batch,
            **{_SUMMARY + name: value for name, value in self.summary.items()},  # type: ignore[arg-type]
            **{_SHOWN + name: value for name, value in self.shown.items()},  # type: ignore[arg-type]
        )
        write_bytes(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Returns the results in a file; None where there is none, or one that cannot be read.

        Args:
          path: of the file.
        """
        try:
            # From memory: of a damaged file np.load leaves the handle open.
            with np.load(io.BytesIO(path.read_bytes())) as file:
                arrays = {name: file[name] for name in file.files}
            numbers = json.loads(str(arrays["numbers"]))
            return cls(
                about=json.loads(str(arrays["about"])),
                summary=_under(_SUMMARY, arrays),
                distance=arrays["distance"],
                batch=arrays["batch"],
                values=Values(**numbers["values"]),
                zero_gradients=numbers["zero_gradients"],
                shown=_under(_SHOWN, arrays),
                digests=tuple(numbers.get("digests", ())),
            )
        except Exception:  # a damaged file fails in many ways, zlib.error among them
            return None


Results = TypeVar("Results", bound=PerExample)


def worst_of(found: Sequence[Results], wrong: Sequence[np.ndarray], *, joint: bool) -> Results:
    """Returns the worst of several attacks, example by example.

    Each example keeps the attack under which most of its labels are wrong and, of those, the one of
    the largest loss: an attack that fails proves nothing.  Its ``loss`` is the largest over all
    attacks, which need not be that of the chosen one, so that a worst case never states a smaller
    loss than one of its attacks.

    Args:
      found: results of one model on the same examples in the same batches, with a ``loss`` (N,) in
        their summaries.
      wrong: for each, the share of every example's labels that are wrong, (N,).
      joint: choose for each batch as a whole, because its examples fall together: a batch put
        together from several attacks is one that no model ever saw.
    """
    first = found[0]
    share = np.stack(wrong).astype(np.float64)
    loss = np.stack([results.summary["loss"] for results in found]).astype(np.float64)
    of_batch = loss.copy()
    if joint:
        for place in np.unique(first.batch):
            members = first.batch == place
            for values in (share, of_batch):
                values[:, members] = values[:, members].mean(axis=1, keepdims=True)
    choice = np.argmax(np.where(share == share.max(axis=0), of_batch, -np.inf), axis=0)
    hardest = np.argmax(of_batch, axis=0)
    column = np.arange(len(first))

    def chosen(name: str) -> np.ndarray:
        return np.stack([results.summary[name] for results in found])[choice, column]

    summary = {name: chosen(name) for name in first.summary}
    return dataclasses.replace(
        first,
        summary=summary | {"loss": loss[hardest, column]},
        distance=np.stack([results.distance for results in found])[choice, column],
        values=functools.reduce(Values.merged, (results.values for results in found)),
        zero_gradients=0,
        shown={},
    )


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}
