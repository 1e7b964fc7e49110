"""The attacks that have a name, with the usual budgets, and how each is called."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from steinnorm.attacks import losses
from steinnorm.attacks.apgd import apgd
from steinnorm.attacks.autoattack import autoattack
from steinnorm.attacks.fab import fab
from steinnorm.attacks.noise import NOISES
from steinnorm.attacks.pgd import fgsm, pgd
from steinnorm.attacks.segmentation import sea, segpgd
from steinnorm.attacks.square import square

_PER_PIXEL = ("segpgd", "sea")
_PER_EXAMPLE = ("fab", "autoattack")
_WITH_LOSS = ("fgsm", "pgd", "apgd")
_TELLING = ("apgd", "fab", "square", "autoattack", "sea")  # those that say how far they are
_TARGETED = "targeted_"
_WALKS = ("pgd", "segpgd")  # those that may start at a random point
_USUAL_STEPS = {"pgd": 20, "apgd": 100, "fab": 100, "autoattack": 100, "segpgd": 20, "sea": 300}
_FOR_MAPS = "pgd, apgd, segpgd, sea, square and fgsm"


@dataclasses.dataclass(frozen=True)
class AttackSettings:
    """An attack and its budget, without norm and radius.

    What is not given is as in the attack of the catalogue that has the kind for its name.

    Attributes:
      name: what the results call it.
      kind: which function of ``steinnorm.attacks`` runs it, a noise included.
      steps: gradient steps per run (``pgd``, ``apgd``, ``fab``, ``autoattack``, ``segpgd``,
        ``sea``); None means the usual number of this kind: 20 of ``pgd`` and ``segpgd``, 100 of
        ``apgd``, ``fab`` and ``autoattack``, 300 of ``sea``.
      step_size: absolute, in the units of the inputs; None means 2.5 * epsilon / steps (``pgd``
        and ``segpgd``).
      random_start: start at a random point of the ball (``pgd`` and ``segpgd``); None means that
        these do.
      restarts: runs, of which the worst is kept (``pgd``, ``apgd``, ``fab`` and ``segpgd``).
      loss: what the attack increases, a name of ``steinnorm.attacks.losses.LOSSES``, for ``apgd``
        also with ``targeted_`` before it (``fgsm``, ``pgd``, ``apgd``).
      queries: looks at the model (``square``, ``autoattack``).
      short_reach: this attack is known not to cross its ball, so the warning about it is not
        wanted.

    Raises:
      ValueError: there is no attack of this kind, or it would run several times from one point.

    Example:
      >>> mine = AttackSettings("mine", "pgd", loss="margin")
      >>> mine.steps, mine.random_start
      (20, True)
    """

    name: str
    kind: str
    steps: int | None = None
    step_size: float | None = None
    random_start: bool | None = None
    restarts: int = 1
    loss: str = "cross_entropy"
    queries: int = 5000
    short_reach: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of attack {self.kind!r}; there are {', '.join(KINDS)}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if hasattr(value, "item") and np.ndim(value) == 0:  # JSON has no numbers of NumPy
                self._set(field.name, value.item())
        if self.steps is None:
            self._set("steps", _USUAL_STEPS.get(self.kind, 1))
        if self.random_start is None:
            self._set("random_start", self.kind in _WALKS)
        if self.kind in _WALKS and self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"{self.name}: {self.restarts} restarts from the same point are one; set "
                "random_start=True"
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    @property
    def has_ball(self) -> bool:
        """Whether there is an attacker: noise has none, and no ball."""
        return self.kind not in NOISES

    def call(
        self, *, batch_dependent: bool, on_progress: Callable[[str], None] | None = None
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Returns the function that runs this attack, and its keyword arguments.

        Args:
          batch_dependent: whether an example's logits change with its companions.
          on_progress: called now and then with how far a long attack is, in words.

        Raises:
          ValueError: this is a noise, which no such function runs.
        """
        if not self.has_ball:
            raise ValueError(f"{self.name} is a noise, which has no ball: see NOISES")
        steps, restarts = {"steps": self.steps}, {"restarts": self.restarts}
        walk = {
            **steps,
            **restarts,
            "step_size": self.step_size,
            "random_start": self.random_start,
        }
        loss = {"loss": self.loss}
        known: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
            "fgsm": (fgsm, loss),
            "pgd": (pgd, {**walk, **loss}),
            "apgd": (apgd, {**steps, **restarts, **loss}),
            "fab": (fab, {**steps, **restarts}),
            "square": (square, {"queries": self.queries}),
            "autoattack": (autoattack, {**steps, "queries": self.queries}),
            "segpgd": (segpgd, walk),
            "sea": (sea, steps),
        }
        function, settings = known[self.kind]
        settings = {**settings, "batch_dependent": batch_dependent}
        if self.kind in _TELLING and on_progress is not None:
            settings = {**settings, "on_progress": functools.partial(_tell, on_progress)}
        return function, settings


def _tell(on_progress: Callable[[str], None], *how_far: str | int) -> None:
    """Of a member of an ensemble, how much is done, and of how much; or the last two."""
    *name, done, total = how_far
    on_progress(" ".join([*map(str, name), f"{done} of {total}"]))


KINDS = (*NOISES, "fgsm", "pgd", "apgd", "fab", "square", "autoattack", *_PER_PIXEL)
"""What ``AttackSettings.kind`` may be."""

_ATTACKS = (
    AttackSettings("fgsm", "fgsm"),
    AttackSettings("pgd", "pgd"),
    AttackSettings("pgd-margin", "pgd", loss="margin"),
    AttackSettings("apgd", "apgd"),
    AttackSettings("apgd-dlr", "apgd", loss="dlr"),
    AttackSettings("apgd-margin", "apgd", loss="margin"),
    AttackSettings("apgd-t", "apgd", loss="targeted_dlr"),
    AttackSettings("fab-t", "fab"),
    AttackSettings("square", "square"),
    AttackSettings("autoattack", "autoattack"),
    AttackSettings("segpgd", "segpgd"),
    AttackSettings("sea", "sea"),
)
_KNOWN = {
    **{name: AttackSettings(name, name) for name in NOISES},
    **{attack.name: attack for attack in _ATTACKS},
}


def names() -> tuple[str, ...]:
    """Returns the names that ``by_name`` knows, the noises first."""
    return tuple(_KNOWN)


def by_name(name: str) -> AttackSettings:
    """Returns the attack of that name with its usual budget.

    Args:
      name: one of ``names()``.

    Raises:
      ValueError: there is none; the message lists those there are.

    Example:
      >>> from steinnorm.attacks.catalogue import by_name
      >>> by_name("pgd").steps
      20
    """
    if name not in _KNOWN:
        raise ValueError(f"unknown attack {name!r}; there are {', '.join(_KNOWN)}")
    return _KNOWN[name]


def check_fits(attack: AttackSettings, classes: int, label_axes: int) -> None:
    """Refuses an attack that does not exist for what is attacked, or whose loss does not.

    Args:
      attack: which.
      classes: K; a single logit counts as two classes.
      label_axes: 0 where each example has one label, 2 for label maps.

    Raises:
      ValueError: saying which attacks there are.
    """
    if label_axes and attack.kind in _PER_EXAMPLE:
        raise ValueError(f"{attack.name} is for one label per example; label maps have {_FOR_MAPS}")
    if not label_axes and attack.kind in _PER_PIXEL:
        raise ValueError(f"{attack.name} is for a label per pixel; take pgd, apgd or autoattack")
    if attack.kind not in _WITH_LOSS:
        return
    targeted = attack.loss.startswith(_TARGETED)
    if targeted and label_axes:
        raise ValueError(f"{attack.name} has targets: it is for one label per example")
    try:
        loss = attack.loss.removeprefix(_TARGETED)
        losses.check_loss(loss, max(classes, 2), label_axes, targeted=targeted)
    except ValueError as error:
        raise ValueError(f"{attack.name}: {error}") from error
