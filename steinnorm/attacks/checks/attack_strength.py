"""Signs that an attack was too weak, after Carlini et al. 2019 (arXiv 1902.06705, sections 4, 5).

"Accuracy" is the share of the labels of the attacked batch that are still predicted right, without
void pixels. Two attacks are compared on the same examples and in one direction: a check fails if
the attack that should not be ahead is ahead by significantly more than the tolerance
(``steinnorm.attacks.checks.paired``).
"""

import numpy as np

from steinnorm.attacks.checks.findings import (
    Finding,
    at_most,
    finding_of,
    not_applicable,
    percent,
)
from steinnorm.attacks.checks.paired import CONFIDENCE, BrokenLabels, lead, ratio, student_quantile
from steinnorm.attacks.checks.runs import AttackRuns
from steinnorm.attacks.intervals import Tally, wilson_interval
from steinnorm.attacks.losses import grows_without_end


def iterative_not_weaker(runs: AttackRuns) -> Finding:
    """Checks that FGSM breaks no more than PGD does."""
    steps = runs.settings.steps
    iterative, single = runs.pgd(steps), runs.fgsm()
    text = (
        f"PGD-{steps} leaves {percent(iterative.accuracy)}, FGSM {percent(single.accuracy)}: "
        "FGSM is "
    )
    return _not_ahead("iterative_not_weaker", runs, [single.broken - iterative.broken], text)


def larger_radius_not_weaker(runs: AttackRuns) -> Finding:
    """Checks that an attack in a smaller ball breaks no more than in a larger one around it.

    The worse of two comparisons decides, each at half the error probability (Bonferroni 1936).
    """
    steps = runs.settings.steps
    half, whole, double = (runs.pgd(steps, radius=r) for r in (0.5, 1.0, 2.0))
    gained = [half.broken - whole.broken, whole.broken - double.broken]
    radius = np.array2string(np.asarray(runs.problem.threat.epsilon), precision=4, threshold=4)
    text = (
        f"PGD-{steps} leaves {percent(half.accuracy)}, {percent(whole.accuracy)} and "
        f"{percent(double.accuracy)} at half, once and twice the radius {radius}: "
        "the smaller ball is, at worst, "
    )
    return _not_ahead("larger_radius_not_weaker", runs, gained, text)


def huge_radius_reaches_chance(runs: AttackRuns) -> Finding:
    """Checks that accuracy is no better than chance if the ball contains the whole box.

    If PGD of constant steps is better than that, steps that decrease to zero are tried as well, and
    the better run counts: in the whole box constant steps are so large that labels which one step
    breaks come back in the next. On label maps the second run follows the pixels that are still
    right alone: there an attack can break nearly all pixels, and the cross-entropy may spend its
    steps on those that are wrong already (Gu et al. 2022, arXiv 2207.12391).
    """
    name, steps, widest = "huge_radius_reaches_chance", runs.settings.steps, runs.widest
    if widest is None:
        return not_applicable(
            name, "the threat has no bounds, so that no ball contains every input"
        )
    if runs.problem.label_axes and runs.labelled_examples < 2:
        return not_applicable(name, "pixels of a single image give no interval")
    attacked, how = runs.pgd(steps, radius=widest), ""
    chance = 1 / runs.problem.classes
    if _lower_end(runs, attacked) > chance:
        loss = "masked_cross_entropy" if runs.problem.label_axes else "cross_entropy"
        decreasing = runs.pgd(steps, radius=widest, loss=loss, schedule="cosine")
        if decreasing.accuracy < attacked.accuracy:
            on = " on the pixels still right" if runs.problem.label_axes else ""
            attacked, how = decreasing, f"{on} with decreasing steps"
    low = _lower_end(runs, attacked)
    radius = float(np.max(widest * np.asarray(runs.problem.threat.epsilon)))
    detail = (
        f"PGD-{steps}{how} leaves {percent(attacked.accuracy)} (lower end of the 95 % interval "
        f"{percent(low)}) at the radius {radius:.4g}, which contains every input; the interval "
        f"must reach down to chance, {percent(chance)}; {runs.size}"
    )
    return finding_of(name, low <= chance, attacked.accuracy, detail)


def _lower_end(runs: AttackRuns, attacked: BrokenLabels) -> float:
    """Returns the lower end of the two-sided 95 % interval of the accuracy.

    It is Wilson's for one label per example, and Student's over images for label maps.
    """
    right = attacked.known - attacked.broken
    if not runs.problem.label_axes:
        return wilson_interval(Tally(int(right.sum()), int(attacked.known.sum())))[0]
    labelled = attacked.known > 0
    share, error = ratio(right[labelled], attacked.known[labelled])
    return max(0.0, share - student_quantile(0.975, runs.labelled_examples - 1) * error)


def twice_the_steps(runs: AttackRuns) -> Finding:
    """Checks that the attack has converged: twice the steps break no more.

    If they break less, the reason is chance, or a longer run that moves away from points that were
    adversarial. This is no sign that more could be broken, so it does not fail the check.
    """
    steps = runs.settings.steps
    once, twice = runs.pgd(steps), runs.pgd(2 * steps)
    text = (
        f"PGD-{steps} leaves {percent(once.accuracy)}, PGD-{2 * steps} "
        f"{percent(twice.accuracy)}: the longer is "
    )
    return _not_ahead("twice_the_steps", runs, [twice.broken - once.broken], text)


def more_restarts(runs: AttackRuns) -> Finding:
    """Checks that more random starts break no more.

    The first restart is the single run, so that restarts cannot break less, unless the batch is
    kept as a whole.
    """
    steps, restarts = runs.settings.steps, runs.settings.restarts
    if restarts < 2:
        return not_applicable("more_restarts", "only one restart is configured")
    once, often = runs.pgd(steps), runs.pgd(steps, restarts=restarts)
    text = (
        f"PGD-{steps} leaves {percent(once.accuracy)} with one start, {percent(often.accuracy)} "
        f"with {restarts}: with {restarts} it is "
    )
    gained = [often.broken - once.broken]
    return _not_ahead("more_restarts", runs, gained, text, nested=not runs.joint)


def margin_not_stronger(runs: AttackRuns) -> Finding:
    """Checks that PGD on the margin breaks nothing that attacks on the evaluation's losses miss.

    The cross-entropy can be the wrong loss: it weighs the wrong classes together although a single
    one has to win, and where one gradient sums over many labels, it pushes those that are wrong
    already and the least confident ones.
    """
    name, steps, losses = "margin_not_stronger", runs.settings.steps, runs.settings.losses
    if any(grows_without_end(loss) for loss in losses):
        return not_applicable(
            name, f"the evaluation has attacks on such a loss itself: {', '.join(losses)}"
        )
    attacked = runs.pgd(steps, loss="margin")
    text = f"PGD-{steps} on the margin leaves {percent(attacked.accuracy)}"
    of_which = f"on {', '.join(('cross_entropy', *losses))}"
    return _adds_nothing(name, runs, attacked, text, "PGD on the margin", of_which=of_which)


def square_not_stronger(runs: AttackRuns) -> Finding:
    """Checks that an attack without gradients breaks nothing that attacks with gradients miss."""
    name, queries = "square_not_stronger", runs.settings.square_queries
    if queries < 1:
        return not_applicable(name, "no queries are configured")
    attacked = runs.square()
    text = f"Square with {queries} queries leaves {percent(attacked.accuracy)}"
    return _adds_nothing(name, runs, attacked, text, "Square")


def transfer_not_stronger(runs: AttackRuns) -> Finding:
    """Checks that inputs attacked on a model without the defence (the twin) break nothing more."""
    name = "transfer_not_stronger"
    if runs.twin.logits_fn is None:
        return not_applicable(name, runs.twin.reason)
    if runs.why_no_gradient and runs.settings.square_queries < 1:
        return not_applicable(name, "the model has no gradient, and no queries are configured")
    attacked = runs.transferred(runs.twin.logits_fn)
    steps = runs.settings.steps
    text = f"PGD-{steps} on the twin leaves the attacked model {percent(attacked.accuracy)}"
    return _adds_nothing(name, runs, attacked, text, "PGD on the twin")


def _adds_nothing(
    name: str,
    runs: AttackRuns,
    attacked: BrokenLabels,
    text: str,
    attack_name: str,
    *,
    of_which: str = "",
) -> Finding:
    """Checks that an attack breaks nothing beyond the attacks with the attacked model's gradient.

    For a model without a gradient it is compared with Square.

    Each example is compared with the best gradient attack on it, because a gradient may be masked
    for a few examples only, which the other examples must not compensate. If the batch is attacked
    as a whole, it is compared with the best gradient attack on the batch.

    Args:
      name: name of the check.
      runs: the attacks on the batch.
      attacked: labels that the attack breaks.
      text: beginning of the detail.
      attack_name: name of the attack in it.
      of_which: which attacks it is compared with; by default those with gradients, or Square.
    """
    of_which = of_which or ("without gradients" if runs.why_no_gradient else "with gradients")
    own_attacks = runs.white_box()
    if runs.joint:
        strongest = min(own_attacks, key=lambda outcome: outcome.accuracy)
        gained = attacked.broken - strongest.broken
        text += f", the best attack {of_which} {percent(strongest.accuracy)}, both of the whole "
        return _not_ahead(name, runs, [gained], f"{text}batch: {attack_name} is ")
    together = own_attacks[0]._replace(broken=np.max([each.broken for each in own_attacks], axis=0))
    gained = np.maximum(attacked.broken - together.broken, 0)
    alone = int(np.sum(gained > 0))
    broken = "of which more is broken" if runs.problem.label_axes else "broken"
    text = f"{text}, the attacks {of_which} together {percent(together.accuracy)}; {alone} examples"
    text += f" {broken} by {attack_name} alone: with it the worst case is "
    return _not_ahead(name, runs, [gained], text, nested=True)


def _not_ahead(
    name: str, runs: AttackRuns, gained: list[np.ndarray], text: str, *, nested: bool = False
) -> Finding:
    """Checks that one attack is not ahead of another by significantly more than the tolerance.

    Args:
      name: name of the check.
      runs: the attacks on the batch.
      gained: for each comparison, the number of each example's labels that the first attack breaks,
        minus that of the second attack.
      text: beginning of the detail.
      nested: whether the first attack includes the second, so that it cannot break less.
    """
    if runs.labelled_examples < 2:
        return not_applicable(name, "a single example gives no interval of a difference")
    limit = runs.settings.tolerance
    known = runs.known_labels
    confidence = 1 - (1 - CONFIDENCE) / len(gained)
    leads = [
        lead(each, known, limit=limit, confidence=confidence, nested=nested) for each in gained
    ]
    worst = max(leads, key=lambda comparison: comparison.low)
    detail = f"{text}{worst.words(limit)}; {runs.size}"
    return finding_of(name, at_most(worst.low, limit), worst.value, detail)
