"""Draws the figures of a report: scores against radii and steps, shrinkage, pictures."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from statistics import fmean

from experiments.evaluation import per_example
from experiments.report import pictures, plots
from experiments.report.document import Figure
from experiments.report.entries import Entry, tabled
from experiments.report.folders import Experiment
from experiments.report.labels import REFERENCE, SOURCE_NAMES, Column
from experiments.report.measures import measure
from experiments.results import CLEAN, CONVERGENCE, WORST
from steinnorm.attacks.checks.radius import radius_with_room


def draw_all(
    prefix: str, experiment: Experiment, entries: Sequence[Entry]
) -> Iterator[tuple[Figure, bytes]]:
    """Yields every figure of one experiment, with its PNG bytes.

    Args:
      prefix: of the files' names.
      experiment: what was measured.
      entries: of its rows.
    """
    yield from _plots(prefix, experiment, entries)
    if _is_shrunk(experiment):
        caption = (
            "Shrinkage factors of each layer over training, means over epochs and seeds: 1 leaves "
            "the batch's statistic as it is, 0 replaces it by the rule's target."
        )
        yield Figure(f"{prefix}shrinkage.png", caption), plots.shrinkage(experiment.histories)
    yield from _pictures(prefix, experiment, entries)


def _is_shrunk(experiment: Experiment) -> bool:
    """Returns whether a layer of any run changed its batch's statistics."""
    return any(
        value != 1.0
        for _, steps in experiment.histories
        for step in steps
        for factors in step.factors.values()
        for value in factors.values()
    )


def file_name(text: str) -> str:
    """Returns a name without what has a meaning in paths: ``pgd 8/255`` becomes ``pgd-8-255``."""
    return re.sub(r"[^\w.]+", "-", text)


def _plots(
    prefix: str, experiment: Experiment, entries: Sequence[Entry]
) -> Iterator[tuple[Figure, bytes]]:
    for metric in experiment.metrics:
        title = measure(metric).heading
        shown = tabled(entries, metric)
        for order in sorted({s.norm_order for s in shown} - {""}, reverse=True):
            attack = plots.strongest(shown, order)
            which = "the worst of all attacks" if attack == WORST else attack
            caption = f"{title} against the radius of the {order} ball, under {which}."
            name = f"{prefix}{metric}-{order}.png"
            yield Figure(name, caption), plots.accuracy(shown, metric, order)
            if experiment.controls:
                yield _against_clean(prefix, experiment, shown, Column(attack or "", 0.0, order))
    curves = [s for s in entries if s.attack == CONVERGENCE]
    for metric in dict.fromkeys(s.metric for s in curves):
        caption = (
            f"{measure(metric).heading} against the number of PGD's steps, on the "
            "examples of the checks. A curve that still falls has not converged."
        )
        name = f"{prefix}{metric}-steps.png"
        yield Figure(name, caption), plots.convergence(curves, metric)


def _against_clean(
    prefix: str, experiment: Experiment, entries: Sequence[Entry], attack: Column
) -> tuple[Figure, bytes]:
    """Draws scores under an attack against clean ones, at one of the attack's radii."""
    under = [s for s in entries if s.column._replace(epsilon=0.0) == attack]
    middle = attack._replace(epsilon=_radius(entries, under))
    chosen = [s for s in under if s.column == middle]
    metric = chosen[0].metric
    caption = (
        f"{measure(metric).heading} under {middle.name} against that on clean examples: points are "
        "runs, large ones a norm's mean. The line is that of batch norm, controls included: a norm "
        "above it keeps more than batch norm would at the same clean score."
    )
    drawn = plots.against_clean(chosen, experiment.runs, experiment.controls)
    return Figure(f"{prefix}{metric}-{attack.norm_order}-against-clean.png", caption), drawn


def _radius(entries: Sequence[Entry], under: Sequence[Entry]) -> float:
    """Returns the radius at which batch norm has lost nearest to half its clean score.

    Where nearly all or nearly nothing is lost, norms could not differ.  It is the middle one where
    batch norm was not measured both clean and attacked.
    """
    reference = [s for s in entries if s.norm == REFERENCE]
    clean = {s.statistics: s.mean for s in reference if s.attack == CLEAN}
    scores: dict[float, list[float]] = {}
    for entry in under:
        if entry.norm == REFERENCE and entry.statistics in clean:
            scores.setdefault(entry.epsilon, []).append(entry.mean / clean[entry.statistics])
    if not scores:
        radii = sorted({s.epsilon for s in under})
        return radii[(len(radii) - 1) // 2]
    return radius_with_room({radius: fmean(left) for radius, left in scores.items()}, 1.0)


def _pictures(
    prefix: str, experiment: Experiment, entries: Sequence[Entry]
) -> Iterator[tuple[Figure, bytes]]:
    """Yields the first examples of each norm's first seed, under the same attack for all."""
    chosen = _pictured(tabled(entries, experiment.metrics[0]))
    first_seed: dict[str, int] = {}
    for norm, seed in sorted(experiment.places):
        first_seed.setdefault(norm, seed)
    for row in experiment.rows:
        column = Column(row.attack, row.epsilon, row.norm_order)
        if (
            column not in chosen
            or row.metric != experiment.metrics[0]
            or row.seed != first_seed[row.norm]
            or row.threat_model not in ("", "joint")
        ):
            continue
        place = experiment.places[row.norm, row.seed]
        attacked = per_example.load(place, row.key)
        if attacked is None or not len(attacked.shown.get("y", ())):
            continue
        clean_key = dataclasses.replace(row.key, attack=CLEAN, epsilon=0.0, norm_order="")
        clean = per_example.load(place, clean_key)
        name = f"{prefix}pictures/{row.norm}-{row.statistics}-{file_name(column.name)}"
        of = f"norm {row.norm}, {SOURCE_NAMES[row.statistics]} statistics, {column.name}"
        caption = f"Test examples, those that were right first: {of}, seed {row.seed}."
        yield Figure(f"{name}.png", caption), pictures.grid(attacked, clean)
        if pictures.is_segmentation(attacked):
            caption = f"Classes of the first test images, {of}, seed {row.seed}."
            yield Figure(f"{name}-classes.png", caption), pictures.segmentation(attacked, clean)


def _pictured(entries: Sequence[Entry]) -> list[Column]:
    """Returns the strongest single attack of each kind of ball, at the middle of its radii."""
    alone = [s for s in entries if s.attack != WORST]
    found = []
    for order in sorted({s.norm_order for s in alone} - {""}):
        attack = plots.strongest(alone, order)
        radii = sorted({s.epsilon for s in alone if (s.attack, s.norm_order) == (attack, order)})
        if attack is not None:
            found.append(Column(attack, radii[(len(radii) - 1) // 2], order))
    return found
