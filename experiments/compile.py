"""How steps are compiled."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# XLA's own gradient of a 2-D convolution with respect to the kernel is slow on CPUs.  With the
# matrix products of the YNNPACK library a training step of ResNet-9 took 0.30 of the time at width
# 64 and 0.51 at width 16 on 2 cores, one of the paper's HRNet 0.72 on the same cores when busy;
# the products of the 3-D network's patches took 5.5 times as long, so it is not for all
# (python -m benchmarks.compiler_options).
#
# Not for everything.  In jaxlib 0.10.2 the option reads memory that nobody wrote for a product
# whose right side is one number, repeated, as in ``x @ jnp.ones((192, 5))``.  Training steps are of
# our own networks, whose weights are arguments and not affected.  Functions that others hand in may
# hold such constants: evaluations are compiled with XLA's defaults, and the steps of attacks are
# compared with them first (``compiled``).
_CPU_2D = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
_WORTH_TWO_COMPILATIONS = 100_000  # values in a batch of inputs: some 32 images of CIFAR-10
_REMEMBERED = 256  # pairs of a model and a shape


def compiler_options(input_rank: int) -> dict[str, str]:
    """Options of ``jax.jit`` for a network on inputs of that rank, (B, H, W, C) being 4.

    Nothing where they are not for the device, or this version of XLA does not know them: they are
    experimental.
    """
    if jax.default_backend() != "cpu" or input_rank != 4:
        return {}
    return dict(_CPU_2D) if _known() else {}


@functools.cache
def jitted(function: Callable[..., Any], static_argnames: tuple[str, ...] = ()) -> Any:
    """``jax.jit(function)``, always the same object for the same function.

    Args:
      function: defined once, at the top of a module: each one is kept for good.
      static_argnames: as in ``jax.jit``.
    """
    return jax.jit(function, static_argnames=static_argnames)


def compiled(
    function: Callable[..., Any], x: jax.Array, static_argnames: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """``jitted(function)``, or where the inputs are worth it a faster form with the same results.

    The fast form is compiled with ``compiler_options``.  At the first call with arguments of some
    shape both forms run, the fast one twice, and it is taken if all that they return is the same
    but for rounding, in every example.

    Args:
      function: as in ``jitted``; returns arrays (B, ...), and is to take static arguments by name.
      x: the inputs (B, ...) of the network that it calls.
      static_argnames: as in ``jax.jit``.
    """
    if x.size < _WORTH_TWO_COMPILATIONS or not compiler_options(x.ndim):
        return jitted(function, static_argnames)
    return _compared(function, static_argnames, x.ndim)


class _Compared:
    """A function in two forms, of which the fast one must earn its trust."""

    def __init__(self, plain: Callable[..., Any], fast: Callable[..., Any]):
        self._plain, self._fast = plain, fast
        self._chosen: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, *arrays: Any, **static: Any) -> Any:
        leaves, structure = jax.tree.flatten(arrays)
        kinds = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        signature = (structure, kinds, tuple(sorted(static.items())))
        if signature in self._chosen:
            return self._chosen[signature](*arrays, **static)
        if len(self._chosen) == _REMEMBERED:  # models that nobody uses any more are let go
            self._chosen.clear()
        # Before and after: memory that nobody wrote may still hold what the plain form left there.
        before = self._fast(*arrays, **static)
        expected = self._plain(*arrays, **static)
        found = self._fast(*arrays, **static)
        same = all(jax.tree.all(jax.tree.map(_same, one, expected)) for one in (before, found))
        self._chosen[signature] = self._fast if same else self._plain
        return found if same else expected


@functools.cache
def _compared(
    function: Callable[..., Any], static_argnames: tuple[str, ...], input_rank: int
) -> _Compared:
    fast = jax.jit(
        function, static_argnames=static_argnames, compiler_options=compiler_options(input_rank)
    )
    return _Compared(jitted(function, static_argnames), fast)


def _same(found: jax.Array, expected: jax.Array) -> bool:
    """Whether the difference is rounding, and that a ReLU here and there makes more of it.

    NaN is never the same, infinity only as itself.
    """
    a, b = (np.asarray(v, np.float64).reshape(v.shape[0], -1) for v in (found, expected))
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        difference = np.linalg.norm(np.where(a == b, 0, a - b), axis=1)
    size = np.linalg.norm(np.where(np.isinf(b), 0, b), axis=1)
    size += 1e-6 * size.max(initial=0)  # what is next to nothing is rounded more
    return bool(np.all(difference <= 0.05 * size) and np.mean(difference <= 1e-4 * size) >= 0.9)


@functools.cache
def _known() -> bool:
    try:
        jax.jit(jnp.negative, compiler_options=_CPU_2D).lower(jnp.float32(0)).compile()
    except Exception:  # whatever class this version has for an option that it does not know
        return False
    return True
