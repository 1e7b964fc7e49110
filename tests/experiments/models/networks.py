"""Small copies of the networks, and what is measured in them without making them."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.models.cnn3d import Cnn3d
from experiments.models.hrnet import HRNet, HRNetSize
from experiments.models.norms import norm_factory
from experiments.models.resnet import ResNet

TINY_HRNET = HRNetSize((1, 1), 1, 2, (2, 3, 4), (1, 1), 1)


class Affine(nnx.Module):
    """Has the parameters of a norm, and costs nothing to trace."""

    def __init__(self, num_features, *, rngs):
        self.scale = nnx.Param(jnp.ones(num_features))
        self.bias = nnx.Param(jnp.zeros(num_features))

    def __call__(self, x):
        return x


def rngs():
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


def resnet(norm="stein", **options):
    options = {"channels_in": 3, "outputs": 5, "width": 4, "stage_sizes": (1, 1), **options}
    return _build(ResNet, norm, **options)


def cnn3d(norm="stein", **options):
    options = {"shape": (5, 8, 4), "channels_in": 1, "outputs": 2, "hidden": (7, 3), **options}
    return _build(Cnn3d, norm, **options)


def hrnet(norm="stein", **options):
    options = {"size": TINY_HRNET, "channels_in": 3, "outputs": 5, **options}
    return _build(HRNet, norm, **options)


def _build(network, norm, **options):
    if isinstance(norm, str):
        norm = norm_factory(norm, total_steps=1, dtype=options.get("dtype"))
    return network(norm, **{"rngs": rngs(), **options})


def abstract(build, norm=Affine, **options):
    """``build(norm, **options)`` with shapes and dtypes for arrays."""
    # Real streams of random numbers count their calls, which takes a tracer long (quadratic).
    stream = types.SimpleNamespace(params=lambda: jax.random.key(0))
    return nnx.eval_shape(lambda: build(norm, **options, rngs=stream))


def filled(model):
    """That abstract model with numbers of NumPy's: initialisers would be compiled one by one.

    Scales and biases are others than ones and zeros, so that a mix-up shows.
    """
    rng = np.random.default_rng(0)

    def numbers(path, leaf):
        name = path[-1]
        if name in ("mean", "var"):
            values = np.full(leaf.shape, name == "var")
        elif name == "kernel":
            values = rng.normal(size=leaf.shape) * math.sqrt(2 / math.prod(leaf.shape[:-1]))
        else:
            values = (name == "scale") + 0.1 * rng.normal(size=leaf.shape)
        return leaf.replace(jax.device_put(np.array(values, leaf.dtype)))

    flat = ((path, numbers(path, leaf)) for path, leaf in nnx.to_flat_state(nnx.state(model)))
    nnx.update(model, nnx.from_flat_state(flat))
    return model


def count(model, norm=Affine):
    """Numbers of parameters and of norm layers."""
    parameters = sum(math.prod(p.shape) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    norms = sum(isinstance(node, norm) for _, node in nnx.iter_graph(model))
    return parameters, norms


def output(model, shape, call=lambda model, x: model(x)):
    """Shape and dtype of ``call(model, x)`` for float32 inputs of that shape, by tracing alone."""
    graph, state = nnx.split(model)
    x = jax.ShapeDtypeStruct(shape, np.float32)
    traced = jax.eval_shape(lambda state, x: call(nnx.merge(graph, state), x), state, x)
    return traced.shape, traced.dtype
