"""What the command ``evaluate`` is asked for: its flags, and the plans that they make."""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

from experiments.configs import attacks as catalogue
from experiments.configs.overrides import changed_evaluation
from experiments.configs.schema import AttackConfig, EvaluationConfig, Statistics
from experiments.errors import ConfigError
from experiments.evaluation.attack_batch import DEPENDENT, ThreatModel
from experiments.evaluation.plan import Plan, batch_size_of
from experiments.models.norms import sources
from steinnorm.attacks import Threat


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for; lists are separated by commas.

    Attributes:
      statistics: sources of statistics; empty for the configuration's.
      attacks: the configuration's or the catalogue's (``experiments.configs.attacks``), ``all``
        for all of the configuration's; empty for none.
      epsilons: strengths, as ``2/255,8/255``; empty for the attack's own.
      threat_models: for statistics of the test batch, names of ``ThreatModel``.
      victims: examples for the threat models that attack one at a time.
      test_examples: the first of the test part only; None is all.
      batch_size: None is the configuration's.
      independent_batch_size: where no example depends on its batch; None is the configuration's.
      steps: of all attacks that take steps; None is each one's own.
      queries: of those that count queries; None is each one's own.
      weights: ``best`` (by validation) or ``last``.
      twin: work folder of the same training with plain batch norm, for the transfer check.
      check_examples: examples that the checks run on; None is the configuration's, 0 for no
        checks.
      changes: settings of the evaluation instead of the configuration's, as
        ``evaluation.checks.steps=40``; the other fields here come after.
    """

    statistics: str = ""
    attacks: str = ""
    epsilons: str = ""
    threat_models: str = "joint"
    victims: int = 32
    test_examples: int | None = None
    batch_size: int | None = None
    steps: int | None = None
    queries: int | None = None
    weights: str = "best"
    twin: Path | None = None
    check_examples: int | None = None
    independent_batch_size: int | None = None
    changes: tuple[str, ...] = ()


AS_CONFIGURED = Request()
"""Without flags: clean scores, with the sources of statistics that the configuration names."""


def settings_for(known: EvaluationConfig, request: Request) -> EvaluationConfig:
    """Returns the configuration with what the command line changes in it.

    Raises:
      ConfigError: a name that is not known, a number out of range, a setting of the training.
    """
    known = changed_evaluation(known, request.changes)
    sizes: dict[str, Any] = {}
    if request.batch_size is not None:
        sizes["independent_batch_size"] = None  # unless it is asked for, the same for all
    for field in ("batch_size", "independent_batch_size"):
        size = getattr(request, field)
        if size is not None and size < 1:
            raise ConfigError(f"--{field.replace('_', '-')} must be at least 1; got {size}")
        if size is not None:
            sizes[field] = size
    if request.victims < 1:
        raise ConfigError(f"--victims must be at least 1; got {request.victims}")
    return dataclasses.replace(
        known,
        **sizes,
        attacks=tuple(_attacks(known.attacks, request)),
        statistics=_statistics(request.statistics) or known.statistics,
    )


def plans_for(evaluation: EvaluationConfig, norm: str, request: Request) -> list[Plan]:
    """Returns one for each source of statistics and, where it matters, threat model."""
    known = get_args(ThreatModel)
    wanted = [name.strip() for name in request.threat_models.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"unknown threat model {name!r}; expected some of {', '.join(known)}")
    models: list[ThreatModel] = [name for name in known if name in wanted]
    if not models:
        raise ConfigError(f"no threat model was named; expected some of {', '.join(known)}")
    plans = []
    for source in sources(norm, evaluation.statistics):
        single: list[ThreatModel] = ["joint"]
        chosen = models if source in DEPENDENT and evaluation.attacks else single
        refused = [attack.name for attack in evaluation.attacks if attack.kind == "fab"]
        if source in DEPENDENT and refused:
            raise ConfigError(
                f"{', '.join(refused)} keeps a smallest distance per example, which says nothing "
                f"with {source} statistics: name --statistics running, or other attacks"
            )
        for threat_model in chosen:
            # Noise has no attacker: once is enough.
            attacks = [a for a in evaluation.attacks if threat_model == "joint" or a.has_ball]
            plans.append(
                Plan(
                    statistics=source,
                    batch_size=batch_size_of(evaluation, source),
                    attacks=attacks,
                    threat_model=threat_model,
                    victims=request.victims,
                )
            )
    return plans


def _attacks(known: Sequence[AttackConfig], request: Request) -> list[AttackConfig]:
    by_attack = {attack.name: attack for attack in known}
    names: list[str] = []
    for name in filter(None, map(str.strip, request.attacks.split(","))):
        names += by_attack if name == "all" else [name]
    radii = tuple(_epsilon(text) for text in request.epsilons.split(",") if text)
    changes: dict[str, int] = {}
    for field in ("steps", "queries"):
        value = getattr(request, field)
        if value is not None and value < 1:
            raise ConfigError(f"--{field} must be at least 1; got {value}")
        if value is not None:
            changes[field] = value
    found = []
    for name in dict.fromkeys(names):
        attack = by_attack.get(name) or catalogue.by_name(name)
        if attack.kind == "fgsm":
            changed = {k: v for k, v in changes.items() if k != "steps"}
        else:
            changed = changes
        found.append(
            dataclasses.replace(attack, epsilons=radii or attack.epsilons, **changed)  # type: ignore[arg-type]
        )
    for attack in found:
        _check_radii(attack)
    return found


def _check_radii(attack: AttackConfig) -> None:
    try:
        for epsilon in attack.epsilons:
            Threat(attack.norm, epsilon)
    except ValueError as error:  # float32 has no such radius
        raise ConfigError(f"{attack.name}: {error}") from error


def _epsilon(text: str) -> float:
    number, _, divisor = text.partition("/")
    try:
        # Not as one fraction: that of 1e9999999 would fill the memory.
        value = float(Fraction(int(number), int(divisor)) if divisor else float(text))
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(f"a strength is a number such as 0.03 or 8/255; got {text!r}") from error
    if not math.isfinite(value):
        raise ConfigError(f"a strength must be finite; got {text!r}")
    if value < 0:
        raise ConfigError(f"a strength must not be negative; got {text!r}")
    return value


def _statistics(text: str) -> tuple[Statistics, ...]:
    known = [name for name in get_args(Statistics) if name != "none"]
    wanted = [name.strip() for name in text.split(",") if name]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"unknown statistics {name!r}; expected some of {', '.join(known)}")
    return tuple(wanted)  # type: ignore[arg-type]
