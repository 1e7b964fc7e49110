"""The loop of an evaluation: batches outside, attacks inside, so that data pass by once."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from steinnorm.attacks._dependence_check import resolve_batch_dependence
from steinnorm.attacks._warnings import warn
from steinnorm.attacks.catalogue import AttackSettings, check_fits
from steinnorm.attacks.errors import RadiusWarning
from steinnorm.attacks.per_example import PerExample
from steinnorm.attacks.robustness.data import Batch, Data
from steinnorm.attacks.robustness.identity import Fingerprint, code_identity, settings_of
from steinnorm.attacks.robustness.measure import Attack, Measure, Ready, has_ball, name_of
from steinnorm.attacks.robustness.rows import NONE, Key
from steinnorm.attacks.robustness.said import said_once
from steinnorm.attacks.robustness.store import Store
from steinnorm.attacks.threat import Threat, radius_text


class _OtherDataError(Exception):
    """What is in the folder was measured on other data, and batches have passed by already.

    Attributes:
      results: which.
    """

    def __init__(self, results: set[Key]):
        super().__init__(results)
        self.results = results


@dataclasses.dataclass
class Loop:
    """Measures every attack at every radius on every batch.

    Attributes:
      measure: the model and how it is attacked; what the first batch shows is noted in it.
      attacks: besides the clean inputs.
      epsilons: of every attack.
      store: where results are kept.
      on_batch: called after each attack on each batch with what it was.
      given_dependence: whether logits depend on the batch; None to find out.
      results: so far.
      first: the first batch, once it is there.
      labelled: the first batch that has a known label.
      identity: what all results depend on.
      digests: of the batches that were gone through.
      stale: what lies in the folder of other data.
    """

    measure: Measure
    attacks: Sequence[Attack]
    epsilons: Sequence[float]
    store: Store
    on_batch: Callable[[str], None]
    given_dependence: bool | None
    results: dict[Key, PerExample] = dataclasses.field(default_factory=dict)
    first: Batch | None = None
    labelled: Batch | None = None
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)
    digests: tuple[str, ...] = ()
    stale: set[Key] = dataclasses.field(default_factory=set)

    def run(self, data: Data) -> None:
        """Goes through all batches.

        Args:
          data: inputs and labels.

        Raises:
          ValueError: the data do not fit the model or the attacks, or are others than those in the
            folder and cannot be gone through again.
        """
        while True:
            try:
                self._through(data)
                return
            except _OtherDataError as error:
                if not data.is_repeatable:
                    raise ValueError(
                        "the results in this folder are of other data, which x, an iterator, "
                        "showed too late to begin anew: name another folder, or make x repeatable"
                    ) from error
                # Never taken from the files again, so that this ends.
                self.stale |= error.results
                self.results, self.first, self.labelled = {}, None, None

    @property
    def steps(self) -> int:
        """How many times ``on_batch`` is called for one batch."""
        return 1 + len(self.attacks) * len(self.epsilons)

    @property
    def balls(self) -> list[Key]:
        """Attacks and radii, noises left out."""
        return [(name_of(a), e) for a in self.attacks if has_ball(a) for e in self.epsilons]

    def _through(self, data: Data) -> None:
        self.digests = ()
        for batch in data:
            ready = self._begin(batch) if self.first is None else None
            if self.labelled is None and len(batch.with_label()):
                self.labelled = batch
            self.digests += (batch.digest(),)
            for cell in self._cells():
                ready = self._cell(cell, batch, ready)
        longer = {k for k, results in self.results.items() if results.batches > len(self.digests)}
        if longer:
            raise _OtherDataError(longer)

    def _cells(self) -> Iterator[tuple[Attack | None, float]]:
        yield None, 0.0
        for attack in self.attacks:
            for epsilon in self.epsilons:
                yield attack, epsilon

    def _begin(self, batch: Batch) -> Ready:
        """Looks at the first batch: does all fit, what is the model, what is measured already?"""
        self.first, size = batch, len(batch.x)
        ready = self.measure.ready(batch, size)
        for attack in self.attacks:
            if isinstance(attack, AttackSettings):
                check_fits(attack, ready.problem.classes, ready.problem.label_axes)
        self._warn_of_radii(batch)
        with said_once(self.measure.said):
            dependent = resolve_batch_dependence(ready.problem, self.given_dependence)
        self.measure = dataclasses.replace(self.measure, batch_dependent=dependent)
        self.identity = {
            **code_identity(),
            "norm": self.measure.norm,
            "bounds": _plain(self.measure.bounds),
            "seed": self.measure.seed,
            "batch_dependent": dependent,
        }
        if self.store.is_kept:
            name, other = self.store.model(Fingerprint.of(ready.problem))
            self.identity["model"] = name
            if other:
                warn(
                    "the results in this folder are of another model or of other data, and are "
                    "replaced"
                )
        for cell in self._cells():
            found = self.store.load(self._about(*cell))
            if found is not None and _key(*cell) not in self.stale:
                self.results[_key(*cell)] = found
        return ready

    def _warn_of_radii(self, batch: Batch) -> None:
        for epsilon in self.epsilons if self.balls else ():
            threat = Threat(self.measure.norm, epsilon, self.measure.bounds)
            if threat.holds_box(batch.x.shape):
                warn(radius_text(threat), RadiusWarning)

    def _cell(
        self, cell: tuple[Attack | None, float], batch: Batch, ready: Ready | None
    ) -> Ready | None:
        """One attack on one batch; the batch as it lies on the device now, if it does."""
        (attack, epsilon), key, digest = cell, _key(*cell), self.digests[-1]
        have = self.results.get(key)
        if have is not None and have.batches > batch.place:
            if have.digests[batch.place] == digest:
                self.on_batch(f"{key[0]} {epsilon:.4g}")
                return ready
            if batch.place:
                raise _OtherDataError(self._of_other_data())
            have = None
        assert self.first is not None
        ready = ready or self.measure.ready(batch, len(self.first.x))
        more = (
            self.measure.clean(ready)
            if attack is None
            else self.measure.attacked(attack, epsilon, ready)
        )
        more = dataclasses.replace(more, about=self._about(*cell), digests=(digest,))
        self.results[key] = more if have is None else have.extended(more)
        self.store.save(self.results[key])
        self.on_batch(f"{key[0]} {epsilon:.4g}")
        return ready

    def _of_other_data(self) -> set[Key]:
        """Results of which a batch is not the one that was gone through at its place."""
        seen = self.digests
        return {k for k, r in self.results.items() if r.digests[: len(seen)] != seen[: r.batches]}

    def _about(self, attack: Attack | None, epsilon: float) -> dict[str, Any]:
        return {
            "attack": _key(attack, epsilon)[0],
            "epsilon": epsilon,
            "attack_settings": {} if attack is None else settings_of(attack),
            "identity": self.identity,
        }


def _key(attack: Attack | None, epsilon: float) -> Key:
    return (NONE if attack is None else name_of(attack)), epsilon


def _plain(bounds: Any) -> Any:
    """Numbers and arrays as JSON has them."""
    if bounds is None or isinstance(bounds, int | float):
        return bounds
    if isinstance(bounds, tuple | list):
        return [_plain(part) for part in bounds]
    return bounds.tolist() if hasattr(bounds, "tolist") else repr(bounds)
