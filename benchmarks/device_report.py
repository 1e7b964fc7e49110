"""The page of ``benchmarks.device_time``: on what was measured, the tables, what is missing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks.layer_programs import FORWARD, REFERENCE, TRAINING
from benchmarks.step_time import markdown
from steinnorm.attacks.code_digest import code_digest

ROOT = Path(__file__).resolve().parents[1]
LAYERS, TEST_TIME, NETWORKS = "layers", "test time", "networks"
TITLES = {
    LAYERS: "One layer in training and the ReLU behind it",
    TEST_TIME: "One layer at test time and the ReLU behind it, forward",
    NETWORKS: "Training steps (forward, backward, SGD with Nesterov momentum; arrays donated)",
}
# Reads and writes of an activation that nobody can do without, at one layer.
PASSES = {FORWARD: 3, TRAINING: 6}
PASSES_AT_TEST_TIME = {REFERENCE: 2, "running": 2, "shrunk": 3}
NOTES = {
    LAYERS: (
        "Flax: time of a step; the others: their time over Flax's. In (): share of the floor, the\n"
        "time in which a copy moves the bytes that must move. Forward: x is read for the\n"
        "statistics and again to normalise, y is written. Forward + backward, of a loss linear in\n"
        "y with given weights: x is read three times (statistics; loss and sums of the gradients;\n"
        "gradient of x), the weights twice, the gradient of x is written; y need not be. PyTorch\n"
        "(eager, forward + backward with the gradient of y given, ReLU in place, in a process of\n"
        "its own after the rounds of the others) writes y besides."
    ),
    TEST_TIME: (
        "As above; running statistics need x once, `shrunk` reads it for its own statistics too."
    ),
    NETWORKS: (
        "In []: half of the rounds' ratios lie between these two. In {}: seconds to trace and\n"
        "compile. Flax's is compiled before ours and tunes the convolutions, which ours then\n"
        "finds tuned; both dtypes are compiled side by side."
    ),
}


class Row(NamedTuple):
    """What was measured in one row of a table.

    Attributes:
      part: the table.
      subject: shape of the activation, or the network and its batch.
      dtype: of the activations.
      mode: what is computed.
      seconds: of a step by name, the median over the rounds.
      ratios: to the reference, the medians over the rounds.
      spreads: half of the rounds' ratios lie between these two; not known of PyTorch.
      failures: name -> reason.
      floors: seconds in which the bytes can be moved that must move, by name.
      compile: seconds to trace and compile by name.
      examples: in a batch.
    """

    part: str
    subject: str
    dtype: str
    mode: str
    seconds: dict[str, float]
    ratios: dict[str, float]
    spreads: dict[str, tuple[float, float]]
    failures: dict[str, str]
    floors: dict[str, float]
    compile: dict[str, float]
    examples: int


def about() -> dict[str, str]:
    """Returns what the times depend on."""
    device = jax.devices()[0]
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    default = "JAX's default (on NVIDIA: TF32 in float32 convolutions and products)"
    found = {
        "device": f"{device.device_kind} ({device.platform})",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        "precision of products": str(precision) if precision else default,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "code": _code(),
    }
    return {name: value for name, value in found.items() if value}


def _code() -> str:
    """Returns the commit, or a digest of the sources where there is no repository."""
    commit = _output("git", "rev-parse", "HEAD")
    changed = ", changed" if _output("git", "status", "--porcelain") else ""
    if commit:
        return f"commit {commit}{changed}"
    return f"digest {code_digest(*(ROOT / name for name in ('steinnorm', 'benchmarks')))[:16]}"


def _output(*command: str) -> str:
    """Returns the first line that a program prints, nothing where it is not there or fails."""
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True, cwd=ROOT
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip().partition("\n")[0]


def _cell(row: Row, name: str) -> str:
    if name in row.failures:
        return "failed"
    if name not in row.seconds:
        return ""
    seconds = row.seconds[name]
    if row.part == NETWORKS:
        text = f"{row.examples / seconds:,.0f} images/s"
        if name != REFERENCE:
            low, high = row.spreads.get(name, (0.0, 0.0))
            text += f", time {_ratio(row, name)}" + f" [{low:.3f}, {high:.3f}]" * bool(high)
        return text + (f" {{{row.compile[name]:.1f} s}}" if name in row.compile else "")
    text = f"{seconds * 1e3:.3f} ms" if name == REFERENCE else _ratio(row, name)
    return text + (f" ({row.floors[name] / seconds:.2f})" if name in row.floors else "")


def _ratio(row: Row, name: str) -> str:
    return f"{row.ratios[name]:.3f}" if name in row.ratios else f"{row.seconds[name] * 1e3:.3f} ms"


def table(part: str, rows: Sequence[Row]) -> str:
    """Returns one table, and the reasons of what failed."""
    names = list(dict.fromkeys(name for row in rows for name in (*row.seconds, *row.failures)))
    names.sort(key=lambda name: name != REFERENCE)
    head = ["network" if part == NETWORKS else "input", "dtype", "mode", *names]
    lines = [f"## {TITLES[part]}", "", NOTES[part], "", markdown(head)]
    lines.append(markdown(["---"] * 3 + ["---:"] * len(names)))
    for row in rows:
        cells = [_cell(row, name) for name in names]
        lines.append(markdown([row.subject, row.dtype, row.mode, *cells]))
    failed = [
        f"- {row.subject}, {row.dtype}, {row.mode}, {name}: failed: {why}"
        for row in rows
        for name, why in row.failures.items()
    ]
    return "\n".join([*lines, *([""] if failed else []), *failed])


def document(facts: dict[str, str], rows: Sequence[Row], left_out: Sequence[str]) -> str:
    """Returns the page.

    Args:
      facts: what the times depend on.
      rows: in the order in which they were measured.
      left_out: names of what there was no time for.
    """
    parts = ["# Times on a device", "\n".join(f"- {name}: {text}" for name, text in facts.items())]
    for part in TITLES:
        of_part = [row for row in rows if row.part == part]
        parts += [table(part, of_part)] if of_part else []
    if left_out:
        parts.append(f"Left out, as the time was used: {'; '.join(left_out)}.")
    return "\n\n".join(parts) + "\n"
