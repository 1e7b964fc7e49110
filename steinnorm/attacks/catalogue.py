"""Attacks by name, with their usual budgets and the functions that run them."""

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
_WITH_PROGRESS = ("apgd", "fab", "square", "autoattack", "sea")  # those that report progress
_LOSSES_OF_KINDS = {
    "autoattack": ("cross_entropy", "margin"),
    "fab": ("margin",),
    "segpgd": ("segpgd",),
    "sea": ("js", "masked_cross_entropy", "masked_spherical"),
}
_TARGETED = "targeted_"
_WITH_RANDOM_START = ("pgd", "segpgd")  # those for which a random start is optional
_USUAL_STEPS = {"pgd": 20, "apgd": 100, "fab": 100, "autoattack": 100, "segpgd": 20, "sea": 300}
_FOR_MAPS = "pgd, apgd, segpgd, sea, square and fgsm"


@dataclasses.dataclass(frozen=True)
class AttackSettings:
    """An attack and its budget, without norm and radius.

    Settings that are not given are those of the attack in the catalogue whose name is the kind.

    Attributes:
      name: name of the attack in results.
      kind: name of the function in ``steinnorm.attacks`` that runs it, or of a noise.
      steps: gradient steps per run (``pgd``, ``apgd``, ``fab``, ``autoattack``, ``segpgd``,
        ``sea``). None means the usual number: 20 for ``pgd`` and ``segpgd``, 100 for ``apgd``,
        ``fab`` and ``autoattack``, 300 for ``sea``.
      step_size: absolute step size, in the units of the inputs; None means 2.5 * epsilon / steps
        (``pgd`` and ``segpgd``).
      random_start: whether runs start at a random point of the ball; None means yes (``pgd`` and
        ``segpgd``).
      restarts: number of runs, of which the worst is kept (``pgd``, ``apgd``, ``fab`` and
        ``segpgd``; ignored, as all other settings, by kinds that are not named in brackets).
      loss: the loss that the attack increases, a name in ``steinnorm.attacks.losses.LOSSES``; for
        ``apgd`` also ``targeted_dlr`` and ``targeted_margin`` (``fgsm``, ``pgd``, ``apgd``).
      queries: forward passes (``square``, ``autoattack``).
      short_reach: whether the steps are knowingly too short to cross the ball, so that no
        ``ShortReachWarning`` is given.

    Raises:
      ValueError: the kind or the loss is unknown, or all restarts would start at the same point.

    Example:
      >>> attack = AttackSettings("pgd-on-the-margin", "pgd", loss="margin")
      >>> attack.steps, attack.random_start
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
            raise ValueError(
                f"unknown kind of attack {self.kind!r}; expected one of {', '.join(KINDS)}"
            )
        if self.loss not in (*losses.LOSSES, *losses.TOWARDS_CLASSES):
            known = ", ".join((*losses.LOSSES, *losses.TOWARDS_CLASSES))
            raise ValueError(f"{self.name}: loss must be one of {known}; got {self.loss!r}")
        if self.loss in losses.TOWARDS_CLASSES and self.kind in _WITH_LOSS and self.kind != "apgd":
            raise ValueError(
                f"{self.name}: {self.loss} is a loss of apgd, which chooses the classes; "
                f"{self.kind} takes one of {', '.join(losses.LOSSES)}"
            )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if (
                hasattr(value, "item") and np.ndim(value) == 0
            ):  # NumPy's numbers cannot be written as JSON
                self._set(field.name, value.item())
        if self.steps is None:
            self._set("steps", _USUAL_STEPS.get(self.kind, 1))
        if self.random_start is None:
            self._set("random_start", self.kind in _WITH_RANDOM_START)
        if self.kind in _WITH_RANDOM_START and self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"{self.name}: {self.restarts} restarts from the same point are identical; set "
                "random_start=True"
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    @property
    def has_ball(self) -> bool:
        """Whether the attack stays in a ball; noises do not."""
        return self.kind not in NOISES

    @property
    def gradient_losses(self) -> tuple[str, ...]:
        """The losses that its gradient steps increase, as names in ``LOSSES``; may be empty.

        Those of AutoAttack and FAB lead to the nearest boundary, as the margin does.
        """
        if self.kind in _WITH_LOSS:
            towards_class = self.loss in losses.TOWARDS_CLASSES
            return ("margin",) if towards_class else (self.loss,)
        return _LOSSES_OF_KINDS.get(self.kind, ())

    def call(
        self, *, batch_dependent: bool, on_progress: Callable[[str], None] | None = None
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """Returns the function that runs this attack, and its keyword arguments.

        Args:
          batch_dependent: whether an example's logits depend on the rest of the batch.
          on_progress: called from time to time with the progress of a long attack, as text.

        Raises:
          ValueError: this is a noise.
        """
        if not self.has_ball:
            raise ValueError(
                f"{self.name} is a noise, not an attack; take its function from NOISES"
            )
        steps, restarts = {"steps": self.steps}, {"restarts": self.restarts}
        pgd_settings = {
            **steps,
            **restarts,
            "step_size": self.step_size,
            "random_start": self.random_start,
        }
        loss = {"loss": self.loss}
        calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
            "fgsm": (fgsm, loss),
            "pgd": (pgd, {**pgd_settings, **loss}),
            "apgd": (apgd, {**steps, **restarts, **loss}),
            "fab": (fab, {**steps, **restarts}),
            "square": (square, {"queries": self.queries}),
            "autoattack": (autoattack, {**steps, "queries": self.queries}),
            "segpgd": (segpgd, pgd_settings),
            "sea": (sea, steps),
        }
        function, settings = calls[self.kind]
        settings = {**settings, "batch_dependent": batch_dependent}
        if self.kind in _WITH_PROGRESS and on_progress is not None:
            settings = {**settings, "on_progress": functools.partial(_report_progress, on_progress)}
        return function, settings


def _report_progress(on_progress: Callable[[str], None], *progress: str | int) -> None:
    """Reports progress as text: [name of an ensemble's member,] completed steps, all steps."""
    *name, done, total = progress
    on_progress(" ".join([*map(str, name), f"{done} of {total}"]))


KINDS = (*NOISES, "fgsm", "pgd", "apgd", "fab", "square", "autoattack", *_PER_PIXEL)
"""The valid values of ``AttackSettings.kind``."""

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
_BY_NAME = {
    **{name: AttackSettings(name, name) for name in NOISES},
    **{attack.name: attack for attack in _ATTACKS},
}


def names() -> tuple[str, ...]:
    """Returns the names of all attacks, the noises first."""
    return tuple(_BY_NAME)


def by_name(name: str) -> AttackSettings:
    """Returns the attack of that name with its usual budget.

    Args:
      name: one of ``names()``.

    Raises:
      ValueError: the name is unknown; the message lists the known ones.

    Example:
      >>> from steinnorm.attacks.catalogue import by_name
      >>> by_name("pgd").steps
      20
    """
    if name not in _BY_NAME:
        raise ValueError(f"unknown attack {name!r}; expected one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def check_fits(attack: AttackSettings, classes: int, label_axes: int) -> None:
    """Refuses an attack that does not support the labels, or whose loss does not.

    Args:
      attack: the attack.
      classes: number of classes, K; a single logit counts as two classes.
      label_axes: 0 for one label per example, 2 for label maps.

    Raises:
      ValueError: it does not fit; the message says what to use instead.
    """
    if label_axes and attack.kind in _PER_EXAMPLE:
        raise ValueError(
            f"{attack.name} is for one label per example; for label maps use {_FOR_MAPS}"
        )
    if not label_axes and attack.kind in _PER_PIXEL:
        raise ValueError(
            f"{attack.name} is for a label per pixel; for one per example use pgd, apgd "
            "or autoattack"
        )
    if attack.kind not in _WITH_LOSS:
        return
    targeted = attack.loss.startswith(_TARGETED)
    if targeted and label_axes:
        raise ValueError(
            f"{attack.name} is targeted, which is for one label per example; for label maps "
            "use apgd"
        )
    try:
        loss = attack.loss.removeprefix(_TARGETED)
        losses.check_loss(loss, max(classes, 2), label_axes, targeted=targeted)
    except ValueError as error:
        raise ValueError(f"{attack.name}: {error}") from error
