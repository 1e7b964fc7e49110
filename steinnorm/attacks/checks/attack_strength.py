"""Signs that an attack was too weak: stronger settings must not do worse, nor matter at the end.

The list is that of Carlini et al. 2019 (arXiv 1902.06705, sections 4 and 5).  "Accuracy" is the
share of the known labels of the attacked batch that are still right.  Two attacks are compared on
the same examples and in one direction only: a check fails where the attack that must not be ahead
is ahead by significantly more than the tolerance (``steinnorm.attacks.checks.paired``).
"""

import numpy as np

from steinnorm.attacks.checks.findings import (
    Finding,
    at_most,
    judged,
    not_applicable,
    percent,
)
from steinnorm.attacks.checks.paired import CONFIDENCE, Broken, lead, ratio, student_quantile
from steinnorm.attacks.checks.runs import Runs
from steinnorm.attacks.intervals import Tally, wilson_interval


def iterative_not_weaker(runs: Runs) -> Finding:
    """Checks that FGSM breaks no more than PGD does."""
    steps = runs.settings.steps
    many, single = runs.pgd(steps), runs.fgsm()
    said = f"PGD-{steps} leaves {percent(many.accuracy)}, FGSM {percent(single.accuracy)}: FGSM is "
    return _not_ahead("iterative_not_weaker", runs, [single.broken - many.broken], said)


def larger_radius_not_weaker(runs: Runs) -> Finding:
    """Checks that a smaller ball breaks no more than a larger one, which holds it.

    The worse of two comparisons decides, each at half of the error (Bonferroni 1936).
    """
    steps = runs.settings.steps
    half, whole, double = (runs.pgd(steps, radius=r) for r in (0.5, 1.0, 2.0))
    gained = [half.broken - whole.broken, whole.broken - double.broken]
    radius = np.array2string(np.asarray(runs.problem.threat.epsilon), precision=4, threshold=4)
    said = (
        f"PGD-{steps} leaves {percent(half.accuracy)}, {percent(whole.accuracy)} and "
        f"{percent(double.accuracy)} at half, once and twice the radius {radius}: "
        "the smaller ball is, at worst, "
    )
    return _not_ahead("larger_radius_not_weaker", runs, gained, said)


def huge_radius_reaches_chance(runs: Runs) -> Finding:
    """Checks that a ball that holds the whole box leaves no more than guessing would find."""
    name, steps, widest = "huge_radius_reaches_chance", runs.settings.steps, runs.widest
    if widest is None:
        return not_applicable(name, "the threat has no bounds, so that no ball holds every input")
    found = runs.pgd(steps, radius=widest)
    if runs.problem.label_axes and runs.labelled < 2:
        return not_applicable(name, "pixels of a single image give no interval")
    low = _lower_end(runs, found)
    chance = 1 / runs.problem.classes
    radius = float(np.max(widest * np.asarray(runs.problem.threat.epsilon)))
    detail = (
        f"PGD-{steps} leaves {percent(found.accuracy)} (lower end of the 95 % interval "
        f"{percent(low)}) at the radius {radius:.4g}, which holds every input; the interval must "
        f"reach down to chance, {percent(chance)}; {runs.size}"
    )
    return judged(name, low <= chance, found.accuracy, detail)


def _lower_end(runs: Runs, found: Broken) -> float:
    """Returns the lower end of the two-sided 95 % interval of the accuracy."""
    right = found.known - found.broken
    if not runs.problem.label_axes:
        return wilson_interval(Tally(int(right.sum()), int(found.known.sum())))[0]
    there = found.known > 0
    share, error = ratio(right[there], found.known[there])
    return max(0.0, share - student_quantile(0.975, runs.labelled - 1) * error)


def twice_the_steps(runs: Runs) -> Finding:
    """Checks that the attack has converged: twice the steps break no more.

    Where they break less, chance is the reason, or an attack that walks away from what it had
    found; a longer attack that is kept would not show that, and it is no sign of more to find.
    """
    steps = runs.settings.steps
    once, twice = runs.pgd(steps), runs.pgd(2 * steps)
    said = (
        f"PGD-{steps} leaves {percent(once.accuracy)}, PGD-{2 * steps} "
        f"{percent(twice.accuracy)}: the longer is "
    )
    return _not_ahead("twice_the_steps", runs, [twice.broken - once.broken], said)


def more_restarts(runs: Runs) -> Finding:
    """Checks that what the attack finds does not depend on where it starts.

    The first of the restarts is the single one, so that, unless the batch is kept as a whole, they
    cannot break less.
    """
    steps, restarts = runs.settings.steps, runs.settings.restarts
    if restarts < 2:
        return not_applicable("more_restarts", "only one restart is configured")
    once, often = runs.pgd(steps), runs.pgd(steps, restarts=restarts)
    said = (
        f"PGD-{steps} leaves {percent(once.accuracy)} with one start, {percent(often.accuracy)} "
        f"with {restarts}: with {restarts} it is "
    )
    gained = [often.broken - once.broken]
    return _not_ahead("more_restarts", runs, gained, said, nested=not runs.joint)


def square_not_stronger(runs: Runs) -> Finding:
    """Checks that an attack without gradients finds nothing that those with gradients miss."""
    name, queries = "square_not_stronger", runs.settings.square_queries
    if queries < 1:
        return not_applicable(name, "no queries are configured")
    found = runs.square()
    said = f"Square with {queries} queries leaves {percent(found.accuracy)}"
    return _nothing_more(name, runs, found, said, "Square")


def transfer_not_stronger(runs: Runs) -> Finding:
    """Checks that inputs made against a model without the defence find nothing more."""
    name = "transfer_not_stronger"
    if runs.twin.logits_fn is None:
        return not_applicable(name, runs.twin.reason)
    found = runs.transferred(runs.twin.logits_fn)
    said = f"PGD-{runs.settings.steps} on the twin leaves {percent(found.accuracy)} of the target"
    return _nothing_more(name, runs, found, said, "PGD on the twin")


def _nothing_more(name: str, runs: Runs, found: Broken, said: str, what: str) -> Finding:
    """Checks what an attack adds to all attacks that see the target's gradient.

    Example by example, against the best of them there: a gradient may be masked for a few examples
    only, and what is lost on the others does not make up for it.  Where the batch is attacked as a
    whole there is no such choice, and it is compared with the best attack of the batch.
    """
    seen = runs.white_box()
    best = min(outcome.accuracy for outcome in seen)
    said = f"{said}, the best attack with gradients {percent(best)}"
    if runs.joint:
        strongest = next(outcome for outcome in seen if outcome.accuracy == best)
        gained = found.broken - strongest.broken
        return _not_ahead(name, runs, [gained], f"{said}, both of the whole batch: {what} is ")
    of_each = np.max([outcome.broken for outcome in seen], axis=0)
    gained = np.maximum(found.broken - of_each, 0)
    alone = int(np.sum(gained > 0))
    how = "of which more is broken" if runs.problem.label_axes else "broken"
    said = f"{said}; {alone} examples {how} by {what} alone: with it the worst of all is "
    return _not_ahead(name, runs, [gained], said, nested=True)


def _not_ahead(
    name: str, runs: Runs, gained: list[np.ndarray], said: str, *, nested: bool = False
) -> Finding:
    """Fails where one attack is ahead of another by significantly more than the tolerance.

    Args:
      name: of the check.
      runs: the batch.
      gained: for each comparison, what the one breaks of each example less what the other does.
      said: what the detail says first.
      nested: whether the one attack holds the other, so that it cannot break less.
    """
    if runs.labelled < 2:
        return not_applicable(name, "a single example gives no interval of a difference")
    limit = runs.settings.tolerance
    known = runs.fgsm().known
    confidence = 1 - (1 - CONFIDENCE) / len(gained)
    leads = [
        lead(each, known, limit=limit, confidence=confidence, nested=nested) for each in gained
    ]
    worst = max(leads, key=lambda found: found.low)
    detail = f"{said}{worst.words(limit)}; {runs.size}"
    return judged(name, at_most(worst.low, limit), worst.value, detail)
