"""One norm layer and the ReLU behind it, as functions that can be compiled for any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from steinnorm.linen import SteinBatchNorm

REFERENCE = "flax"
FORWARD, TRAINING = "forward", "forward + backward"


def layer(norm: str, dtype: str, axis_name: str | None = None) -> nn.Module:
    """Returns the layer in training, Flax's or ours with the shrinkage of that name."""
    settings: dict[str, Any] = {"dtype": jnp.dtype(dtype), "axis_name": axis_name}
    if norm == REFERENCE:
        return nn.BatchNorm(use_running_average=False, **settings)
    return SteinBatchNorm(use_running_average=False, shrinkage=norm, **settings)


def layer_at_test_time(source: str, dtype: str) -> nn.Module:
    """Returns Flax's layer at test time, or ours with statistics of that source."""
    settings: dict[str, Any] = {"use_running_average": True, "dtype": jnp.dtype(dtype)}
    if source == REFERENCE:
        return nn.BatchNorm(**settings)
    return SteinBatchNorm(test_statistics=source, shrinkage="none", **settings)  # type: ignore[arg-type]


def arguments(module: nn.Module, shape: tuple[int, ...], dtype: str) -> tuple[Any, Any]:
    """Returns shapes of the layer's variables and of its input."""
    x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    return jax.eval_shape(module.init, jax.random.key(0), x), x


def in_training(module: nn.Module, mode: str) -> Callable[..., Any]:
    """Returns a function of the variables and the input.

    Args:
      module: a layer in training.
      mode: ``FORWARD``; or ``TRAINING`` for the gradients of input and parameters, with the weights
        of a linear loss as a third argument.
    """

    def forward(variables: Any, x: jax.Array) -> Any:
        y, updated = module.apply(variables, x, mutable=["batch_stats"])
        return nn.relu(y), updated

    def training(variables: Any, x: jax.Array, weights: jax.Array) -> Any:
        # Linear behind the ReLU, with given weights: any other loss would add arrays of its own.
        def loss(params: Any, x: jax.Array) -> Any:
            y, updated = forward({**variables, "params": params}, x)
            return jnp.sum(y * weights, dtype=jnp.float32), updated

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

    return forward if mode == FORWARD else training


def at_test_time(module: nn.Module, mode: str) -> Callable[..., Any]:
    """Returns the same function of a layer at test time, whose statistics stay as they are.

    Args:
      module: a layer at test time.
      mode: ``FORWARD``, or ``TRAINING`` for the gradients of input and parameters as well.
    """

    def forward(variables: Any, x: jax.Array) -> jax.Array:
        y: Any = module.apply(variables, x)
        return nn.relu(y)

    def gradients(variables: Any, x: jax.Array, weights: jax.Array) -> Any:
        def loss(params: Any, x: jax.Array) -> jax.Array:
            y = forward({**variables, "params": params}, x)
            return jnp.sum(y * weights, dtype=jnp.float32)

        return jax.value_and_grad(loss, argnums=(0, 1))(variables["params"], x)

    return forward if mode == FORWARD else gradients
