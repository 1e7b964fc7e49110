"""What do SteinBatchNorm's compiled programs move, hold and exchange on a TPU v5e and an H100?

Run with ``make bench-accelerators``. The programs are compiled for accelerators that are not
there, and counted; nothing is run on one, so there are no times. Results are kept in a file as
they come, and a run that was interrupted goes on from there. The tables are written to two pages:
layers and networks to ``docs/results/accelerators.md``; the programs of ``experiments``, and layers
at test time, to ``docs/results/accelerators_experiments.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.accelerator_programs import (
    JIT,
    NETWORKS,
    SHARD_MAP,
    Figures,
    measure_devices,
    measure_inference,
    measure_layer,
    measure_network,
    measure_tracing,
)
from benchmarks.accelerator_report import Case, Results, document
from benchmarks.accelerator_targets import H100, V5E, mesh, prepare
from benchmarks.experiment_programs import NORM, SUBJECTS, measure_attack, measure_training
from benchmarks.experiment_report import document as experiment_document
from benchmarks.layer_programs import FORWARD, REFERENCE, TRAINING
from steinnorm.attacks.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "steinnorm/**/*.py",
    "experiments/models/*.py",
    "experiments/tasks/*.py",
    "experiments/training/step.py",
    "experiments/configs/**/*.py",
    "benchmarks/accelerator_programs.py",
    "benchmarks/layer_programs.py",
    "benchmarks/experiment_programs.py",
    "benchmarks/accelerator_targets.py",
    "benchmarks/hlo_text.py",
    "benchmarks/h100.txtpb",
)
DTYPES = ("float32", "bfloat16")
RULES = ("none", "stein", "stein_mean_only", "jsnorm", "ridge", "lasso", "toward_running")
LAYER_SHAPES = ((256, 56, 56, 256), (64, 14, 14, 256), (8, 32, 32, 32, 32))
DEVICE_SHAPE = (8, 14, 14, 256)  # of one chip
DEVICE_RULES = ("none", "stein", "toward_running")
TOPOLOGIES = ("v5e:2x4", "v5e:8x8", "v5e:16x16")
NETWORK_RULE = "stein"
SOURCES_OF_STATISTICS = ("batch", "calibrated", "calibrated_streams")
FOUR_CHIPS = "v5e:2x2"
ATTACKED = "HRNet"  # the Cityscapes preset of the paper, which one chip has no room for
PARTS = ("layer", "networks", "devices")
EXPERIMENT_PARTS = ("inference", "attacks", "trainings")
PAGES: dict[str, tuple[tuple[str, ...], Callable[[Sequence[Case], Results], str]]] = {
    "accelerators.md": (PARTS, document),
    "accelerators_experiments.md": (EXPERIMENT_PARTS, experiment_document),
}


def plan(part: str, quick: bool) -> list[Case]:
    """Returns what is to be measured; ``quick`` is a small subset that shows that all works."""
    if part == "layer":
        return [
            Case(part, target, subject(shape), dtype, mode, norm)
            for shape in (LAYER_SHAPES[1:2] if quick else LAYER_SHAPES)
            for target in (V5E, H100)
            for dtype in (DTYPES[1:] if quick else DTYPES)
            for mode in (FORWARD, TRAINING)
            for norm in (REFERENCE, *(RULES[:2] if quick else RULES))
        ]
    if part == "devices":
        return [
            Case(part, target, subject(DEVICE_SHAPE), way, mode, norm)
            for target in (TOPOLOGIES[:1] if quick else TOPOLOGIES)
            for way in (JIT, SHARD_MAP)
            for mode in (FORWARD, TRAINING)
            for norm in (REFERENCE, *(DEVICE_RULES[1:2] if quick else DEVICE_RULES))
        ]
    if part in EXPERIMENT_PARTS:
        return _plan_of_experiments(part, quick)
    names = ["3-D CNN"] if quick else list(NETWORKS)
    found = [(V5E, name, dtype) for name in names for dtype in (DTYPES[:1] if quick else DTYPES)]
    cases = [
        Case(part, target, name, dtype, mode, norm)
        for target, name, dtype in found
        for mode, norm in (("step", REFERENCE), ("step", NETWORK_RULE), ("tracing", NETWORK_RULE))
    ]
    # All-reduces appear on several chips only.
    several = Case(part, TOPOLOGIES[0], names[0], "float32", "step", REFERENCE)
    return [*cases, several, several._replace(norm=NETWORK_RULE)]


def _plan_of_experiments(part: str, quick: bool) -> list[Case]:
    if part == "inference":
        sources = SOURCES_OF_STATISTICS[1:2] if quick else SOURCES_OF_STATISTICS
        return [
            Case(part, target, subject(LAYER_SHAPES[1]), dtype, mode, norm)
            for target in (V5E, H100)
            for dtype in (DTYPES[:1] if quick else DTYPES)
            for mode in (FORWARD, TRAINING)
            for norm in (REFERENCE, *sources)
        ]
    if part == "attacks":
        return [
            Case(part, target, ATTACKED, source, "look", NORM)
            for source in (("running",) if quick else ("running", "batch"))
            for target in (V5E, FOUR_CHIPS)
        ]
    names = ["3-D CNN"] if quick else list(SUBJECTS)
    return [Case(part, FOUR_CHIPS, name, "bfloat16", "step", NORM) for name in names]


def subject(shape: tuple[int, ...]) -> str:
    """Returns a shape as it is written in results."""
    return ",".join(map(str, shape))


def measure(case: Case) -> Figures:
    """Compiles one program, and counts."""
    if case.part == "networks":
        function = measure_tracing if case.mode == "tracing" else measure_network
        return function(case.norm, case.subject, case.variant, case.target)
    if case.part == "attacks":
        return measure_attack(case.subject, case.variant, case.target)
    if case.part == "trainings":
        return measure_training(case.subject, case.variant, case.target)
    shape = tuple(map(int, case.subject.split(",")))
    if case.part == "inference":
        return measure_inference(case.norm, shape, case.variant, case.mode, case.target)
    if case.part == "layer":
        return measure_layer(case.norm, shape, case.variant, case.mode, case.target)
    return measure_devices(case.norm, shape, case.mode, case.variant, case.target)


def fingerprint() -> dict[str, str]:
    """Returns what the results depend on: versions, and the sources by their contents."""
    versions = {name: metadata.version(name) for name in ("jax", "flax", "libtpu")}
    digest = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return {**versions, "sources": digest.hexdigest()}


def known(path: Path, wanted: dict[str, str]) -> Results:
    """Reads earlier results, if they are of the same versions and sources."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text())
    if stored["of"] != wanted:
        print(f"{path} is of other versions or sources: everything is measured again")
        return {}
    return stored["results"]


def run(cases: list[Case], path: Path) -> tuple[Results, int]:
    """Measures what is not known yet, one program at a time.

    Returns:
      All results, and how many programs could not be compiled.
    """
    of = fingerprint()
    results, failures = known(path, of), 0
    for index, case in enumerate(cases, start=1):
        if case.key in results:
            continue
        start = time.perf_counter()
        try:
            results[case.key] = measure(case)
        except Exception as error:  # of whatever class the compiler has; the others go on
            failures += 1
            outcome = f"failed: {type(error).__name__}: {error}"
        else:
            write_json(path, {"of": of, "results": results})
            outcome = f"{time.perf_counter() - start:.1f} s"
        print(f"[{index}/{len(cases)}] {case.key}: {outcome}", flush=True)
    return results, failures


def start_compilers() -> None:
    """Starts libtpu, or ends the program and says what is missing."""
    try:
        metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        sys.exit("libtpu is not installed here; use make bench-accelerators")
    prepare()
    try:
        mesh(V5E)
    except Exception as error:  # of whatever class JAX has for it
        sys.exit(f"libtpu did not start; it allows one process at a time on a machine: {error}")


def not_measured(missing: Sequence[Case]) -> str:
    """Returns a paragraph that names the programs for which there is no figure."""
    if not missing:
        return ""
    names = sorted({f"{case.part} {case.subject} {case.variant} {case.target}" for case in missing})
    return f"\nNot measured at this commit: {', '.join(names)}.\n"


def write_page(path: Path, results: Results) -> None:
    """Writes the tables of what is measured to one of ``PAGES``, and names what is missing."""
    parts, tables = PAGES[path.name]
    complete = [case for part in parts for case in plan(part, quick=False)]
    measured = [case for case in complete if case.key in results]
    missing = [case for case in complete if case.key not in results]
    write_text(path, tables(measured, results) + not_measured(missing))
    print(f"written to {path}; {len(missing)} of its programs are not measured yet")


def main() -> None:
    """Measures, prints the tables, and writes those of what is measured."""
    every = (*PARTS, *EXPERIMENT_PARTS)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default=",".join(every), help="some of: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a small subset; writes no page")
    parser.add_argument("--only", default="", help="programs whose name holds this, as ResNet-50")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "accelerators.json")
    parser.add_argument("--write", type=Path, default=ROOT / "docs/results", help="folder of pages")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(every):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    start_compilers()
    planned = [case for part in parts for case in plan(part, arguments.quick)]
    cases = [case for case in planned if arguments.only in case.key]
    results, failures = run(cases, arguments.results)
    for name, (of_page, tables) in PAGES.items():
        if not set(parts) & set(of_page):
            continue
        of_both = [case for case in cases if case.part in of_page and case.key in results]
        print("\n" + tables(of_both, results))
        if not arguments.quick:
            write_page(arguments.write / name, results)
    if failures:
        sys.exit(f"{failures} programs could not be compiled; run again to try them again")


if __name__ == "__main__":
    main()
