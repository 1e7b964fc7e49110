"""The loop of an evaluation: over batches, then over attacks, so that data are read once."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from steinnorm.attacks._dependence_check import resolve_batch_dependence
from steinnorm.attacks._warnings import warn
from steinnorm.attacks.catalogue import AttackSettings, check_fits
from steinnorm.attacks.checks.arguments import check_losses_fit
from steinnorm.attacks.errors import RadiusWarning
from steinnorm.attacks.per_example import PerExample
from steinnorm.attacks.robustness.data import Batch, Data
from steinnorm.attacks.robustness.evaluator import (
    Attack,
    BatchEvaluator,
    PreparedBatch,
    attack_name,
    has_ball,
)
from steinnorm.attacks.robustness.identity import Fingerprint, code_identity, describe_attack
from steinnorm.attacks.robustness.rows import NONE, Key
from steinnorm.attacks.robustness.store import Store
from steinnorm.attacks.robustness.warn_once import warn_once
from steinnorm.attacks.threat import Threat, radius_text

_UNKNOWN_MODEL = (
    ": a callback of the model runs code that cannot be described, so that every call counts as "
    "one of another model"
)


class _DataMismatchError(Exception):
    """Results in the folder were measured on other data, which was noticed after the first batch.

    Attributes:
      results: attacks and radii of these results.
    """

    def __init__(self, results: set[Key]):
        super().__init__(results)
        self.results = results


@dataclasses.dataclass
class EvaluationLoop:
    """Measures every attack at every radius on every batch.

    Attributes:
      evaluator: the model and how it is attacked; its batch dependence is set by the first batch.
      attacks: the attacks, besides the clean inputs.
      epsilons: the radii of each attack.
      store: the files of the results.
      on_batch: called after each attack on each batch with the name of the attack and the radius.
      batch_dependent: whether logits depend on the batch; None to test it.
      check_losses: losses of the checks, which must fit the labels.
      results: results so far.
      first_batch: the first batch; None before it is read.
      first_labelled_batch: the first batch with a label.
      identity: everything that all results depend on.
      digests: hashes of the batches that have been read.
      stale: stored results of other data, which must not be used.
    """

    evaluator: BatchEvaluator
    attacks: Sequence[Attack]
    epsilons: Sequence[float]
    store: Store
    on_batch: Callable[[str], None]
    batch_dependent: bool | None
    check_losses: tuple[str, ...] = ()
    results: dict[Key, PerExample] = dataclasses.field(default_factory=dict)
    first_batch: Batch | None = None
    first_labelled_batch: Batch | None = None
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)
    digests: tuple[str, ...] = ()
    stale: set[Key] = dataclasses.field(default_factory=set)

    def run(self, data: Data) -> None:
        """Runs all attacks on all batches.

        Args:
          data: inputs and labels.

        Raises:
          ValueError: the data do not fit the model or the attacks, or differ from those of the
            results in the folder and cannot be read again.
        """
        while True:
            try:
                self._pass_through(data)
                return
            except _DataMismatchError as error:
                if not data.is_repeatable:
                    raise ValueError(
                        "the results in this folder are of other data, and x is an iterator, which "
                        "cannot be read again: name another folder, or make x repeatable"
                    ) from error
                # Stale results are not loaded again, so that this loop ends.
                self.stale |= error.results
                self.results, self.first_batch, self.first_labelled_batch = {}, None, None

    @property
    def steps(self) -> int:
        """Number of calls of ``on_batch`` per batch."""
        return 1 + len(self.attacks) * len(self.epsilons)

    @property
    def ball_attacks(self) -> list[Key]:
        """Attacks and radii, without noises."""
        return [(attack_name(a), e) for a in self.attacks if has_ball(a) for e in self.epsilons]

    def _pass_through(self, data: Data) -> None:
        self.digests = ()
        for batch in data:
            prepared = self._start_with(batch) if self.first_batch is None else None
            if self.first_labelled_batch is None and len(batch.with_label()):
                self.first_labelled_batch = batch
            self.digests += (batch.digest(),)
            for measurement in self._measurements():
                prepared = self._measure(measurement, batch, prepared)
        longer = {k for k, results in self.results.items() if results.batches > len(self.digests)}
        if longer:
            raise _DataMismatchError(longer)

    def _measurements(self) -> Iterator[tuple[Attack | None, float]]:
        yield None, 0.0
        for attack in self.attacks:
            for epsilon in self.epsilons:
                yield attack, epsilon

    def _start_with(self, batch: Batch) -> PreparedBatch:
        """Checks the first batch, identifies the model, and loads stored results."""
        self.first_batch, size = batch, len(batch.x)
        prepared = self.evaluator.prepare(batch, size)
        for attack in self.attacks:
            if isinstance(attack, AttackSettings):
                check_fits(attack, prepared.problem.classes, prepared.problem.label_axes)
        check_losses_fit(self.check_losses, prepared.problem.classes, prepared.problem.label_axes)
        self._warn_of_radii(batch)
        with warn_once(self.evaluator.given_warnings):
            dependent = resolve_batch_dependence(prepared.problem, self.batch_dependent)
        self.evaluator = dataclasses.replace(self.evaluator, batch_dependent=dependent)
        self.identity = {
            **code_identity(),
            "norm": self.evaluator.norm,
            "bounds": _as_json(self.evaluator.bounds),
            "seed": self.evaluator.seed,
            "batch_dependent": dependent,
        }
        if self.store.has_folder:
            fingerprint = Fingerprint.of(prepared.problem)
            self.identity["model"], is_other = self.store.model(fingerprint)
            if is_other:
                warn(
                    "the results in this folder are of another model or of other data, and are "
                    "replaced" + ("" if fingerprint.is_known else _UNKNOWN_MODEL)
                )
        for measurement in self._measurements():
            stored = self.store.load(self._describe(*measurement))
            if stored is not None and _key(*measurement) not in self.stale:
                self.results[_key(*measurement)] = stored
        return prepared

    def _warn_of_radii(self, batch: Batch) -> None:
        for epsilon in self.epsilons if self.ball_attacks else ():
            threat = Threat(self.evaluator.norm, epsilon, self.evaluator.bounds)
            if threat.holds_box(batch.x.shape):
                warn(radius_text(threat), RadiusWarning)

    def _measure(
        self, measurement: tuple[Attack | None, float], batch: Batch, prepared: PreparedBatch | None
    ) -> PreparedBatch | None:
        """Runs one attack on one batch, if not stored; returns the batch if it is on the device."""
        (attack, epsilon), key, digest = measurement, _key(*measurement), self.digests[-1]
        previous = self.results.get(key)
        if previous is not None and previous.batches > batch.number:
            if previous.digests[batch.number] == digest:
                self.on_batch(f"{key[0]} {epsilon:.4g}")
                return prepared
            if batch.number:
                raise _DataMismatchError(self._of_other_data())
            previous = None
        assert self.first_batch is not None
        prepared = prepared or self.evaluator.prepare(batch, len(self.first_batch.x))
        new_results = (
            self.evaluator.evaluate_clean(prepared)
            if attack is None
            else self.evaluator.evaluate_attack(attack, epsilon, prepared)
        )
        new_results = dataclasses.replace(
            new_results, about=self._describe(*measurement), digests=(digest,)
        )
        self.results[key] = new_results if previous is None else previous.extended(new_results)
        self.store.save(self.results[key])
        self.on_batch(f"{key[0]} {epsilon:.4g}")
        return prepared

    def _of_other_data(self) -> set[Key]:
        """Returns the results of which a batch differs from the one that was read."""
        digests = self.digests
        return {
            k for k, r in self.results.items() if r.digests[: len(digests)] != digests[: r.batches]
        }

    def _describe(self, attack: Attack | None, epsilon: float) -> dict[str, Any]:
        return {
            "attack": _key(attack, epsilon)[0],
            "epsilon": epsilon,
            "attack_settings": {} if attack is None else describe_attack(attack),
            "identity": self.identity,
        }


def _key(attack: Attack | None, epsilon: float) -> Key:
    return (NONE if attack is None else attack_name(attack)), epsilon


def _as_json(bounds: Any) -> Any:
    """Returns numbers and arrays in a form that can be written as JSON."""
    if bounds is None or isinstance(bounds, int | float):
        return bounds
    if isinstance(bounds, tuple | list):
        return [_as_json(part) for part in bounds]
    return bounds.tolist() if hasattr(bounds, "tolist") else repr(bounds)
