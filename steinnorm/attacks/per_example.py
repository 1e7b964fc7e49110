"""Per-example results of one attack at one strength, from which all tables are made.

Each attack and strength has a file of its own, which is rewritten after every batch, so that an
interrupted evaluation continues with the next batch. Only the first few attacked inputs are kept,
for pictures.
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
"""Number of first examples whose attacked inputs are kept, for pictures."""

_SUMMARY, _SHOWN = "summary/", "shown/"


class Values(NamedTuple):
    """The range of the attacked inputs.

    Attributes:
      min: the smallest value.
      max: the largest value.
      nan_count: number of values that are not finite.
    """

    min: float
    max: float
    nan_count: int

    @classmethod
    def of(cls, inputs: np.ndarray) -> "Values":
        """Returns the range of a batch (k, ...)."""
        return cls(float(inputs.min()), float(inputs.max()), int((~np.isfinite(inputs)).sum()))

    def merged(self, other: "Values") -> "Values":
        """Returns the range of two batches together."""
        low, high = min(self.min, other.min), max(self.max, other.max)
        return Values(low, high, self.nan_count + other.nan_count)


@dataclasses.dataclass(frozen=True)
class PerExample:
    """Per-example results of one attack at one strength on the first N examples of a data set.

    Attributes:
      about: what was measured, and everything that the results depend on, as JSON.
      summary: measurements of each example by name, such as ``right`` (N,) and ``loss`` (N,).
      distance: size of each example's change, in the norm of the ball, (N,); for noise, which has
        no ball, the largest change of a value.
      batch: number of the batch that contained the example, (N,).
      values: range of the attacked inputs.
      zero_gradients: number of examples with an all-zero gradient in the attack's last step.
      shown: ``x`` and ``x_adv`` (k, ...), ``y`` and ``prediction`` of the first examples; the
        prediction is that for ``x_adv``.
      digests: a hash of each batch's data if the data are not known as a whole at the start; else
        empty.
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
        """Number of evaluated batches."""
        return int(self.batch[-1]) + 1 if len(self) else 0

    def extended(self, more: "PerExample") -> Self:
        """Returns these results with those of the next batch appended.

        Args:
          more: results of the same attack; their ``about`` is ignored.
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
        """Writes the results atomically.

        Args:
          path: the ``.npz`` file to create or replace.
        """
        write_bytes(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Returns the content of the file."""
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
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Returns the results in a file; None if it does not exist or cannot be read.

        Args:
          path: the ``.npz`` file.
        """
        try:
            return cls.from_bytes(path.read_bytes())
        except Exception:  # damaged files raise many errors, zlib.error among them
            return None

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Returns the results that ``to_bytes`` made the bytes of.

        Args:
          content: the bytes; damage shows in errors of many classes.
        """
        # From memory, because np.load leaves the handle of a damaged file open.
        with np.load(io.BytesIO(content)) as file:
            arrays = {name: file[name] for name in file.files}
        numbers = json.loads(str(arrays["numbers"]))
        return cls(
            about=json.loads(str(arrays["about"])),
            summary=_with_prefix(_SUMMARY, arrays),
            distance=arrays["distance"],
            batch=arrays["batch"],
            values=Values(**numbers["values"]),
            zero_gradients=numbers["zero_gradients"],
            shown=_with_prefix(_SHOWN, arrays),
            digests=tuple(numbers.get("digests", ())),
        )


Results = TypeVar("Results", bound=PerExample)


def worst_of(found: Sequence[Results], wrong: Sequence[np.ndarray], *, joint: bool) -> Results:
    """Returns the worst of several attacks, example by example.

    Each example keeps the attack under which most of its labels are wrong and, among those, the
    attack of the largest loss. Its ``loss`` is the largest over all attacks, even if another attack
    is kept, so that no attack has a larger loss than the worst case.

    Args:
      found: results of one model on the same examples in the same batches, with a ``loss`` (N,) in
        their summaries.
      wrong: for each of them, the share of every example's labels that are wrong, (N,).
      joint: whether one attack is chosen for each batch as a whole, because logits depend on the
        batch and no model has evaluated a mixture of several attacks.
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


def _with_prefix(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}
