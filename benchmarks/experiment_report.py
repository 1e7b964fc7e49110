"""The page on the compiled programs of ``experiments``, and on layers at test time."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.accelerator_report import (
    BYTES,
    UNKNOWN,
    Case,
    Results,
    all_reduces,
    head,
    labels,
    ratio,
    rows_of,
    table,
)
from benchmarks.experiment_programs import SUBJECTS

_GIB = 2**30


def document(cases: Sequence[Case], results: Results) -> str:
    """Returns the tables of these cases in Markdown, with where they come from."""
    known = [case for case in cases if case.key in results]
    parts = {"trainings": _trainings, "attacks": _attacks, "inference": _inference}
    texts = [
        head(
            "What the experiments' programs do on accelerators",
            "make bench-accelerators    # or: python -m benchmarks.accelerators --parts "
            "inference,attacks,trainings",
        )
    ]
    for name, section in parts.items():
        of_part = [case for case in known if case.part == name]
        if of_part:
            texts.append(section(of_part, results))
    return "\n\n".join(texts) + "\n"


def _trainings(cases: Sequence[Case], results: Results) -> str:
    lines = []
    for case in cases:
        found, subject = results[case.key], SUBJECTS[case.subject]
        reduced = {
            name.removeprefix("reduced_"): count
            for name, count in found.items()
            if name.startswith("reduced_")
        }
        others = {name: count for name, count in reduced.items() if name != "f32"}
        lines.append(
            [
                labels(case)[0],
                f"{case.subject}, {subject.config} {subject.preset}",
                case.variant,
                f"{subject.batch} of {subject.input}",
                all_reduces(case, results),
                f"{reduced.get('f32', 0):.0f}",
                ", ".join(f"{count:.0f} {name}" for name, count in sorted(others.items()))
                or "none",
                f"{found['peak'] / _GIB:.2f} GiB",
            ]
        )
    header = ["chips", "network, configuration", "activations", "batch"]
    header += ["all-reduces", "arrays in them, float32", "of other types", "peak memory"]
    return f"""## Training steps

The compiled step of `python -m experiments train`, with the norm `stein`: what the chips sum over
all of them. An all-reduce may combine many arrays; the number of instructions is given as those
that always run + those in the branches of conditionals, the arrays are those of both.

{table(header, 4, lines)}"""


def _attacks(cases: Sequence[Case], results: Results) -> str:
    lines = []
    for case in cases:
        found, subject = results[case.key], SUBJECTS[case.subject]
        if "needed" in found:
            needs = f"{found['needed'] / _GIB:.1f} GiB"
            fits = f"no: of {found['available'] / _GIB:.2f} GiB"
        else:
            needs, fits = f"{found['peak'] / _GIB:.1f} GiB", "yes"
        what = f"{case.subject}, {subject.config} {subject.preset}"
        lines.append([labels(case)[0], what, case.variant, needs, fits])
    header = ["chips", "network, configuration", "statistics", "memory of one chip", "it fits"]
    return f"""## Attacks

One look of an attack as `python -m experiments evaluate` makes it: loss, gradient and success at
a batch, divided among the chips; float32 with `matmul_precision` highest.

{table(header, 3, lines)}"""


def _inference(cases: Sequence[Case], results: Results) -> str:
    sources = list(dict.fromkeys(case.norm for case in cases))[1:]
    lines = []
    for row in rows_of(cases):
        flax, *ours = row
        size = math.prod(map(int, flax.subject.split(","))) * BYTES[flax.variant]
        by_source = {case.norm: case for case in ours}
        cells = [_moved(flax, results, size, f"{results[flax.key]['bytes'] / size:.2f}")]
        for source in sources:
            case = by_source.get(source)
            if case is None or flax.key not in results:
                cells.append(UNKNOWN)
                continue
            cells.append(_moved(case, results, size, ratio(case, results, "bytes")))
        batch, rule = by_source.get("batch"), by_source.get("calibrated")
        if batch and rule:
            multiple = results[rule.key]["bytes"] / results[batch.key]["bytes"]
            cells.append(f"{multiple:.4f}")
        else:
            cells.append(UNKNOWN)
        lines.append([*labels(flax), *cells])
    header = ["device", "input", "dtype", "pass", "flax", *sources, "calibrated / batch"]
    return f"""## One layer at test time and the ReLU behind it

Bytes moved, by `test_statistics` and with the shrinkage `none`: Flax's layer in training, which
takes the batch's statistics too and records them, in sizes of the input; the others as multiples
of Flax's. In brackets the temporaries in sizes of the input. Forward + backward gives the gradients
of the input and the parameters.

{table(header, 4, lines)}"""


def _moved(case: Case, results: Results, size: int, figure: str) -> str:
    return f"{figure} [{results[case.key]['temporaries'] / size:.3f}]"
