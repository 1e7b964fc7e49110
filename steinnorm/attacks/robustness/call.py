"""Robustness of a model of one's own in one call: attacks, their worst case, checks and files.

An evaluation goes through its batches once, attacks each of them in every way that is asked for,
and keeps a few numbers of each example.  So it needs the memory of one batch, whatever the number
of examples, and it may be stopped and gone on with at any time.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steinnorm.attacks import catalogue
from steinnorm.attacks._model import LogitsFn
from steinnorm.attacks.checks import CheckSettings
from steinnorm.attacks.robustness.bar import Bar
from steinnorm.attacks.robustness.checks import Checked, checked
from steinnorm.attacks.robustness.data import Data
from steinnorm.attacks.robustness.loop import Loop
from steinnorm.attacks.robustness.measure import Attack, Measure, name_of
from steinnorm.attacks.robustness.result import Robustness, write_figures, write_tables
from steinnorm.attacks.robustness.rows import NONE, WORST, row_of, with_worst
from steinnorm.attacks.robustness.store import Store
from steinnorm.attacks.threat import Threat


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
    checks: bool | CheckSettings = True,
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
    be seen, and by their logits and gradients on the first batch; results of another model, of
    other data or settings, or of another version of this code are replaced.

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
      checks: whether the checks of ``steinnorm.attacks.checks`` are made, on the first batch at the
        largest radius; or their settings.
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
      UserWarning: results of another model are replaced, or there is no matplotlib for figures.

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
    chosen, radii = _attacks(attacks), _radii(epsilons, norm, bounds)
    data, folder = Data(x, y, batch_size), None if out is None else Path(out)
    batches = data.batches
    per_batch = 1 + len(chosen) * len(radii)
    with Bar(progress, None if batches is None else batches * per_batch) as bar:
        loop = Loop(
            Measure(logits_fn, norm, bounds, seed, folder is not None, bar.note),
            chosen,
            radii,
            Store(folder),
            bar.advance,
            batch_dependent,
        )
        try:
            loop.run(data)
        except KeyboardInterrupt:
            if folder is not None and loop.results:
                write_tables(_result(loop, None, folder), complete=False)
            raise
        made = _checked(loop, checks, check_examples, twin, folder)
        for finding in made.findings if made else ():
            bar.say(f"check: {finding.verdict:14} {finding.name}: {finding.detail}")
        result = _result(loop, made, folder)
        if folder is not None:
            write_tables(result, complete=True)
            write_figures(result, class_names)
            bar.say(f"written: {folder}")
    return result


def _attacks(given: str | Attack | Iterable[str | Attack]) -> list[Attack]:
    """The attacks that are asked for, each under a name of its own."""
    single = isinstance(given, str | catalogue.AttackSettings) or callable(given)
    wanted = [given] if single else list(given)  # type: ignore[arg-type]
    found: list[Attack] = []
    for attack in wanted:
        if isinstance(attack, str):
            found.append(catalogue.by_name(attack))
        elif isinstance(attack, catalogue.AttackSettings) or callable(attack):
            found.append(attack)
        else:
            raise ValueError(
                f"an attack is a name, an AttackSettings or a function; got {type(attack).__name__}"
            )
    names = [name_of(attack) for attack in found]
    doubled = sorted({name for name in names if names.count(name) > 1 or name in (NONE, WORST)})
    if doubled:
        raise ValueError(
            f"every attack needs a name of its own, other than {NONE} and {WORST}; got {doubled}"
        )
    return found


def _radii(given: float | Iterable[float], norm: str, bounds: Any) -> list[float]:
    wanted = [given] if isinstance(given, int | float | np.number) else list(given)
    if not wanted:
        raise ValueError("epsilons must name at least one radius")
    for epsilon in wanted:
        Threat(norm, epsilon, bounds)  # refuses what is no radius, norm or box
    return list(dict.fromkeys(float(epsilon) for epsilon in wanted))


def _checked(
    loop: Loop,
    wanted: bool | CheckSettings,
    examples: int,
    twin: LogitsFn | None,
    folder: Path | None,
) -> Checked | None:
    radii = [epsilon for _, epsilon in loop.balls if epsilon > 0]
    if examples < 1:
        raise ValueError(f"check_examples must be at least 1; got {examples}")
    if wanted is False or not radii or loop.first is None:
        return None
    return checked(
        loop.measure,
        loop.first,
        max(radii),
        CheckSettings() if wanted is True else wanted,
        examples=examples,
        twin=twin,
        identity=loop.identity,
        path=None if folder is None else folder / "checks.json",
    )


def _result(loop: Loop, made: Checked | None, folder: Path | None) -> Robustness:
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
        checks=made.findings if made else (),
        curve=made.curve if made else {},
        per_example=results,
        settings=settings,
        out=folder,
    )
