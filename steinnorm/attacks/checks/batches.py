"""Whether there is such a thing as the model's answer for one example."""

from steinnorm.attacks.checks.findings import Finding, judged, not_applicable
from steinnorm.attacks.checks.runs import Runs
from steinnorm.attacks.dependence import ROUNDING


def independent_of_the_batch(runs: Runs) -> Finding:
    """Checks that no example's answer changes with its companions.

    Changes of logits decide, not of predictions: where two logits are level, rounding is enough to
    change a prediction (one pixel in a million will be), and where none is, a model may depend on
    the batch all the same.
    """
    name, found = "batch_dependence", runs.dependence
    if found is None:
        return not_applicable(name, "a batch of one has no companions")
    changes = {
        "alone": found.alone,
        "in another order": found.shuffled,
        "with other companions": found.companions,
    }
    counts = ", ".join(f"{change.images} {how}" for how, change in changes.items())
    moved = max(change.logit for change in changes.values())
    detail = (
        f"examples with a changed prediction, of {found.images}: {counts}; logits move by up to "
        f"{moved:.2g} of their spread, gradients go to the companions by a share of up to "
        f"{max(found.gradient_shares):.2g}; at most {ROUNDING:g} allowed for rounding"
    )
    most = max(change.images for change in changes.values())
    return judged(name, not found.found, most, detail)
