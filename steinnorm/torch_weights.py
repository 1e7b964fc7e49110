"""PyTorch's BatchNorm in and out: the state dict of 1d, 2d, 3d and SyncBatchNorm, without PyTorch.

- Names: weight, bias, running_mean and running_var are scale, bias, mean and var.
- Momentum is the share of the new value (0.1), Flax's that of the old: :func:`momentum_from_torch`.
- Epsilon (``eps``) is the same, 1e-5. Channels are on axis 1: move them last or give ``axis=1``.
- The recorded variance is unbiased (over N - 1), Flax's is biased (over N). Both normalise with
  the biased one in training and with the recorded one in inference, so a state dict copied as it
  is gives the same inference; ``count`` converts it for a training that goes on or is compared.

Example:
  >>> import jax.numpy as jnp
  >>> import numpy as np
  >>> from steinnorm.linen import SteinBatchNorm
  >>> state_dict = {  # torch.load("model.pt", weights_only=True), or model.state_dict()
  ...     "layer1.0.bn1.weight": np.full(3, 2.0, np.float32),
  ...     "layer1.0.bn1.bias": np.zeros(3, np.float32),
  ...     "layer1.0.bn1.running_mean": np.ones(3, np.float32),
  ...     "layer1.0.bn1.running_var": np.full(3, 4.0, np.float32),
  ...     "layer1.0.bn1.num_batches_tracked": np.array(10),
  ... }
  >>> batch_norms(state_dict)
  ['layer1.0.bn1']
  >>> variables = from_torch(state_dict, "layer1.0.bn1")
  >>> layer = SteinBatchNorm(use_running_average=True, momentum=momentum_from_torch(0.1))
  >>> print(layer.apply(variables, jnp.array([[1.0, 3.0, 5.0]])).round(3))
  [[0. 2. 4.]]
  >>> sorted(to_torch(variables))
  ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from steinnorm import _checks

__all__ = [
    "batch_norms",
    "from_torch",
    "load_torch",
    "momentum_from_torch",
    "momentum_to_torch",
    "to_torch",
]

# PyTorch's name -> Linen's collection and name; NNX names its attributes as Linen its variables.
_NAMES = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
# What PyTorch never writes alone. A weight without a bias is its BatchNorm(bias=False).
_NEEDS = {"bias": "weight", "running_mean": "running_var", "running_var": "running_mean"}
_DIGITS = 15  # 1 - 0.9 is 0.09999999999999998; rounded, momentum comes back as it went
_LISTED = 10  # layers named in a message; a ResNet-152 has 155


def from_torch(
    state_dict: Mapping[str, Any], prefix: str = "", *, count: float | None = None
) -> dict[str, dict[str, jax.Array]]:
    """Reads the Linen variables of one layer from a PyTorch state dict.

    Args:
      state_dict: names to arrays of NumPy, PyTorch or JAX, of one layer or of a whole model.
      prefix: where the layer is, as in :func:`batch_norms`: "layer1.0.bn1", "" for one layer alone.
      count: None copies running_var as it is, so that inference stays the same. The number N of
        values behind each channel's statistics in a training batch (B * H * W; over all devices
        with SyncBatchNorm) turns PyTorch's unbiased variance into Flax's biased one,
        var * (N - 1) / N.

    Returns:
      ``{"params": {"scale": (C,), "bias": (C,)}, "batch_stats": {"mean": (C,), "var": (C,)}}``,
      jax arrays that share no memory with the state dict. What PyTorch left out is left out: with
      affine=False "params", with bias=False "bias", with track_running_stats=False "batch_stats"
      (a layer with ``test_statistics="batch"`` does without in inference). bfloat16 becomes
      float32, which holds its values exactly; float64 stays only under ``jax_enable_x64``.

    Raises:
      TypeError: a state dict that is no mapping, arrays that are not floating.
      ValueError: no layer there, or half of one, shapes other than one (C,), a count of 1 or less.

    Example:
      >>> import numpy as np
      >>> bn = {"bn.running_mean": np.zeros(2), "bn.running_var": np.full(2, 8.0)}  # affine=False
      >>> print(from_torch(bn, "bn", count=4)["batch_stats"]["var"])
      [6. 6.]
    """
    norms = _norms_there(state_dict)
    start = _start(prefix)
    values = {name: state_dict[start + name] for name in _NAMES if start + name in state_dict}
    if not values:
        raise ValueError(
            f"Expected at least one of {', '.join(start + name for name in _NAMES)} in the state "
            f"dict; got none of them. {norms}"
        )
    arrays = _checked(values, lambda name: start + name, norms)
    _scale_variance(arrays, count, lambda n: (n - 1) / n)
    variables: dict[str, dict[str, jax.Array]] = {}
    for name, array in arrays.items():
        collection, flax_name = _NAMES[name]
        variables.setdefault(collection, {})[flax_name] = jnp.array(array)
    return variables


def to_torch(
    variables: Any,
    prefix: str = "",
    *,
    count: float | None = None,
    num_batches_tracked: int = 0,
) -> dict[str, np.ndarray]:
    """Writes one layer as the entries of a PyTorch state dict.

    PyTorch loads them, into a layer alone or with ``prefix`` into a model that has it, by
    ``model.load_state_dict(model.state_dict() | {k: torch.as_tensor(v) for k, v in d.items()})``,
    where ``d`` is the result or several of them merged with ``|``.

    Args:
      variables: Linen's variables of one layer as in :func:`from_torch`, or an NNX layer.
      prefix: where PyTorch's model has the layer: "layer1.0.bn1", "" for one layer alone.
      count: None copies the variance as it is, so that inference stays the same. The number N of
        values behind each channel's statistics in a training batch (B * H * W) turns Flax's
        biased variance into PyTorch's unbiased one, var * N / (N - 1).
      num_batches_tracked: number of training batches so far, which Flax does not know. PyTorch
        uses it with momentum=None only.

    Returns:
      NumPy arrays of shape (C,), copies, under PyTorch's names, and num_batches_tracked where there
      are running statistics. bfloat16 becomes float32, as NumPy has no bfloat16 that PyTorch reads;
      PyTorch rounds it back without loss when it loads into a bfloat16 layer.

    Raises:
      TypeError: arrays that are not floating, a num_batches_tracked that is no integer.
      ValueError: no variables of a batch norm, or half of one (PyTorch has no bias without a
        weight), shapes other than one (C,), a count of 1 or less.

    Example:
      >>> import numpy as np
      >>> stats = {"mean": np.zeros(2), "var": np.full(2, 6.0)}
      >>> print(to_torch({"batch_stats": stats}, "bn", count=4)["bn.running_var"])
      [8. 8.]
    """
    values = _values(variables)
    arrays = _checked(values, lambda name: "/".join(_NAMES[name]), "Give all variables of a layer.")
    _scale_variance(arrays, count, lambda n: n / (n - 1))
    if "running_var" in arrays:
        tracked = operator.index(num_batches_tracked)  # a TypeError if it is no integer
        arrays["num_batches_tracked"] = np.array(tracked, np.int64)
    return {_start(prefix) + name: array for name, array in arrays.items()}


def load_torch(
    layer: Any, state_dict: Mapping[str, Any], prefix: str = "", *, count: float | None = None
) -> None:
    """Loads one layer of a PyTorch state dict into an NNX layer, in place.

    Everything is checked before anything is written. The layer keeps its dtypes.

    Args:
      layer: an ``nnx.BatchNorm`` or :class:`steinnorm.nnx.SteinBatchNorm` with the same parameters
        as PyTorch's: ``use_scale=False, use_bias=False`` for affine=False, ``use_bias=False`` for
        bias=False, ``test_statistics="batch"`` for track_running_stats=False.
      state_dict: as in :func:`from_torch`.
      prefix: as in :func:`from_torch`.
      count: as in :func:`from_torch`.

    Raises:
      TypeError: as in :func:`from_torch`, and a layer that is no batch norm of NNX.
      ValueError: as in :func:`from_torch`, and a layer with other variables or another C.

    Example:
      >>> import numpy as np
      >>> from flax import nnx
      >>> layer = nnx.BatchNorm(2, use_scale=False, use_bias=False, rngs=nnx.Rngs(0))
      >>> load_torch(layer, {"running_mean": np.ones(2), "running_var": np.ones(2)})
      >>> print(layer.mean[...])
      [1. 1.]
    """
    if not _is_layer(layer):
        raise TypeError(
            "layer must be a flax.nnx.BatchNorm or a steinnorm.nnx.SteinBatchNorm; got "
            f"{type(layer).__name__}. For Linen use from_torch."
        )
    given = from_torch(state_dict, prefix, count=count)
    new = []
    for torch_name, (collection, name) in _NAMES.items():
        array = given.get(collection, {}).get(name)
        variable = getattr(layer, name)
        _check_fit(layer, name, array, _start(prefix) + torch_name)
        if array is not None:
            new.append((variable, jnp.asarray(array, variable[...].dtype)))
    for variable, array in new:
        variable[...] = array


def batch_norms(state_dict: Mapping[str, Any]) -> list[str]:
    """Lists the layers of a state dict that have running statistics, in its order.

    Args:
      state_dict: names to arrays. Layers with track_running_stats=False cannot be told from other
        layers by their names, so they are not listed; InstanceNorm with track_running_stats=True
        has the names of BatchNorm, so it is.

    Returns:
      Prefixes for :func:`from_torch`: "" for a layer alone, "layer1.0.bn1" in a model.

    Raises:
      TypeError: the state dict is no mapping.

    Example:
      >>> batch_norms({"conv.weight": 0, "bn.running_mean": 0, "bn.running_var": 0})
      ['bn']
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            "state_dict must be a mapping of names to arrays, as model.state_dict() or "
            f"torch.load(file, weights_only=True) gives it; got {type(state_dict).__name__}."
        )
    names = [key for key in state_dict if isinstance(key, str)]
    means = [k for k in names if k == "running_mean" or k.endswith(".running_mean")]
    return [key.removesuffix("running_mean").removesuffix(".") for key in means]


def momentum_from_torch(momentum: float | None) -> float:
    """Turns PyTorch's momentum, the share of the new value, into Flax's, the share of the old.

    Args:
      momentum: PyTorch's, in [0, 1].

    Returns:
      1 - momentum.

    Raises:
      ValueError: None, with which PyTorch averages all batches alike, or a number outside [0, 1].

    Example:
      >>> momentum_from_torch(0.1)
      0.9
    """
    if momentum is None:
        raise ValueError(
            "momentum must be a number in [0, 1]; got None, with which PyTorch averages over all "
            "batches alike. Flax has no such average: choose a number, e.g. 0.1 as PyTorch does."
        )
    if not 0 <= momentum <= 1:
        raise ValueError(
            "momentum must be in [0, 1], the share of the new value (PyTorch's convention; "
            f"Flax's momentum is 1 minus this); got {momentum}."
        )
    return round(1 - float(momentum), _DIGITS)


def momentum_to_torch(momentum: float) -> float:
    """Turns Flax's momentum into PyTorch's, the inverse of :func:`momentum_from_torch`.

    Raises:
      ValueError: the momentum is outside [0, 1].

    Example:
      >>> momentum_to_torch(0.9)
      0.1
    """
    _checks.momentum(momentum)
    return round(1 - float(momentum), _DIGITS)


def _is_layer(layer: Any) -> bool:
    """Says whether this looks like a batch norm of NNX, without an import of Flax."""
    return all(hasattr(layer, name) for _, name in _NAMES.values())


def _start(prefix: str) -> str:
    """Returns what the names of a layer start with; the last dot may be given or not."""
    return prefix.removesuffix(".") + "." if prefix else ""


def _norms_there(state_dict: Mapping[str, Any]) -> str:
    """Says which layers may be asked for."""
    prefixes = batch_norms(state_dict)
    if not prefixes:
        keys = ", ".join(map(repr, list(state_dict)[:_LISTED])) or "none"
        return (
            "No key ends in running_mean, so there is no batch norm with running statistics. The "
            f"keys begin with: {keys}. If the weights are under one of them, give "
            "checkpoint['state_dict']."
        )
    rest = ", ... (see batch_norms)" if len(prefixes) > _LISTED else ""
    listed = ", ".join(map(repr, prefixes[:_LISTED]))
    return f"Give the prefix of a batch norm; there are: {listed}{rest}."


def _values(variables: Any) -> dict[str, Any]:
    """Returns the values of a layer, Linen's or NNX's, under PyTorch's names."""
    got, values = type(variables).__name__, {}
    if isinstance(variables, Mapping):
        inner = {c: v for c, v in variables.items() if isinstance(v, Mapping)}
        got = f"{list(variables)} with {[list(v) for v in inner.values()]} inside"
        for torch_name, (collection, name) in _NAMES.items():
            if name in inner.get(collection, {}):
                values[torch_name] = inner[collection][name]
    elif _is_layer(variables):
        for torch_name, (_, name) in _NAMES.items():
            variable = getattr(variables, name)
            if variable is not None:
                values[torch_name] = variable[...]
    if not values:
        raise ValueError(
            "variables must be those of one batch norm, {'params': {'scale', 'bias'}, "
            f"'batch_stats': {{'mean', 'var'}}}}, or an NNX layer; got {got}. Of a model's "
            "variables give one layer's, {c: variables[c]['BatchNorm_0'] for c in variables}."
        )
    return values


def _checked(
    values: Mapping[str, Any], label: Callable[[str], str], hint: str
) -> dict[str, np.ndarray]:
    """Returns copies as NumPy arrays of one shape (C,), or says why they are no batch norm."""
    for name in values:
        if name in _NEEDS and _NEEDS[name] not in values:
            raise ValueError(
                f"{label(_NEEDS[name])} is missing, though {label(name)} is there, which "
                f"PyTorch's BatchNorm never has alone. {hint}"
            )
    arrays = {name: _array(label(name), value) for name, value in values.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        got = ", ".join(f"{label(name)} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"Expected one shape (C,) of all arrays of a layer; got {got}. {hint}")
    return arrays


def _array(label: str, value: Any) -> np.ndarray:
    """Returns a copy as a NumPy array of a dtype that NumPy, JAX and PyTorch share."""
    if hasattr(value, "detach"):  # a tensor, which may be on another device or need gradients
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    array = np.asarray(value)
    if array.dtype == jnp.bfloat16:
        array = array.astype(np.float32)
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(
            f"{label} must be an array of float16, bfloat16, float32 or float64; got "
            f"{type(value).__name__} of dtype {array.dtype}. Convert it first."
        )
    return np.array(array)


def _scale_variance(
    arrays: dict[str, np.ndarray], count: float | None, factor: Callable[[float], float]
) -> None:
    """Multiplies the variance, if there is one and a count is given, in float64: one rounding."""
    if count is None:
        return
    if not (math.isfinite(count) and count > 1):
        raise ValueError(
            "count must be more than 1, the number of values behind each channel's statistics in "
            f"a training batch (B * H * W), or None to copy the variance; got {count}."
        )
    if "running_var" in arrays:
        var = arrays["running_var"]
        arrays["running_var"] = (var.astype(np.float64) * factor(count)).astype(var.dtype)


def _check_fit(layer: Any, name: str, array: jax.Array | None, key: str) -> None:
    """Checks that an NNX layer has the variable which the state dict has, in its shape."""
    variable = getattr(layer, name)
    if array is not None:
        if variable is None:
            raise ValueError(
                f"The state dict has {key}, but the layer has no {name}. Build it with "
                f"use_{name}=True."
            )
        if variable[...].shape != array.shape:
            raise ValueError(
                f"{key} has shape {array.shape}, but the layer's {name} has shape "
                f"{variable[...].shape}. Build the layer with num_features={array.size}."
            )
    elif name in ("scale", "bias") and variable is not None:
        raise ValueError(
            f"The layer has a {name}, but the state dict has no {key} (PyTorch's affine=False or "
            f"bias=False). Build the layer with use_{name}=False."
        )
    elif name in ("mean", "var") and getattr(layer, "test_statistics", "running") != "batch":
        raise ValueError(
            f"The state dict has no {key} (PyTorch's track_running_stats=False), so PyTorch "
            "normalises with the test batch. Build the layer as steinnorm.nnx.SteinBatchNorm(..., "
            'shrinkage="none", test_statistics="batch").'
        )
