"""Check of whether the model's answer for an example depends on the rest of the batch."""

import numpy as np

from steinnorm.attacks.checks.findings import Finding, finding_of, not_applicable
from steinnorm.attacks.checks.runs import AttackRuns
from steinnorm.attacks.dependence import ROUNDING


def independent_of_the_batch(runs: AttackRuns) -> Finding:
    """Checks that no example's logits change with its companions.

    Changes of logits decide, not of predictions: rounding can change a prediction if two logits are
    nearly equal, and a model may depend on the batch without any changed prediction.
    """
    name, dependence = "batch_dependence", runs.dependence
    if dependence is None:
        return not_applicable(name, "a batch of one has no companions")
    changes = {
        "alone": dependence.alone,
        "in another order": dependence.shuffled,
        "with other companions": dependence.companions,
    }
    counts = ", ".join(f"{change.images} {condition}" for condition, change in changes.items())
    moved = float(np.max([change.logit for change in changes.values()]))
    how_far = f"up to {moved:.2g} of their spread"
    if not np.isfinite(moved):
        how_far = "NaN or infinite numbers"
    shares = dependence.gradient_shares
    to_companions = (
        f"gradients go to the companions by a share of up to {max(shares):.2g}"
        if shares
        else "the model has no gradient that could go to the companions"
    )
    detail = (
        f"examples with a changed prediction, of {dependence.images}: {counts}; logits change by "
        f"{how_far}, {to_companions}; at most {ROUNDING:g} allowed for rounding"
    )
    most = max(change.images for change in changes.values())
    return finding_of(name, not dependence.found, most, detail)
