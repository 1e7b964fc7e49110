"""Signs that an attack was too weak: stronger settings must not do worse, nor matter at the end.

The list is that of Carlini et al. 2019 (arXiv 1902.06705, sections 4 and 5).  "Accuracy" is the
share of the known labels of the attacked batch that are still right.
"""

from steinnorm.attacks.checks.findings import (
    Finding,
    at_most,
    below,
    judged,
    not_applicable,
    percent,
    points,
)
from steinnorm.attacks.checks.runs import Runs
from steinnorm.attacks.intervals import wilson_interval


def iterative_not_weaker(runs: Runs) -> Finding:
    """PGD leaves no more than FGSM does."""
    steps, limit = runs.config.steps, runs.config.tolerance
    many, single = runs.pgd(steps).accuracy, runs.fgsm().accuracy
    excess = many - single
    detail = (
        f"PGD-{steps} leaves {percent(many)}, FGSM {percent(single)}: {points(excess)}, at most "
        f"{points(limit)} allowed; {runs.size}"
    )
    return judged("iterative_not_weaker", at_most(excess, limit), excess, detail)


def larger_radius_not_weaker(runs: Runs) -> Finding:
    """A larger ball leaves no more than a smaller one."""
    steps, limit = runs.config.steps, runs.config.tolerance
    half, whole, double = (runs.pgd(steps, radius=r).accuracy for r in (0.5, 1.0, 2.0))
    excess = max(whole - half, double - whole)
    detail = (
        f"PGD-{steps} leaves {percent(half)}, {percent(whole)} and {percent(double)} at half, "
        f"once and twice the radius {runs.config.epsilon:.4g}: {points(excess)} at worst, at most "
        f"{points(limit)} allowed; {runs.size}"
    )
    return judged("larger_radius_not_weaker", at_most(excess, limit), excess, detail)


def huge_radius_reaches_chance(runs: Runs) -> Finding:
    """A ball that holds the whole box leaves no more than guessing would find."""
    found = runs.pgd(runs.config.steps, radius=runs.widest)
    low, high = wilson_interval(found.right)
    chance = 1 / runs.problem.classes
    detail = (
        f"PGD-{runs.config.steps} leaves {percent(found.accuracy)} (95 % interval {percent(low)} "
        f"to {percent(high)}) at the radius {runs.widest * runs.config.epsilon:.4g}, which holds "
        f"every input; the interval must reach down to chance, {percent(chance)}; {runs.size}"
    )
    return judged("huge_radius_reaches_chance", low <= chance, found.accuracy, detail)


def twice_the_steps(runs: Runs) -> Finding:
    """The attack has converged."""
    steps, limit = runs.config.steps, runs.config.tolerance
    once, twice = runs.pgd(steps).accuracy, runs.pgd(2 * steps).accuracy
    change = abs(twice - once)
    detail = (
        f"PGD-{steps} leaves {percent(once)}, PGD-{2 * steps} {percent(twice)}: "
        f"{points(twice - once)}, less than {100 * limit:.1f} in size allowed; {runs.size}"
    )
    return judged("twice_the_steps", below(change, limit), change, detail)


def more_restarts(runs: Runs) -> Finding:
    """The attack does not hang on where it starts."""
    steps, restarts, limit = runs.config.steps, runs.config.restarts, runs.config.tolerance
    if restarts < 2:
        return not_applicable("more_restarts", "only one restart is configured")
    once, often = runs.pgd(steps).accuracy, runs.pgd(steps, restarts=restarts).accuracy
    change = abs(often - once)
    detail = (
        f"PGD-{steps} leaves {percent(once)} with one start, {percent(often)} with {restarts}: "
        f"{points(often - once)}, less than {100 * limit:.1f} in size allowed; {runs.size}"
    )
    return judged("more_restarts", below(change, limit), change, detail)


def square_not_stronger(runs: Runs) -> Finding:
    """An attack without gradients finds no more than those that have them."""
    name, queries = "square_not_stronger", runs.config.square_queries
    if queries < 1:
        return not_applicable(name, "no queries are configured")
    found, limit = runs.square(), runs.config.tolerance
    seen = runs.white_box()
    best = min(outcome.accuracy for outcome in seen)
    only = found.broken
    for outcome in seen:
        only = only & ~outcome.broken
    labels = "pixels" if runs.problem.label_axes else "examples"
    lead = best - found.accuracy
    detail = (
        f"Square with {queries} queries leaves {percent(found.accuracy)}, the best attack with "
        f"gradients {percent(best)}: ahead by {points(lead)}, at most {points(limit)} allowed; "
        f"{only.sum()} {labels} broken by Square alone; {runs.size}"
    )
    return judged(name, at_most(lead, limit), lead, detail)


def transfer_not_stronger(runs: Runs) -> Finding:
    """Inputs made against a model without the defence do no more than those made against it."""
    name, limit = "transfer_not_stronger", runs.config.tolerance
    if runs.twin.logits_fn is None:
        return not_applicable(name, runs.twin.reason)
    found = runs.transferred(runs.twin.logits_fn).accuracy
    best = min(outcome.accuracy for outcome in runs.white_box())
    lead = best - found
    detail = (
        f"PGD-{runs.config.steps} on the twin leaves {percent(found)} of the target, the best "
        f"attack on the target itself {percent(best)}: ahead by {points(lead)}, at most "
        f"{points(limit)} allowed; {runs.size}"
    )
    return judged(name, at_most(lead, limit), lead, detail)
