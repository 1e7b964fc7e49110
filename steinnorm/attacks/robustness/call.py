"""Robustness of a model of one's own in one call: attacks, their worst case, checks and files.

An evaluation goes through its batches once, attacks each of them in every way that is asked for,
and keeps a few numbers of each example.  So it needs the memory of one batch, whatever the number
of examples, and it may be stopped and gone on with at any time.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from steinnorm.attacks._model import LogitsFn
from steinnorm.attacks._warnings import warn
from steinnorm.attacks.checks import CheckSettings
from steinnorm.attacks.robustness.arguments import (
    Wanted,
    checked_attacks,
    checked_dependence,
    checked_radii,
    checked_wanted,
    whole,
)
from steinnorm.attacks.robustness.bar import Bar
from steinnorm.attacks.robustness.checks import checked
from steinnorm.attacks.robustness.data import Data
from steinnorm.attacks.robustness.loop import Loop
from steinnorm.attacks.robustness.measure import Attack, Measure
from steinnorm.attacks.robustness.names import CHECKS
from steinnorm.attacks.robustness.result import Robustness, write_figures, write_tables
from steinnorm.attacks.robustness.rows import WORST, row_of, with_worst
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
    """Measures a model clean and under attacks, and tests the measurement itself.

    Of each example the worst of all attacks of a radius counts in the rows called ``worst``.
    Their loss is the mean of each example's largest, and never below that of one attack.

    With ``out`` the folder has ``results.json`` (the rows), ``checks.json``, ``table.csv``,
    ``table.md``, ``accuracy.png``, ``pictures/`` (clean, attacked and difference of the first few
    examples, where these are images) and ``per_example/`` (a file for each attack and radius,
    written after every batch).  A call that was stopped goes on where it was when it is made again
    with the same model, data and settings.  Models are told by their arrays, where they have any to
    be seen, and by their logits and gradients on the first batch; files of another model, of other
    data or settings, or of another version of this code are replaced or removed.  An attack of
    one's own is told by its code and the globals that it reads; where these cannot be described, it
    is measured anew.

    Args:
      logits_fn: maps a batch (B, ...) to logits (B, K), (B, 1) or (B, H, W, K), ready for
        inference: a function, a ``jax.tree_util.Partial`` over the model's state, or an NNX model.
        What the model does to its inputs first, such as normalisation, belongs into it.
      x: inputs (N, ...), floating, within ``bounds``; or an iterable of (x, y) batches.  An
        iterator that can be gone through only once will do: every attack is made on a batch before
        the next is asked for.
      y: the right labels, integers (N,), or (N, H, W) with 255 where there is none; None where
        ``x`` is an iterable of batches.
      norm: of the balls, ``linf`` or ``l2``.
      epsilons: their radii, in the units of the inputs; of noises the root mean square.
      attacks: names of ``steinnorm.attacks.catalogue``, ``AttackSettings`` with a budget of one's
        own, or functions with the signature of an attack; nothing but the clean row for ``()``.
      batch_size: examples per batch of arrays; an iterable's batches are taken as they are.
      seed: of all randomness.
      out: folder for files; None for none.
      bounds: the smallest and the largest valid value of an input.
      batch_dependent: whether an example's logits change with its companions (statistics of the
        test batch); None to find out on the first batch.  If so the attacker owns each batch as a
        whole, and intervals, which take examples to be independent, are too narrow.
      checks: whether the checks of ``steinnorm.attacks.checks`` are made, on the first batch with a
        known label at the largest radius; or their settings; None means no.
      check_examples: on how many examples, at most those of a batch; on the whole of it where
        logits depend on the batch.
      twin: the same model without its defence, for the check of transfer.
      class_names: for the pictures.
      progress: whether progress, and the checks' verdicts, are printed.

    Returns:
      Rows, checks and results per example.

    Raises:
      ValueError: an argument is not as described, an attack does not exist or not for such labels,
        or model and data do not fit together.
      LeftThreatError: an attack left its ball or box.

    Warns:
      RadiusWarning: a ball holds all of the box.
      BatchDependenceWarning: logits depend on the batch, and nobody said so.
      UserWarning: results of another model are replaced, the checks could not be made, or there is
        no matplotlib for figures.

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
    chosen, radii = checked_attacks(attacks), checked_radii(epsilons, norm, bounds)
    wanted = checked_wanted(checks, check_examples, twin)
    data, folder = Data(x, y, batch_size), None if out is None else Path(out)
    batches = data.batches
    per_batch = 1 + len(chosen) * len(radii)
    with Bar(progress, None if batches is None else batches * per_batch) as bar:
        loop = Loop(
            Measure(logits_fn, norm, bounds, whole("seed", seed), folder is not None, bar.note),
            chosen,
            radii,
            Store(folder),
            bar.advance,
            checked_dependence(batch_dependent),
        )
        try:
            loop.run(data)
        except KeyboardInterrupt:
            if folder is not None and loop.results:
                _write(loop, folder, _STOPPED)
            raise
        # Whatever becomes of the checks, what is measured is written.
        result = _write(loop, folder, _UNCHECKED if _to_check(loop, wanted) else "")
        if folder is not None:
            write_figures(result, class_names)
        if _to_check(loop, wanted):
            result = _with_checks(result, loop, wanted, bar)
        if folder is not None:
            bar.say(f"written: {folder}")
    return result


def _to_check(loop: Loop, wanted: Wanted) -> list[float]:
    """The radii of which the largest is checked; none where no checks are made."""
    return [] if wanted.settings is None else [epsilon for _, epsilon in loop.balls if epsilon > 0]


def _write(loop: Loop, folder: Path | None, missing: str) -> Robustness:
    """Writes the tables, and removes what lies beside them of another evaluation."""
    result = _result(loop, folder, missing)
    if folder is not None:
        complete = missing != _STOPPED
        loop.store.tidy(loop.results, loop.identity, loop.digests, complete=complete)
        write_tables(result)
    return result


def _with_checks(result: Robustness, loop: Loop, wanted: Wanted, bar: Bar) -> Robustness:
    path = None if result.out is None else result.out / CHECKS
    radius = max(_to_check(loop, wanted))
    made = checked(loop.measure, loop.labelled, radius, wanted, identity=loop.identity, path=path)
    for finding in made.findings:
        bar.say(f"check: {finding.verdict:14} {finding.name}: {finding.detail}")
    checks = {"checks": made.findings, "curve": made.curve}
    result = dataclasses.replace(result, **checks, missing="")  # type: ignore[arg-type]
    if result.out is not None:
        write_tables(result)
    if made.error:
        warn(made.error)
    return result


def _result(loop: Loop, folder: Path | None, missing: str) -> Robustness:
    balls = loop.balls
    results, over = with_worst(loop.results, balls, joint=loop.measure.batch_dependent)
    rows = []
    for key, found in results.items():
        has_ball = key in balls or key[0] == WORST
        norm_order = loop.measure.norm if has_ball else ""
        rows.append(row_of(key, found, norm_order, over[key[1]] if key[0] == WORST else ""))
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
