"""Signs that an attack was too weak to say anything (after Carlini et al. 2019, arXiv 1902.06705).

None of them proves robustness; each of them, where it fires, disproves a table.
"""

from collections.abc import Sequence

from experiments.record import Row

_TOLERANCE = 0.02  # of accuracy: a few images, which chance may move either way
_MASKED_SHARE = 0.1


def warnings_for(rows: Sequence[Row]) -> list[str]:
    """What looks wrong in the rows of one or many runs, in words; empty if nothing does."""
    found = []
    by_cell = {(r.norm, r.statistics, r.seed, r.attack, r.epsilon): r for r in rows}
    for row in rows:
        where = f"{row.norm}, {row.statistics} statistics, seed {row.seed}"
        at = f"{row.attack} at {row.epsilon:.3g}"
        single = by_cell.get((row.norm, row.statistics, row.seed, "fgsm", row.epsilon))
        if row.attack == "pgd" and single and row.value > single.value + _TOLERANCE:
            gap = 100 * (row.value - single.value)
            found.append(f"{where}: {at} leaves {gap:.1f} points more than one step of FGSM")
        weaker = [
            r
            for r in rows
            if (r.norm, r.statistics, r.seed, r.attack)
            == (row.norm, row.statistics, row.seed, row.attack)
            and r.epsilon < row.epsilon
        ]
        if weaker and row.value > min(r.value for r in weaker) + _TOLERANCE:
            found.append(f"{where}: {at} leaves more than a smaller radius of the same attack")
        if row.zero_gradients > _MASKED_SHARE * row.n:
            share = 100 * row.zero_gradients / row.n
            found.append(f"{where}: {at} met a zero gradient in {share:.0f} % of the images")
    return found
