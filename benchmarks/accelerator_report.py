"""The tables of what was counted in programs compiled for accelerators."""

from __future__ import annotations

import math
import statistics
import subprocess
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from benchmarks.accelerator_programs import NETWORKS
from benchmarks.accelerator_targets import H100, V5E
from benchmarks.layer_programs import REFERENCE

Results = dict[str, dict[str, float]]
Cell = Callable[["Case"], str]
NAMES = {V5E: "TPU v5e", H100: "H100"}
UNKNOWN = "–"
COMMAND = "make bench-accelerators"

_ROOT = Path(__file__).resolve().parents[1]
BYTES = {"float32": 4, "bfloat16": 2}


class Case(NamedTuple):
    """One program.

    Attributes:
      part: one of ``PARTS`` or ``POD_PARTS`` of ``benchmarks.accelerators``.
      target: a device or a topology, see ``accelerator_targets.mesh``.
      subject: the shape of the input, or the name of the network.
      variant: the dtype; in ``devices`` the way in which the batch is split, in ``attacks`` the
        source of the norm's statistics.
      mode: forward or forward and backward; ``step``, ``tracing`` or ``look`` of whole networks.
      norm: ``flax``, the name of a shrinkage, or in ``inference`` the source of the statistics.
    """

    part: str
    target: str
    subject: str
    variant: str
    mode: str
    norm: str

    @property
    def key(self) -> str:
        """The name of its results."""
        return " / ".join(self)

    @property
    def reference(self) -> Case:
        """The same program with Flax's layer."""
        return self._replace(norm=REFERENCE)


def document(cases: Sequence[Case], results: Results) -> str:
    """Returns the tables of these cases in Markdown, with where they come from."""
    layer, networks, devices = (
        [case for case in cases if case.part == part] for part in ("layer", "networks", "devices")
    )
    texts = [head("What the compiled programs do on accelerators")]
    if layer:
        texts.append(_layer(layer, results))
    if networks:
        texts.append(_networks(networks, results))
    if devices:
        texts.append(_devices(devices, results))
    return "\n\n".join(texts) + "\n"


def head(title: str, command: str = COMMAND) -> str:
    """Returns the beginning of a page: how it was made, and what its figures are."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "flax", "libtpu"))
    return f"""# {title}

```
{command}
```

Commit {_commit()}; {versions}.

These are counts in programs that were compiled for a TPU v5e and an H100; there are no times, and
nothing was run on an accelerator. Every figure is of one device. Bytes are XLA's own estimate for
the optimised program: what its operations read and write, wherever that lies; a conditional counts
as its most expensive branch, a loop of unknown length as one turn. Instructions are those of the
optimised program, inside fusions too. Figures of ours are multiples of Flax's layer in the same
place unless it says otherwise; below 1 is less than Flax."""


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "steinnorm", "experiments", "benchmarks")
        return git("rev-parse", "--short", "HEAD") + (" with uncommitted changes" * bool(changed))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _layer(cases: Sequence[Case], results: Results) -> str:
    def size(case: Case) -> int:
        return math.prod(map(int, case.subject.split(","))) * BYTES[case.variant]

    def moved(case: Case) -> str:
        if case.norm == REFERENCE:
            text = f"{results[case.key]['bytes'] / size(case):.2f}"
        else:
            text = ratio(case, results, "bytes")
        return f"{text} [{results[case.key]['temporaries'] / size(case):.2f}]"

    def instructions(case: Case) -> str:
        if case.norm == REFERENCE:
            return f"{results[case.key]['instructions']:.0f}"
        return ratio(case, results, "instructions")

    norms = list(dict.fromkeys(case.norm for case in cases))
    rows = rows_of(cases)
    header = ["device", "input", "dtype", "pass", *norms]
    tables = []
    for cell, figure in ((moved, "bytes"), (instructions, "instructions")):
        lines = [[*labels(row[0]), *_cells(row, norms, results, cell)] for row in rows]
        lines += _means(cases, norms, results, figure)
        tables.append(table(header, 4, lines))
    return f"""## One layer and the ReLU behind it

Bytes moved (Flax's own in sizes of the input, the others as multiples of Flax's), and in brackets
the temporaries in sizes of the input. In forward + backward the output is summed with weights and
not written. On a TPU the bytes hold the padding of the channels to a multiple of 128.

{tables[0]}

Instructions (Flax's own number, the others as multiples).

{tables[1]}"""


def _means(
    cases: Sequence[Case], norms: Sequence[str], results: Results, figure: str
) -> list[list[str]]:
    """Returns one row per device and pass: geometric means of a figure's ratios to Flax."""
    lines = []
    for target, mode in dict.fromkeys((case.target, case.mode) for case in cases):
        cells = []
        for norm in norms:
            ratios = [
                results[case.key][figure] / results[case.reference.key][figure]
                for case in cases
                if (case.target, case.mode, case.norm) == (target, mode, norm)
                and {case.key, case.reference.key} <= results.keys()
            ]
            mean = math.exp(statistics.mean(map(math.log, ratios))) if ratios else math.nan
            cells.append(f"{mean:.2f}" if ratios else UNKNOWN)
        lines.append([NAMES[target], "geometric mean", "", mode, *cells])
    return lines


def _networks(cases: Sequence[Case], results: Results) -> str:
    lines = []
    for row in rows_of([case for case in cases if case.mode == "step"]):
        flax, ours = row
        if not {flax.key, ours.key} <= results.keys():
            continue
        before = results[flax.key]
        cells = [
            f"{before['bytes'] / 1e9:.2f} GB",
            ratio(ours, results, "bytes"),
            f"{before['peak'] / 1e9:.2f} GB",
            ratio(ours, results, "peak"),
            f"{before['instructions']:.0f}",
            ratio(ours, results, "instructions"),
            *(all_reduces(case, results) for case in row),
        ]
        traced = results.get(ours._replace(mode="tracing").key)
        cells += [f"{traced['reference']:.1f} s", f"{traced['ratio']:.2f}"] if traced else [""] * 2
        lines.append([*labels(flax)[:3], *cells])
    names = ("bytes", "peak memory", "instructions", "all-reduces", "tracing")
    header = ["chips", "network", "dtype"]
    header += [text for name in names for text in (f"{name}: Flax", cases[-1].norm)]
    sizes = "; ".join(f"{name} {network.shape}" for name, network in NETWORKS.items())
    return f"""## Training steps

Forward, backward and SGD with momentum, with `flax.nnx.BatchNorm` and the same network through
`steinnorm.nnx.convert`; parameters are float32. Peak memory is temporaries, arguments and results.
Tracing is the processor time to trace and lower the step from empty caches, median of three pairs;
it is a time of the machine that compiled. All-reduces are given as those that always run + those in
the branches of conditionals.

Inputs of one chip: {sizes}.

{table(header, 3, lines)}"""


def all_reduces(case: Case, results: Results) -> str:
    """Returns their number; nothing for one chip, which has nobody to exchange with."""
    if case.target == V5E:
        return ""
    figures = results[case.key]
    branches = figures["all_reduces_in_branches"]
    return f"{figures['all_reduces']:.0f}" + (f" + {branches:.0f}" if branches else "")


def _devices(cases: Sequence[Case], results: Results) -> str:
    channels = int(cases[0].subject.split(",")[-1])

    def reduced(case: Case) -> str:
        figures = results[case.key]
        text = f"{figures['always'] / channels:.2f}"
        if figures["in_branches"]:
            text += f" + {figures['in_branches'] / channels:.2f}"
        return text + (f" ({figures['others']:.0f} other)" if figures["others"] else "")

    norms = list(dict.fromkeys(case.norm for case in cases))
    lines = [
        [*labels(row[0], shape=False), *_cells(row, norms, results, reduced)]
        for row in rows_of(cases)
    ]
    return f"""## One layer, its batch split over many chips

Numbers that all-reduces return to every chip in one call of the layer, in units of the {channels}
channels: those that are always exchanged + those in the branches of conditionals, all branches
together; a loop counts as one turn. `jit`: statistics of a split input; `shard_map`: with
`axis_name`. "other": collectives that are no all-reduces. Input of one chip:
{_shape(cases[0])}, float32.

{table(["chips", "by", "pass", *norms], 3, lines)}"""


def rows_of(cases: Sequence[Case]) -> list[list[Case]]:
    """Returns the cases in groups that differ in the norm only."""
    rows: dict[Case, list[Case]] = {}
    for case in cases:
        rows.setdefault(case.reference, []).append(case)
    return list(rows.values())


def labels(case: Case, *, shape: bool = True) -> list[str]:
    """Returns the first cells of a row: device, input, variant and mode."""
    target = NAMES.get(case.target) or case.target.replace("v5e:", "TPU v5e ")
    return [target, *([_shape(case)] if shape else []), case.variant, case.mode]


def _shape(case: Case) -> str:
    """Returns the input's shape in brackets, or the name of the network."""
    return f"({case.subject.replace(',', ', ')})" if "," in case.subject else case.subject


def _cells(row: Sequence[Case], norms: Sequence[str], results: Results, cell: Cell) -> list[str]:
    """Returns a cell for every norm; unknown where it or Flax has no result."""
    by_norm = {case.norm: case for case in row}
    return [
        cell(by_norm[norm])
        if norm in by_norm and {by_norm[norm].key, by_norm[norm].reference.key} <= results.keys()
        else UNKNOWN
        for norm in norms
    ]


def ratio(case: Case, results: Results, figure: str) -> str:
    """Returns a figure as a multiple of Flax's."""
    return f"{results[case.key][figure] / results[case.reference.key][figure]:.2f}"


def table(header: Sequence[str], label_columns: int, lines: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; columns behind the labels are aligned to the right."""
    marks = ["---"] * label_columns + ["---:"] * (len(header) - label_columns)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, marks, *lines))
