"""Square Attack (Andriushchenko et al. 2020): random search that asks for logits only.

Where gradients are masked it sees what gradient attacks do not.  Sizes and places of the squares
are traced, so that nothing compiles anew as they shrink.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm.attacks import _geometry as geometry
from steinnorm.attacks._ball import Ball
from steinnorm.attacks._criterion import Criterion, for_batch, share_reached
from steinnorm.attacks._inputs import Problem, check_finite, resolve_batch_dependence
from steinnorm.attacks._model import LogitsFn, traced_logits
from steinnorm.attacks._progress import OnProgress, Tick
from steinnorm.attacks._survivors import Kept, bucket, gather, padded
from steinnorm.attacks.losses import check_loss, per_example
from steinnorm.attacks.threat import AttackResult, Threat

# After how many of 10 000 queries the share of the input that a square covers is halved.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE_QUERIES = 10_000
_LOOK_EVERY = 25  # queries between two looks at what is broken, which wait for the device
_TELL_EVERY = 50
_TILES = 5  # per axis, of the Euclidean start

Sides = Sequence[int | jax.Array]
"""Extent of a window along each spatial axis."""


def square(
    logits_fn: LogitsFn,
    x: jax.Array,
    y: jax.Array,
    *,
    threat: Threat,
    key: jax.Array | None = None,
    queries: int = 5000,
    p_init: float = 0.8,
    restarts: int = 1,
    loss: str = "margin",
    batch_dependent: bool | None = None,
    rescale_schedule: bool = True,
    on_progress: OnProgress | None = None,
) -> AttackResult:
    """Random squares, each kept where the loss grows (Andriushchenko et al. 2020, algorithm 1).

    Algorithms 2 (Linf) and 3 (L2) there propose the changes, with the settings of AutoAttack
    (Croce & Hein 2020b).  Squares become cubes in volumes and intervals in features; along an axis
    that is shorter than the square's side they span the whole of it.  Unlike in the published
    code, each example has its own squares, and these reach the last row and column.

    Each example keeps the point in which the attack has most of what it wants and, of those, the
    one of the largest loss.  Where no example's logits hang on the others, broken ones leave the
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
      batch_dependent: whether an example's logits change with its companions; None to find out.
      rescale_schedule: stretch the schedule of the squares' sizes, made for 10 000 queries, to
        ``queries``.
      on_progress: called now and then.

    Raises:
      ValueError: as in ``fgsm``, or queries, p_init or restarts out of range.
    """
    if queries < 1 or restarts < 1:
        raise ValueError(f"queries and restarts must be at least 1; got {queries} and {restarts}")
    if not 0 < p_init <= 1:
        raise ValueError(f"p_init must lie in (0, 1]; got {p_init}")
    key = jax.random.key(0) if key is None else key
    problem = Problem.of(logits_fn, x, y, threat)
    check_loss(loss, problem.classes, problem.label_axes, targeted=False)
    joint = resolve_batch_dependence(problem, batch_dependent)
    kept = Kept(problem.x, for_batch(share_reached(problem.logits, problem.criterion), joint))
    schedule = [
        _sides(
            p_init * _factor(number, queries if rescale_schedule else _SCHEDULE_QUERIES),
            _grid(problem.x.shape)[1:-1],
            threat.norm,
        )
        for number in range(queries - 1)
    ]
    for restart in range(restarts):
        tick = Tick(on_progress, restart * queries, restarts * queries)
        run = _Run(problem, jax.random.fold_in(key, restart), loss, joint)
        run.follow(schedule, kept, tick)
        tick(queries)
    return problem.result(jnp.asarray(kept.x))


class _Batch(NamedTuple):
    """Some of the examples, and their positions in the whole batch."""

    x: jax.Array
    criterion: Criterion
    position: jax.Array


class _State(NamedTuple):
    """Of each example: where the search is, and the worst that it has seen."""

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
        self._goal = problem.criterion_for(loss)
        self._ball = Ball.of(problem.threat)
        self._loss = loss

    def follow(self, schedule: list[tuple[int, ...]], kept: Kept, tick: Tick) -> None:
        """Offers what it finds to ``kept``; a proposal for each entry of the schedule."""
        norm, everything = self._problem.threat.norm, np.arange(len(self._problem.x))
        index = kept.standing
        if self._joint and len(index):
            index = everything
        if not len(index):
            return
        rows = padded(index, bucket(len(index), len(everything)))
        whole = _Batch(self._problem.x, self._goal, jnp.asarray(everything, jnp.int32))
        batch = gather(whole, rows)
        shape = _grid(whole.x.shape)
        draws = _uniform(self._key, 0, shape=(len(everything), *_start_draws(shape, norm)))
        start = _start(draws, batch, self._ball, norm=norm)
        state = _nowhere(batch, self._problem.logits.dtype)
        state = self._ask(state, start, batch.criterion)
        for query, sides in enumerate(schedule, start=1):
            if query % _LOOK_EVERY == 0 or query == 1:
                every = (_LOOK_EVERY, len(everything), _draws(shape))
                draws = _uniform(self._key, query, shape=every)
                left = np.flatnonzero(np.asarray(state.found_share)[: len(index)] < 1)
                if not len(left):
                    break
                check_finite(np.asarray(state.broken)[: len(index)], "logits")
                size = len(rows) if self._joint else bucket(len(left), len(everything))
                if size < len(rows):
                    kept.offer(index, state.found, state.found_share, state.found_loss)
                    index, rows = index[left], padded(left, size)
                    state, batch = gather((state, batch), rows)
            if query % _TELL_EVERY == 0:
                tick(query)
            random = (draws, query % _LOOK_EVERY)
            proposal = _propose(random, batch, state.at, (sides, self._ball), norm=norm)
            state = self._ask(state, proposal, batch.criterion)
        check_finite(np.asarray(state.broken)[: len(index)], "logits")
        kept.offer(index, state.found, state.found_share, state.found_loss)

    def _ask(self, state: _State, proposal: jax.Array, criterion: Criterion) -> _State:
        model = self._problem.model
        return _absorb(model, state, proposal, criterion, loss=self._loss, joint=self._joint)


def _nowhere(batch: _Batch, dtype: jnp.dtype) -> _State:
    """The state before the first query; ``dtype`` is that of the logits."""
    nothing = jnp.full(len(batch.x), -jnp.inf, dtype)
    return _State(batch.x, nothing, batch.x, nothing, nothing, jnp.zeros(len(batch.x), bool))


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
    value = for_batch(per_example(loss, logits, criterion), joint)
    share = for_batch(share_reached(logits, criterion), joint)
    still = state.found_share < 1
    better = still & ((value > state.loss) | (share >= 1))
    worst = still & (
        (share > state.found_share) | ((share == state.found_share) & (value > state.found_loss))
    )
    return _State(
        at=jnp.where(geometry.per_example(better, proposal), proposal, state.at),
        loss=jnp.where(better, value, state.loss),
        found=jnp.where(geometry.per_example(worst, proposal), proposal, state.found),
        found_share=jnp.where(worst, share, state.found_share),
        found_loss=jnp.where(worst, value, state.found_loss),
        broken=state.broken | (still & ~jnp.isfinite(value)),
    )


def _factor(number: int, queries: int) -> float:
    """By what ``p_init`` is multiplied at a proposal."""
    scaled = int(number / queries * _SCHEDULE_QUERIES)
    return 0.5 ** sum(scaled > after for after in _HALVED_AFTER)


def _sides(p: float, spatial: tuple[int, ...], norm: str) -> tuple[int, ...]:
    """Extents of a window that covers a share ``p`` of the input."""
    side = max(round((p * float(np.prod(spatial))) ** (1 / len(spatial))), 1)
    if norm == "l2":  # a bump and a dent around centres
        side = max(side, 3)
        side += 1 - side % 2
    return tuple(min(side, size) for size in spatial)


def _grid(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(B, *spatial, C); features are one spatial axis with one channel."""
    return (*shape, 1) if len(shape) == 2 else shape


@functools.partial(jax.jit, static_argnames="norm")
def _start(draws: jax.Array, batch: _Batch, ball: Ball, *, norm: str) -> jax.Array:
    """Stripes across the last spatial axis (Linf), or a grid of bumps (L2)."""
    x, draws = batch.x, draws[batch.position]
    shape = _grid(x.shape)
    axes, channels = len(shape) - 2, shape[-1]
    if norm != "l2":
        signs = _signs(draws)
        stripes = signs.reshape(shape[0], *(1,) * (axes - 1), shape[-2], channels)
        delta = jnp.broadcast_to(stripes.astype(x.dtype), shape) * ball.epsilon
    else:
        tile, places, sides = _tiles(shape[1:-1])
        draws = draws[:, tile.reshape(-1)].reshape(*shape[:-1], channels + 1)
        which = (draws[..., :1] * axes).astype(jnp.int32)
        bumps = _bumps([jnp.asarray(place) for place in places], sides, which)
        delta = bumps.astype(x.dtype) * _signs(draws[..., 1:]).astype(x.dtype)
        delta = ball.epsilon * geometry.ascent(delta, "l2")
    return geometry.project(x + delta.reshape(x.shape), x, norm, ball.epsilon, ball.bounds)


def _start_draws(shape: tuple[int, ...], norm: str) -> tuple[int, ...]:
    """Random numbers that each example's start needs: a stripe's sign, or a tile's and its axis."""
    if norm != "l2":
        return (shape[-2] * shape[-1],)
    return (int(_tiles(shape[1:-1])[0].max()) + 1, shape[-1] + 1)


def _draws(shape: tuple[int, ...]) -> int:
    """Random numbers that each example's proposal needs: two corners, an axis, channels' signs."""
    return 2 * (len(shape) - 2) + 1 + shape[-1]


def _tiles(spatial: tuple[int, ...]) -> tuple[np.ndarray, list[np.ndarray], tuple[int, ...]]:
    """A centred grid of tiles: number of the tile and place in it of each pixel, and extents."""
    tile, places = np.zeros(spatial, int), []
    sides = tuple(max(size // _TILES, 1) for size in spatial)
    for axis, (size, side) in enumerate(zip(spatial, sides, strict=True)):
        count = min(_TILES, size)
        offset = np.arange(size) - (size - count * side) // 2
        inside = (offset >= 0) & (offset < count * side)
        shape = np.ones(len(spatial) + 2, int)
        shape[axis + 1] = size
        # A place that is not in the tile is in no window either.
        places.append(np.where(inside, offset % side, -size - 1).reshape(shape))
        number = np.clip(offset // side, 0, count - 1).reshape(shape[1:-1])
        tile = tile * count + number
    return tile, places, sides


@functools.partial(jax.jit, static_argnames="norm")
def _propose(
    random: tuple[jax.Array, int],
    batch: _Batch,
    at: jax.Array,
    limits: tuple[Sides, Ball],
    *,
    norm: str,
) -> jax.Array:
    """The point with a square changed in each example; ``random``: draws, and which of them."""
    x, (sides, ball) = batch.x, limits
    shape = _grid(x.shape)
    axes, channels = len(shape) - 2, shape[-1]
    draws = random[0][random[1], batch.position]
    signs = _signs(draws[:, 2 * axes + 1 :]).astype(x.dtype)
    signs = signs.reshape(shape[0], *(1,) * axes, channels)
    places = _window(draws[:, :axes], sides, shape)
    inside = _inside(places, sides)
    origin, now = x.reshape(shape), at.reshape(shape)
    if norm != "l2":
        proposal = now + jnp.where(inside, 2 * ball.epsilon * signs, 0.0)
    else:
        which = geometry.per_example((draws[:, 2 * axes] * axes).astype(jnp.int32), origin)
        fresh = _bumps(places, sides, which).astype(x.dtype) * signs
        taken = _inside(_window(draws[:, axes : 2 * axes], sides, shape), sides)
        delta = _moved_mass(now - origin, fresh, (inside, taken), ball.epsilon)
        proposal = origin + ball.epsilon * geometry.ascent(delta, "l2")
    return geometry.project(proposal.reshape(x.shape), x, norm, ball.epsilon, ball.bounds)


def _moved_mass(
    delta: jax.Array, fresh: jax.Array, windows: tuple[jax.Array, jax.Array], epsilon: float
) -> jax.Array:
    """Algorithm 3: the second window's budget, and what is not spent, goes into the first."""
    inside, taken = windows
    fresh = _unit(fresh + _unit(jnp.where(inside, delta, 0.0)))
    spent = jnp.sum(delta**2, axis=tuple(range(1, delta.ndim)), keepdims=True)
    unspent = jnp.maximum(epsilon**2 - spent, 0) / delta.shape[-1]
    there = _over_space(jnp.where(inside | taken, delta, 0.0))
    fresh = fresh * jnp.sqrt(unspent + there)
    return jnp.where(inside, fresh, jnp.where(taken, 0.0, delta))


@functools.partial(jax.jit, static_argnames="shape")
def _uniform(key: jax.Array, number: int, *, shape: tuple[int, ...]) -> jax.Array:
    """Draws from [0, 1) for the whole batch, so that an example's do not hang on who is left."""
    return jax.random.uniform(jax.random.fold_in(key, number), shape, jnp.float32)


def _signs(draws: jax.Array) -> jax.Array:
    return jnp.where(draws < 0.5, -1.0, 1.0)


def _window(draws: jax.Array, sides: Sides, shape: tuple[int, ...]) -> list[jax.Array]:
    """For each axis the places of pixels relative to a window's corner, to broadcast."""
    places = []
    for axis, (size, side) in enumerate(zip(shape[1:-1], sides, strict=True)):
        last = jnp.asarray(size - side, jnp.int32)
        room = (last + 1).astype(draws.dtype)
        corner = jnp.minimum((draws[:, axis] * room).astype(jnp.int32), last)
        place = jnp.arange(size, dtype=jnp.int32)[None, :] - corner[:, None]
        others = [a for a in range(1, len(shape)) if a != axis + 1]
        places.append(jnp.expand_dims(place, others))
    return places


def _inside(places: list[jax.Array], sides: Sides) -> jax.Array:
    """Which pixels lie in the window, (B, *spatial, 1)."""
    each = [(place >= 0) & (place < side) for place, side in zip(places, sides, strict=True)]
    return functools.reduce(jnp.logical_and, jnp.broadcast_arrays(*each))


def _bumps(places: list[jax.Array], sides: Sides, which: jax.Array) -> jax.Array:
    """A bump in one half of the window, a dent in the other; ``which`` axis is cut in half."""
    total = jnp.zeros((1,) * which.ndim, jnp.float32)
    for axis, side in enumerate(sides):
        half = side // 2
        shifted = [place - half if a == axis else place for a, place in enumerate(places)]
        lower = [half if a == axis else s for a, s in enumerate(sides)]
        upper = [side - half if a == axis else s for a, s in enumerate(sides)]
        both = _unit(_pyramid(places, lower)) - _unit(_pyramid(shifted, upper))
        total = jnp.where(which == axis, both, total)
    return _unit(total)


def _pyramid(places: list[jax.Array], sides: Sides) -> jax.Array:
    """Rings around the window's centre, each of height 1 / k^2 and upon the one outside of it."""
    longest = sum(max(place.shape) for place in places) + 2
    heights = np.cumsum([0.0] + [1 / k**2 for k in range(1, longest)]).astype(np.float32)
    each = [jnp.abs(place - side // 2) for place, side in zip(places, sides, strict=True)]
    ring = functools.reduce(jnp.maximum, jnp.broadcast_arrays(*each))
    rings = functools.reduce(jnp.maximum, [jnp.asarray(side // 2 + 1, jnp.int32) for side in sides])
    table = jnp.asarray(heights)
    return jnp.where(_inside(places, sides), table[rings] - table[jnp.minimum(ring, rings)], 0.0)


def _over_space(delta: jax.Array) -> jax.Array:
    """Sum of squares over the spatial axes, for each channel."""
    return jnp.sum(delta**2, axis=tuple(range(1, delta.ndim - 1)), keepdims=True)


def _unit(delta: jax.Array) -> jax.Array:
    """Each channel at length one; zero stays zero."""
    length = jnp.sqrt(_over_space(delta))
    return delta / jnp.where(length > 0, length, 1)
