"""Square Attack (Andriushchenko et al. 2020): random search that asks for logits only.

Where gradients are masked it sees what gradient attacks do not. Where it departs from the paper and
from the authors' code:

1. Each example has its own squares, and these reach the last row and column.
2. Squares become cubes in volumes and intervals in features.
3. A proposal is kept if the loss grows or the example is broken; an example leaves once it is.
4. Without ``rescale_schedule=False`` the schedule of the sizes, made for 10,000 queries, is
   stretched to the number of queries.
5. Where an example's logits depend on its companions, a proposal is kept for the whole batch, or
   not at all.
6. The loss is the margin for every norm, also with a target; label maps take any loss for them.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from steinnorm.attacks._criterion import Criterion, for_batch, share_reached
from steinnorm.attacks._dependence_check import resolve_batch_dependence
from steinnorm.attacks._inputs import Problem, check_finite, check_key
from steinnorm.attacks._model import LogitsFn, traced_logits
from steinnorm.attacks._progress import OnProgress, Tick
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
    Worst,
    bucket,
    is_worse,
    padded,
    placed_like,
    shards,
    take_rows,
    where,
)
from steinnorm.attacks.losses import check_loss, per_example
from steinnorm.attacks.result import AttackResult
from steinnorm.attacks.threat import Threat

# After how many of 10 000 queries the share of the input that a square covers is halved.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE_QUERIES = 10_000
_LOOK_EVERY = 25  # queries between two looks at what is broken, which wait for the device
_TELL_EVERY = 50


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
    """Tries random squares, each kept where the loss grows (Andriushchenko et al. 2020).

    Algorithms 2 (Linf) and 3 (L2) there propose the changes, with the settings of AutoAttack
    (Croce & Hein 2020b).  Squares become cubes in volumes and intervals in features; along an axis
    that is shorter than the square's side they span the whole of it.  Unlike in the published
    code, each example has its own squares, and these reach the last row and column.

    Each example keeps the point in which the attack has most of what it wants and, of those, the
    one of the largest loss.  Where no example's logits depend on the others, broken ones leave the
    batch.  Where they do, a proposal is kept for the whole batch, or not at all.

    Args:
      logits_fn: maps a batch to logits; as in ``fgsm``.
      x: inputs (B, *spatial, C), or features (B, F); floating, within ``threat.bounds``.
      y: the right labels; as in ``fgsm``.
      threat: the ball and the box.
      key: randomness of starts and squares.
      queries: forward passes per run, that of the start included.
      p_init: share of the input that the first squares cover.
      restarts: number of runs.
      loss: a name of ``steinnorm.attacks.losses.LOSSES``.
      target: wanted labels, of the shape of ``y``; None for any wrong ones.
      batch_dependent: whether an example's logits change with its companions; None to find out.
      rescale_schedule: stretch the schedule of the squares' sizes, made for 10 000 queries, to
        ``queries``.
      on_progress: called now and then.

    Raises:
      ValueError: as in ``fgsm``, or queries, p_init or restarts out of range.
    """
    check_key(key)
    if queries < 1 or restarts < 1:
        raise ValueError(f"queries and restarts must be at least 1; got {queries} and {restarts}")
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
    """Runs the attack on a problem; the arguments are those of ``square``, checked already.

    Returns:
      The attacked inputs.
    """
    kept = Worst(problem.x, for_batch(share_reached(problem.logits, problem.criterion), joint))
    length = queries if rescale_schedule else _SCHEDULE_QUERIES
    spatial, norm = grid(problem.x.shape)[1:-1], problem.threat.norm
    schedule = [
        sides_of(p_init * _factor(number, length), spatial, norm) for number in range(queries - 1)
    ]
    for restart in range(restarts):
        tick = Tick(on_progress, restart * queries, restarts * queries)
        run = _Run(problem, jax.random.fold_in(key, restart), loss, joint)
        run.follow(schedule, kept, tick)
        tick(queries)
    return placed_like(kept.x, problem.x)


class _State(NamedTuple):
    """Holds for each example where the search is, and the worst that it has seen."""

    at: jax.Array
    loss: jax.Array
    found: jax.Array
    found_share: jax.Array
    found_loss: jax.Array
    broken: jax.Array


class _Run:
    """One random search of the examples that still stand."""

    def __init__(self, problem: Problem, key: jax.Array, loss: str, joint: bool):
        self._problem, self._key, self._joint = problem, key, joint
        self._criterion = problem.criterion_for(loss, joint=joint)
        self._loss = loss

    def follow(self, schedule: list[tuple[int, ...]], kept: Worst, tick: Tick) -> None:
        """Offers what it finds to ``kept``; a proposal for each entry of the schedule."""
        x, threat, total = self._problem.x, self._problem.threat, len(self._problem.x)
        index = kept.standing
        if self._joint and len(index):
            index = np.arange(total)
        if not len(index):
            return
        multiple = shards(x)
        rows = padded(index, bucket(len(index), total, multiple))
        position = rows  # in the whole batch, whose random numbers are drawn together
        batch, criterion = take_rows((x, self._criterion), rows)
        shape = grid(x.shape)
        draws = uniform(self._key, 0, shape=(total, *start_draws(shape, threat.norm)))
        state = _nowhere(batch, criterion.y, self._problem.logits.dtype)
        state = self._ask(state, start(draws, batch, position, threat), criterion)
        for query, sides in enumerate(schedule, start=1):
            if query % _LOOK_EVERY == 0 or query == 1:
                every = (_LOOK_EVERY, total, proposal_draws(shape))
                draws = uniform(self._key, query, shape=every)
                left = np.flatnonzero(np.asarray(state.found_share)[: len(index)] < 1)
                if not len(left):
                    break
                check_finite(np.asarray(state.broken)[: len(index)], "logits")
                size = len(rows) if self._joint else bucket(len(left), total, multiple)
                if size < len(rows):
                    kept.offer(index, state.found, state.found_share, state.found_loss)
                    index, rows = index[left], padded(left, size)
                    position = position[rows]
                    state, batch, criterion = take_rows((state, batch, criterion), rows)
            if query % _TELL_EVERY == 0:
                tick(query)
            own = _own(draws, query % _LOOK_EVERY, position)
            state = self._ask(state, propose(own, batch, state.at, sides, threat), criterion)
        check_finite(np.asarray(state.broken)[: len(index)], "logits")
        kept.offer(index, state.found, state.found_share, state.found_loss)

    def _ask(self, state: _State, proposal: jax.Array, criterion: Criterion) -> _State:
        model = self._problem.model
        return _absorb(model, state, proposal, criterion, loss=self._loss, joint=self._joint)


@jax.jit
def _own(draws: jax.Array, query: int, position: np.ndarray) -> jax.Array:
    """Returns the random numbers of some examples for one query."""
    return draws[query, position]


def _nowhere(x: jax.Array, y: jax.Array, dtype: jnp.dtype) -> _State:
    """Returns the state before the first query; ``dtype`` is that of the logits."""
    like = y[(slice(None), *(0,) * (y.ndim - 1))]
    nothing = jnp.full_like(like, -jnp.inf, dtype=dtype)
    return _State(x, nothing, x, nothing, nothing, jnp.zeros_like(like, dtype=bool))


@functools.partial(jax.jit, static_argnames=("loss", "joint"))
def _absorb(
    model: jax.tree_util.Partial,
    state: _State,
    proposal: jax.Array,
    criterion: Criterion,
    *,
    loss: str,
    joint: bool,
) -> _State:
    """Asks the model about a proposal and keeps it where it helps."""
    logits = traced_logits(model, proposal)
    value = per_example(loss, logits, criterion, joint=joint)
    share = for_batch(share_reached(logits, criterion), joint)
    still = state.found_share < 1
    better = still & ((value > state.loss) | (share >= 1))
    worst = still & is_worse(share, value, state.found_share, state.found_loss)
    return _State(
        at=where(better, proposal, state.at),
        loss=jnp.where(better, value, state.loss),
        found=where(worst, proposal, state.found),
        found_share=jnp.where(worst, share, state.found_share),
        found_loss=jnp.where(worst, value, state.found_loss),
        broken=state.broken | (still & ~jnp.isfinite(value)),
    )


def _factor(number: int, queries: int) -> float:
    """Returns by what ``p_init`` is multiplied at a proposal."""
    scaled = int(number / queries * _SCHEDULE_QUERIES)
    return 0.5 ** sum(scaled > after for after in _HALVED_AFTER)
