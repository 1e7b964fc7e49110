"""Square Attack (Andriushchenko et al. 2020): random search that uses logits but no gradients.

It finds errors that gradient attacks miss when gradients are masked. Differences from the paper and
from the authors' code:

1. Each example has its own squares, and these reach the last row and column.
2. Squares become cubes in volumes and intervals in features.
3. A proposal is accepted if the loss increases or the example is broken; broken examples leave.
4. The schedule of square sizes, made for 10,000 queries, is rescaled to the number of queries
   unless ``rescale_schedule=False``.
5. If an example's logits depend on its companions, a proposal is accepted for the whole batch or
   not at all.
6. The default loss is the margin for every norm, also with a target; label maps can use any loss
   that is defined for them.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm.attacks._arguments import check_counts, check_key
from steinnorm.attacks._criterion import Criterion, mean_if_joint, success_share
from steinnorm.attacks._dependence_check import resolve_batch_dependence
from steinnorm.attacks._explicit_meshes import full_like
from steinnorm.attacks._inputs import Problem, check_finite
from steinnorm.attacks._model import LogitsFn, traced_logits
from steinnorm.attacks._progress import OnProgress, RunProgress
from steinnorm.attacks._square_proposals import (
    grid,
    proposal_draws,
    propose,
    sides_of,
    start,
    start_draws,
    uniform,
)
from steinnorm.attacks._survivors import (
    WorstInputs,
    is_worse,
    pad_indices,
    padded_size,
    place_like,
    shard_count,
    take_rows,
    where,
)
from steinnorm.attacks.losses import check_loss, per_example
from steinnorm.attacks.result import AttackResult
from steinnorm.attacks.threat import Threat

# Numbers of queries, of 10,000, after which the area of the squares is halved.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE_QUERIES = 10_000
_CHECK_EVERY = 25  # queries between two checks of what is broken; each check waits for the device
_PROGRESS_EVERY = 50  # queries between two progress reports


def square(
    logits_fn: LogitsFn,
    x: ArrayLike,
    y: ArrayLike,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    queries: int = 5000,
    p_init: float = 0.8,
    restarts: int = 1,
    loss: str = "margin",
    target: ArrayLike | None = None,
    batch_dependent: bool | None = None,
    rescale_schedule: bool = True,
    on_progress: OnProgress | None = None,
) -> AttackResult:
    """Changes random squares and keeps changes that increase the loss (Andriushchenko et al. 2020).

    Changes are proposed by algorithms 2 (Linf) and 3 (L2) there, with the settings of AutoAttack
    (Croce & Hein 2020b). Squares become cubes in volumes and intervals in features, and span an
    axis that is shorter than their side. Unlike in the published code, each example has its own
    squares, and these reach the last row and column.

    Each example keeps the point in which the attack succeeds on most of its labels and, among
    those, the point of the largest loss. If no example's logits depend on the others, broken
    examples leave the batch. If they do, a change is kept for the whole batch or not at all.

    Args:
      logits_fn: maps a batch to logits; as in ``fgsm``.
      x: inputs ``(B, *spatial, C)``, or features (B, F); floating, within ``threat.bounds``.
      y: true labels; as in ``fgsm``.
      threat: ball and box.
      key: random key of starts and squares; None means ``jax.random.key(0)``.
      queries: forward passes per run, including that of the start.
      p_init: share of the input that the first squares cover, in (0, 1].
      restarts: number of runs.
      loss: a name in ``steinnorm.attacks.losses.LOSSES``.
      target: labels that a targeted attack aims for, shape of ``y``; None for an untargeted one.
      batch_dependent: whether an example's logits depend on the rest of the batch; None to test it.
      rescale_schedule: whether the schedule of square sizes, made for 10,000 queries, is rescaled
        to ``queries``.
      on_progress: called from time to time with the completed queries and all queries.

    Returns:
      The attacked batch and its success.

    Raises:
      ValueError: as in ``fgsm``; or queries, p_init or restarts are out of range.

    Warns:
      BatchDependenceWarning, RadiusWarning, ProbabilitiesWarning, RandomLogitsWarning: as in
        ``fgsm``.

    Example:
      >>> import jax.numpy as jnp
      >>> from steinnorm.attacks import Threat, square
      >>> x, y = jnp.array([[0.75, 0.5], [0.9, 0.1]]), jnp.array([0, 0])
      >>> square(lambda x: 4 * x, x, y, threat=Threat("linf", 0.25), queries=50).success
      Array([ True, False], dtype=bool)
    """
    check_key(key)
    check_counts(queries=queries, restarts=restarts)
    if not 0 < p_init <= 1:
        raise ValueError(f"p_init must lie in (0, 1]; got {p_init}")
    problem = Problem.of(logits_fn, x, y, threat, target)
    check_loss(loss, problem.classes, problem.label_axes, targeted=target is not None)
    x_adv = run_square(
        problem,
        jax.random.key(0) if key is None else key,
        joint=resolve_batch_dependence(problem, batch_dependent),
        queries=queries,
        p_init=p_init,
        restarts=restarts,
        loss=loss,
        rescale_schedule=rescale_schedule,
        on_progress=on_progress,
    )
    return problem.result(x_adv)


def run_square(
    problem: Problem,
    key: jax.Array,
    *,
    joint: bool,
    queries: int,
    p_init: float = 0.8,
    restarts: int = 1,
    loss: str = "margin",
    rescale_schedule: bool = True,
    on_progress: OnProgress | None = None,
) -> jax.Array:
    """Runs the attack on a checked problem; the other arguments are those of ``square``.

    Returns:
      The attacked inputs.
    """
    worst = WorstInputs(problem.x, problem.success_share(joint=joint))
    length = queries if rescale_schedule else _SCHEDULE_QUERIES
    spatial, norm = grid(problem.x.shape)[1:-1], problem.threat.norm
    schedule = [
        sides_of(p_init * _size_factor(number, length), spatial, norm)
        for number in range(queries - 1)
    ]
    for restart in range(restarts):
        progress = RunProgress(on_progress, restart * queries, restarts * queries)
        run = _Run(problem, jax.random.fold_in(key, restart), loss, joint)
        run.follow(schedule, worst, progress)
        progress(queries)
    return place_like(worst.x, problem.x)


class _State(NamedTuple):
    """State of the search, with one entry per example.

    Attributes:
      point: current points, (B, ...).
      loss: loss at ``point``.
      result_point: worst point for the model so far, which the attack returns.
      result_share: share of the labels on which the attack succeeds there.
      result_loss: loss there.
      not_finite: whether any loss was NaN or infinite.
    """

    point: jax.Array
    loss: jax.Array
    result_point: jax.Array
    result_share: jax.Array
    result_loss: jax.Array
    not_finite: jax.Array


class _Run:
    """One random search on the examples that are not broken yet."""

    def __init__(self, problem: Problem, key: jax.Array, loss: str, joint: bool):
        self._problem, self._key, self._joint = problem, key, joint
        self._criterion = problem.criterion_for(loss, joint=joint)
        self._loss = loss

    def follow(
        self, schedule: list[tuple[int, ...]], worst: WorstInputs, progress: RunProgress
    ) -> None:
        """Makes one proposal per entry of the schedule and updates ``worst`` with the results."""
        x, threat, total = self._problem.x, self._problem.threat, len(self._problem.x)
        positions = worst.unbroken
        if self._joint and len(positions):
            positions = np.arange(total)
        if not len(positions):
            return
        multiple = shard_count(x)
        indices = pad_indices(positions, padded_size(len(positions), total, multiple))
        batch_positions = indices  # random numbers are drawn for the whole batch
        batch, criterion = take_rows((x, self._criterion), indices)
        shape = grid(x.shape)
        draws = uniform(self._key, 0, shape=(total, *start_draws(shape, threat.norm)))
        state = _initial_state(batch, criterion.y, self._problem.logits.dtype)
        state = self._query(state, start(draws, batch, batch_positions, threat), criterion)
        for query, sides in enumerate(schedule, start=1):
            if query % _CHECK_EVERY == 0 or query == 1:
                shape_of_draws = (_CHECK_EVERY, total, proposal_draws(shape))
                draws = uniform(self._key, query, shape=shape_of_draws)
                unbroken = np.flatnonzero(np.asarray(state.result_share)[: len(positions)] < 1)
                if not len(unbroken):
                    break
                check_finite(np.asarray(state.not_finite)[: len(positions)], "logits")
                size = len(indices) if self._joint else padded_size(len(unbroken), total, multiple)
                if size < len(indices):
                    worst.update(
                        positions, state.result_point, state.result_share, state.result_loss
                    )
                    positions, indices = positions[unbroken], pad_indices(unbroken, size)
                    batch_positions = batch_positions[indices]
                    state, batch, criterion = take_rows((state, batch, criterion), indices)
            if query % _PROGRESS_EVERY == 0:
                progress(query)
            draws_of_query = _draws_of(draws, query % _CHECK_EVERY, batch_positions)
            state = self._query(
                state, propose(draws_of_query, batch, state.point, sides, threat), criterion
            )
        check_finite(np.asarray(state.not_finite)[: len(positions)], "logits")
        worst.update(positions, state.result_point, state.result_share, state.result_loss)

    def _query(self, state: _State, proposal: jax.Array, criterion: Criterion) -> _State:
        model = self._problem.model
        return _accept_if_better(
            model, state, proposal, criterion, loss=self._loss, joint=self._joint
        )


@jax.jit
def _draws_of(draws: jax.Array, query: int, batch_positions: np.ndarray) -> jax.Array:
    """Returns the random numbers of some examples for one query."""
    return draws[query, batch_positions]


@functools.partial(jax.jit, static_argnames="dtype")
def _initial_state(x: jax.Array, y: jax.Array, dtype: jnp.dtype) -> _State:
    """Returns the state before the first query; ``dtype`` is that of the logits."""
    like = y[(slice(None), *(0,) * (y.ndim - 1))]
    minus_infinity = full_like(like, -jnp.inf, dtype)
    no = full_like(like, False, bool)
    return _State(x, minus_infinity, x, minus_infinity, minus_infinity, no)


@functools.partial(jax.jit, static_argnames=("loss", "joint"))
def _accept_if_better(
    model: jax.tree_util.Partial,
    state: _State,
    proposal: jax.Array,
    criterion: Criterion,
    *,
    loss: str,
    joint: bool,
) -> _State:
    """Evaluates a proposal and accepts it for the examples whose loss it increases."""
    logits = traced_logits(model, proposal)
    value = per_example(loss, logits, criterion, joint=joint)
    share = mean_if_joint(success_share(logits, criterion), joint)
    unbroken = state.result_share < 1
    better = unbroken & ((value > state.loss) | (share >= 1))
    worse = unbroken & is_worse(share, value, state.result_share, state.result_loss)
    return _State(
        point=where(better, proposal, state.point),
        loss=jnp.where(better, value, state.loss),
        result_point=where(worse, proposal, state.result_point),
        result_share=jnp.where(worse, share, state.result_share),
        result_loss=jnp.where(worse, value, state.result_loss),
        not_finite=state.not_finite | (unbroken & ~jnp.isfinite(value)),
    )


def _size_factor(number: int, queries: int) -> float:
    """Returns the factor of ``p_init`` at a proposal."""
    scaled = int(number / queries * _SCHEDULE_QUERIES)
    return 0.5 ** sum(scaled > after for after in _HALVED_AFTER)
