"""The Markdown document of a measurement on shifted test data, and its rows as JSON."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from experiments.data.corruptions import CORRUPTIONS
from experiments.evaluation.shift.plan import TUNE, Plan
from experiments.evaluation.shift.rules import BATCH, MIXED, RECALIBRATED, RUNNING
from experiments.report.shift import tables
from experiments.report.shift.scores import (
    RESAMPLES,
    Scores,
    estimate,
    is_clean,
    is_held_out,
    is_tuned,
)

_EXPLAINED = {
    RUNNING: "the statistics stored in training; does not depend on the batch",
    RECALIBRATED: "those of un-augmented training examples, taken again after the training "
    "(PreciseBN, Wu & Johnson 2021, arXiv 2105.07576); does not depend on the batch",
    BATCH: "those of the test batch, by the norm's own shrinkage where it has one",
    MIXED: "N/(N+n) of these and n/(N+n) of the running ones, N examples per batch "
    "(Schneider et al. 2020, arXiv 2006.16971), with the best n of a list",
    "shrunk": "these, shrunk towards the running ones by their measured noise",
    "calibrated": "the test batch's own, judged by one pass over the un-augmented training inputs "
    "(`steinnorm.nnx.calibrate`)",
    "calibrated_streams": "the same where the examples of a batch may be alike",
}
SORTED = {
    "miou": "Neighbouring frames share a batch, as in a video.",
    "accuracy": "All examples of a batch are of one class, as in a sorted folder.",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """What is reported of one network, or of the mean over several.

    Attributes:
      label: heading.
      about: one line: which training, which n.
      mixed: scores in mixed batches.
      ordered: scores in sorted batches, where there are any.
      networks: how many are behind it.
      drawn: whether it is in the plot; a network whose mean with others is there is not.
    """

    label: str
    about: str
    mixed: Scores
    ordered: Scores | None
    networks: int = 1
    drawn: bool = True


@dataclasses.dataclass(frozen=True)
class Facts:
    """What stands beside the numbers of one data set.

    Attributes:
      data: name of the data set.
      score: ``accuracy`` or ``miou``.
      plan: what was measured.
      shape: of an example.
    """

    data: str
    score: str
    plan: Plan
    shape: Sequence[int]


def document(
    command: str,
    machine: str,
    sections: Sequence[tuple[Facts, Sequence[Part], str]],
) -> str:
    """Returns the whole document.

    Args:
      command: as it was typed.
      machine: devices, CPU, versions and commit, in words.
      sections: for each data set its facts, its parts and the name of its plot's file.
    """
    parts = ["# Shifted test data", f"```\n{command}\n```", machine]
    for facts, found, plot in sections:
        parts += _facts(facts, found, plot)
        for part in found:
            parts += _part(facts, part)
    return "\n\n".join(parts) + "\n"


def _facts(facts: Facts, parts: Sequence[Part], plot: str) -> Iterator[str]:
    plan = facts.plan
    yield f"## {facts.data}"
    shape = "x".join(str(n) for n in facts.shape)
    yield (
        f"The first {plan.test_examples} test examples of {shape}, clean and under "
        f"{len(plan.corruptions)} corruptions at severities "
        f"{', '.join(str(s) for s in plan.severities)}: {len(plan.conditions)} conditions that "
        f"count alike. The score is {_score(facts)}. Seed {plan.seed} (corruptions, bootstrap). "
        f"Intervals hold 95 % of {RESAMPLES} bootstrap resamples of the test examples, the same "
        "for all cells, so differences are paired. They are the chance of drawing these examples, "
        "not of training another network."
    )
    rules = parts[0].mixed.rules
    yield "\n".join(f"- **{rule}**: {_EXPLAINED[rule]}." for rule in rules)
    yield (
        f"**What was tuned.** n is the one of {', '.join(str(n) for n in plan.strengths)} with "
        f"the best mean score over all batch sizes on clean examples and the corruptions marked "
        f"*tune* at severity {plan.middle}, for each network, on these test examples: an "
        "advantage that nobody has in use. The other rules have nothing to choose here, but the "
        "calibrated ones were designed on corruptions of the kinds marked *tune*. Tables of the "
        "others alone stand beside those of all."
    )
    rows = []
    for name in plan.corruptions:
        kind = CORRUPTIONS[name]
        strengths = ", ".join(f"{kind.strengths[s - 1]:g}" for s in plan.severities)
        use = "tune" if name in TUNE else "other"
        rows.append([name.replace("_", " "), use, strengths, kind.unit])
    yield tables.markdown(["corruption", "use", "strengths", "unit"], rows, words=4)
    yield f"![Mean {_score(facts)} of every rule against the batch size]({plot})"


def _part(facts: Facts, part: Part) -> Iterator[str]:
    mixed, kinds = part.mixed, {c.corruption for c in part.mixed.conditions}
    score = _score(facts)
    yield f"### {part.label}"
    yield part.about
    if part.networks > 1:
        yield (
            f"Mean over {part.networks} networks. **Caution:** the intervals are over test "
            f"examples for these {part.networks} networks; other trainings may differ by more."
        )
    yield f"Mean {score} over all {len(mixed.conditions)} conditions, in %:"
    yield tables.mean_scores(mixed)
    held_out = [c for c in mixed.conditions if is_held_out(c)]
    if held_out and len(kinds) > 2:
        yield f"The same over the {len(held_out)} conditions of corruptions that are not *tune*:"
        yield tables.mean_scores(mixed, is_held_out)
        tuned = [c for c in mixed.conditions if is_tuned(c)]
        yield f"And over the {len(tuned)} of those that are:"
        yield tables.mean_scores(mixed, is_tuned)
    yield "Clean examples:"
    yield tables.clean_scores(mixed)
    yield (
        "The worst condition: how many points a rule is above (+) or below (-) the better of "
        "running and batch, where that is lowest; and in how many conditions and batch sizes it "
        f"is more than 1 point below. One of {mixed.examples} examples is "
        f"{100 / mixed.examples:.2g} points, and the lowest of many cells is low by chance too:"
    )
    yield tables.worst_leads(mixed)
    yield "Paired differences of the mean over all conditions, in points, with 95 % intervals:"
    yield tables.differences(mixed)
    yield "By corruption, mean over severities and batch sizes:"
    yield tables.by_corruption(mixed)
    if part.ordered is not None:
        yield (
            f"Sorted batches. {SORTED[facts.score]} Mean {score} over clean and severity "
            f"{facts.plan.middle} of each corruption, {part.ordered.examples} examples, in %:"
        )
        yield tables.mean_scores(part.ordered)
        yield tables.differences(part.ordered)


def _score(facts: Facts) -> str:
    return "mIoU" if facts.score == "miou" else facts.score


_WHERE: dict[str, Callable[..., bool]] = {
    "all": lambda condition: True,
    "clean": is_clean,
    "tune": is_tuned,
    "other": is_held_out,
}


def rows(facts: Facts, part: Part) -> Iterator[dict[str, Any]]:
    """Yields the means of a part, and its scores condition by condition, for a JSON file."""
    for batches, scores in (("mixed", part.mixed), ("sorted", part.ordered)):
        if scores is None:
            continue
        shared = {
            "data": facts.data,
            "network": part.label,
            "networks": part.networks,
            "batches": batches,
            "metric": facts.score,
            "n": scores.examples,
        }
        for rule in scores.rules:
            for size in scores.batch_sizes:
                row = {**shared, "rule": rule, "batch_size": size}
                for name, where in _WHERE.items():
                    if any(where(c) for c in scores.conditions):
                        found = estimate(scores.mean(rule, size, where))
                        yield {**row, "conditions": name, **_numbers(found)}
                for condition in scores.conditions:
                    found = estimate(scores.values[condition, rule, size])
                    yield {**row, **condition._asdict(), **_numbers(found)}


def _numbers(found: Any) -> dict[str, float]:
    return {"value": found.value, "ci_low": found.low, "ci_high": found.high}
