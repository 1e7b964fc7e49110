"""Evaluation of a model's robustness in one call: attacks, their worst case, checks and files.

An evaluation reads its batches once, runs all attacks on each of them, and keeps a few values per
example. So its memory is that of one batch, for any number of examples, and it can be interrupted
and continued at any time.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from steinnorm.attacks._arguments import refuse_traced
from steinnorm.attacks._model import LogitsFn
from steinnorm.attacks._warnings import warn
from steinnorm.attacks.checks import CheckSettings
from steinnorm.attacks.checks.radius import radius_with_room
from steinnorm.attacks.robustness.arguments import (
    CheckRequest,
    parse_attacks,
    parse_batch_dependent,
    parse_checks,
    parse_out,
    parse_radii,
    parse_seed,
)
from steinnorm.attacks.robustness.checks import make_checks
from steinnorm.attacks.robustness.data import Data
from steinnorm.attacks.robustness.evaluator import Attack, BatchEvaluator
from steinnorm.attacks.robustness.loop import EvaluationLoop
from steinnorm.attacks.robustness.names import CHECKS
from steinnorm.attacks.robustness.progress_bar import ProgressBar
from steinnorm.attacks.robustness.result import Robustness, write_figures, write_tables
from steinnorm.attacks.robustness.rows import NONE, WORST, add_worst, make_row
from steinnorm.attacks.robustness.store import Store

_STOPPED = "stopped before every attack was made on every batch"
_UNCHECKED = "the checks are not finished"


def evaluate_robustness(
    logits_fn: LogitsFn,
    x: Any,
    y: Any = None,
    *,
    norm: str = "linf",
    epsilons: float | Iterable[float] = (8 / 255,),
    attacks: str | Attack | Iterable[str | Attack] = ("pgd", "autoattack"),
    batch_size: int = 100,
    seed: int = 0,
    out: str | Path | None = None,
    bounds: Any = (0.0, 1.0),
    batch_dependent: bool | None = None,
    checks: bool | CheckSettings | None = True,
    check_examples: int = 128,
    twin: LogitsFn | None = None,
    class_names: Sequence[str] = (),
    progress: bool = True,
) -> Robustness:
    """Measures a model's accuracy without and under attacks, and checks the measurement itself.

    The rows named ``worst`` take, for each example, the worst of all attacks at a radius. Their
    loss is the mean of each example's largest loss, so that no attack has a larger one.

    The folder ``out`` gets ``results.json`` (the rows), ``checks.json``, ``settings.json``,
    ``table.csv``, ``table.md``, ``accuracy.png``, ``pictures/`` (clean, attacked and difference of
    the first few examples if they are images) and ``per_example/`` (a file for each attack and
    radius, rewritten after every batch). An interrupted evaluation continues if the call is
    repeated with the same model, data and settings. Models are identified by what they compute, as
    JAX traces it, by their arrays, and by their logits and gradients on the first batch. Results of
    another model, of other data or settings, or of another version of this code are replaced or
    removed. Attacks that are functions, and callbacks of models, are identified by their code and
    the globals that they read; if these cannot be described, everything that depends on them is
    measured again.

    Args:
      logits_fn: maps a batch (B, ...) to logits (B, K), (B, 1) or (B, H, W, K), in evaluation mode
        and including all preprocessing such as normalisation: a function, a
        ``jax.tree_util.Partial`` over the model's state, or an NNX model.
      x: inputs (N, ...), floating, within ``bounds``; or an iterable of (x, y) batches. An iterator
        is enough, because all attacks are run on a batch before the next one is read.
      y: true labels, integers (N,), or (N, H, W) with 255 for unlabelled pixels; None if ``x`` is
        an iterable of batches.
      norm: norm of the balls, ``linf`` or ``l2``.
      epsilons: radii of the balls, in the units of the inputs; for noises the root mean square.
        They differ in their first nine digits.
      attacks: names in ``steinnorm.attacks.catalogue``, ``AttackSettings`` with another budget, or
        functions with the signature of an attack; ``()`` measures the clean accuracy only.
      batch_size: examples per batch if ``x`` is an array; batches of an iterable are used as given.
      seed: seed of all randomness, an integer of 64 bits.
      out: folder for files; None for none.
      bounds: smallest and largest valid value of an input; None if every value is valid.
      batch_dependent: whether an example's logits depend on the rest of the batch, as with
        statistics of the test batch; None to test it on the first batch. If they do, the attacker
        changes each batch as a whole, and the intervals are too narrow, because they assume
        independent examples.
      checks: whether to make the checks of ``steinnorm.attacks.checks``, on the first batch with a
        label at the radius where nearest to half of the clean accuracy is left; or their settings.
        None means no.
      check_examples: number of examples for the checks, at most a batch; the whole batch if logits
        depend on it.
      twin: the same model without its defence, for the check of transfer.
      class_names: names of the classes for the pictures.
      progress: whether progress and the checks' verdicts are printed.

    Returns:
      Rows, checks and results per example.

    Raises:
      ValueError: an argument is not as described, an attack is unknown or does not support the
        labels, or model and data do not fit together.
      LeftThreatError: an attack left its ball or box.

    Warns:
      RadiusWarning: a ball contains the whole box.
      BatchDependenceWarning: logits depend on the batch, and ``batch_dependent`` is None.
      ProbabilitiesWarning: ``logits_fn`` seems to return probabilities.
      RandomLogitsWarning: the logits of the same inputs differ between two calls.
      ShortReachWarning: an attack's steps cannot reach the edge of a ball.
      UserWarning: results of another model are replaced, the checks could not be made, or
        matplotlib is not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> from steinnorm.attacks import evaluate_robustness
      >>> weights = jnp.array([[3.0, 0.0], [0.0, 3.0]])
      >>> x, y = jnp.array([[0.9, 0.1], [0.45, 0.55]]), jnp.array([0, 1])
      >>> found = evaluate_robustness(
      ...     lambda x: x @ weights, x, y, epsilons=0.1, attacks="pgd", checks=False, progress=False
      ... )
      >>> [(row.attack, row.epsilon, row.value) for row in found.rows]
      [('none', 0.0, 1.0), ('pgd', 0.1, 0.5), ('worst', 0.1, 0.5)]
    """
    refuse_traced(x=x, y=y, epsilons=epsilons, bounds=bounds)
    chosen, radii = parse_attacks(attacks), parse_radii(epsilons, norm, bounds)
    check_request = parse_checks(checks, check_examples, twin, chosen)
    seed, data, folder = parse_seed(seed), Data(x, y, batch_size), parse_out(out)
    batches = data.batches
    per_batch = 1 + len(chosen) * len(radii)
    with ProgressBar(progress, None if batches is None else batches * per_batch) as bar:
        loop = EvaluationLoop(
            BatchEvaluator(logits_fn, norm, bounds, seed, folder is not None, bar.note),
            chosen,
            radii,
            Store(folder),
            bar.advance,
            parse_batch_dependent(batch_dependent),
            () if check_request.settings is None else check_request.settings.losses,
        )
        try:
            loop.run(data)
        except KeyboardInterrupt:
            if folder is not None and loop.results:
                _write(loop, folder, _STOPPED)
            raise
        # Written before the checks, so that their failure loses no results.
        result = _write(loop, folder, _UNCHECKED if _checked_radii(loop, check_request) else "")
        if folder is not None:
            write_figures(result, class_names)
        if _checked_radii(loop, check_request):
            result = _with_checks(result, loop, check_request, bar)
        if folder is not None:
            bar.print_line(f"written: {folder}")
    return result


def _checked_radii(loop: EvaluationLoop, check_request: CheckRequest) -> list[float]:
    """Returns the radii of which one is checked; empty if no checks are made."""
    return (
        []
        if check_request.settings is None
        else [epsilon for _, epsilon in loop.ball_attacks if epsilon > 0]
    )


def _left(result: Robustness, radii: Sequence[float]) -> tuple[dict[float, float], float]:
    """Returns the accuracy under the worst attack of each radius, and without one."""
    left: dict[float, float] = {}
    clean = 0.0
    for row in result.rows:
        if row.attack == NONE:
            clean = row.value
        elif row.epsilon in radii and row.norm_order:
            left[row.epsilon] = min(row.value, left.get(row.epsilon, 1.0))
    return left, clean


def _write(loop: EvaluationLoop, folder: Path | None, missing: str) -> Robustness:
    """Writes the tables, and removes outdated files of other evaluations."""
    result = _result(loop, folder, missing)
    if folder is not None:
        complete = missing != _STOPPED
        loop.store.remove_outdated(loop.results, loop.identity, loop.digests, complete=complete)
        write_tables(result)
    return result


def _with_checks(
    result: Robustness, loop: EvaluationLoop, check_request: CheckRequest, bar: ProgressBar
) -> Robustness:
    path = None if result.out is None else result.out / CHECKS
    radius = radius_with_room(*_left(result, _checked_radii(loop, check_request)))
    check_results = make_checks(
        loop.evaluator,
        loop.first_labelled_batch,
        radius,
        check_request,
        identity=loop.identity,
        path=path,
    )
    for finding in check_results.findings:
        bar.print_line(f"check: {finding.verdict:14} {finding.name}: {finding.detail}")
    checks = {"checks": check_results.findings, "curve": check_results.curve}
    result = dataclasses.replace(result, **checks, missing="")  # type: ignore[arg-type]
    if result.out is not None:
        write_tables(result)
    if check_results.error:
        warn(check_results.error)
    return result


def _result(loop: EvaluationLoop, folder: Path | None, missing: str) -> Robustness:
    ball_attacks = loop.ball_attacks
    results, over = add_worst(loop.results, ball_attacks, joint=loop.evaluator.batch_dependent)
    rows = []
    for key, per_example in results.items():
        has_ball = key in ball_attacks or key[0] == WORST
        norm_order = loop.evaluator.norm if has_ball else ""
        rows.append(make_row(key, per_example, norm_order, over[key[1]] if key[0] == WORST else ""))
    names = ("norm", "bounds", "seed", "batch_dependent")
    settings = {name: loop.identity[name] for name in names}
    return Robustness(
        rows=rows,
        checks=(),
        curve={},
        per_example=results,
        settings=settings,
        out=folder,
        missing=missing,
    )
