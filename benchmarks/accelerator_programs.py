"""The programs that are compiled for accelerators: layers, training steps, layers on many chips."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import PartitionSpec

from benchmarks.accelerator_targets import AXIS, compiled, figures, mesh, placed
from benchmarks.layer_programs import (
    FORWARD,
    REFERENCE,
    arguments,
    at_test_time,
    in_training,
    layer,
    layer_at_test_time,
)
from experiments.models.cnn3d import Cnn3d
from experiments.models.hrnet import HRNet
from experiments.models.layers import conv
from experiments.models.norms import NormFactory
from experiments.models.resnet import ResNet, of_depth
from steinnorm.nnx import convert

JIT, SHARD_MAP = "jit", "shard_map"
TRACES = 3

Figures = dict[str, float]


def measure_layer(norm: str, shape: tuple[int, ...], dtype: str, mode: str, target: str) -> Figures:
    """Counts for one layer and the ReLU behind it.

    Args:
      norm: ``flax`` or the name of a shrinkage.
      shape: of the input.
      dtype: of the input and of the layer's computation.
      mode: ``FORWARD`` or ``TRAINING``.
      target: one device.
    """
    module = layer(norm, dtype)
    variables, x = placed(arguments(module, shape, dtype), target)
    arrays = [x] if mode == FORWARD else [x, x]
    return figures(compiled(in_training(module, mode), (variables, *arrays)))


def measure_inference(
    source: str, shape: tuple[int, ...], dtype: str, mode: str, target: str
) -> Figures:
    """Counts for one layer at test time and the ReLU behind it.

    Args:
      source: of the statistics, as ``test_statistics`` takes it; ``flax`` for Flax's layer in
        training, which takes those of the batch too.
      shape: of the input.
      dtype: of the input and of the layer's computation.
      mode: ``FORWARD``, or ``TRAINING`` for the gradients of input and parameters as well.
      target: one device.
    """
    if source == REFERENCE:
        return measure_layer(REFERENCE, shape, dtype, mode, target)
    module = layer_at_test_time(source, dtype)
    variables, x = arguments(module, shape, dtype)
    channels = jax.ShapeDtypeStruct(shape[-1:], jnp.float32)
    calibration = dict.fromkeys(("mean", "var", "mean_spread", "var_spread"), channels)
    variables, x = placed(({**variables, "calibration": calibration}, x), target)
    arrays = [x] if mode == FORWARD else [x, x]
    return figures(compiled(at_test_time(module, mode), (variables, *arrays)))


def measure_devices(norm: str, shape: tuple[int, ...], mode: str, way: str, target: str) -> Figures:
    """Counts for one layer whose batch is split over many chips, float32.

    Args:
      norm: ``flax`` or the name of a shrinkage.
      shape: of the input of one chip.
      mode: ``FORWARD`` or ``TRAINING``.
      way: ``JIT`` with a split input, or ``SHARD_MAP`` with an axis name.
      target: a topology of TPUs.
    """
    module = layer(norm, "float32", AXIS if way == SHARD_MAP else None)
    chips = mesh(target)
    variables, x = arguments(module, (shape[0] * chips.size, *shape[1:]), "float32")

    def forward(variables: Any, x: jax.Array) -> Any:
        return module.apply(variables, x, mutable=["batch_stats"])

    def training(variables: Any, x: jax.Array, cotangent: jax.Array) -> Any:
        def call(params: Any, x: jax.Array) -> Any:
            return forward({**variables, "params": params}, x)

        # A given cotangent, not a loss: a loss would be all-reduced as well.
        y, backward, updated = jax.vjp(call, variables["params"], x, has_aux=True)
        params, x = backward(cotangent)
        return (y, x), (params, updated)

    function: Callable[..., Any] = forward if mode == FORWARD else training
    arrays = placed(x, target, split=True)
    given = (placed(variables, target), *[arrays] * (1 if mode == FORWARD else 2))
    if way == SHARD_MAP:
        copied, split = PartitionSpec(), PartitionSpec(AXIS)
        inputs = (copied, *[split] * (len(given) - 1))
        function = jax.shard_map(function, mesh=chips, in_specs=inputs, out_specs=(split, copied))
    return figures(compiled(function, given))


class ImageNetResNet(ResNet):
    """A ResNet with the stem for large images: 7x7 with stride 2, then pooling with stride 2.

    Args:
      norm: builds the norm layers.
      width: channels of the first stage's 3x3 convolutions.
      dtype: of activations.
      rngs: random numbers for the weights.
      **settings: the others of ``ResNet``.
    """

    def __init__(
        self, norm: NormFactory, *, width: int = 64, dtype: Any, rngs: nnx.Rngs, **settings: Any
    ):
        super().__init__(norm, width=width, dtype=dtype, rngs=rngs, **settings)
        channels = settings["channels_in"]
        self.stem = conv(channels, width, size=7, stride=2, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images (B, H, W, channels_in) to logits (B, outputs)."""
        x = nnx.relu(self.stem_norm(self.stem(x)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2))).astype(jnp.float32)


class Network(NamedTuple):
    """A network and what it is trained on.

    Attributes:
      build: takes ``norm``, ``dtype`` and ``rngs``.
      shape: of the inputs of one chip.
      labels: shape of their labels.
    """

    build: Callable[..., nnx.Module]
    shape: tuple[int, ...]
    labels: tuple[int, ...]


def _resnet(kind: type[ResNet], depth: int, outputs: int) -> Callable[..., nnx.Module]:
    block, stages = of_depth(depth)
    return functools.partial(kind, channels_in=3, outputs=outputs, block=block, stage_sizes=stages)


# Sizes of experiments/configs: CIFAR-10, the hippocampus volumes, CamVid; and of ImageNet.
NETWORKS = {
    "ResNet-18": Network(_resnet(ResNet, 18, 10), (128, 32, 32, 3), (128,)),
    "ResNet-50": Network(_resnet(ImageNetResNet, 50, 1000), (64, 224, 224, 3), (64,)),
    "3-D CNN": Network(
        functools.partial(
            Cnn3d, shape=(48, 64, 48), channels_in=1, outputs=2, channels=(16, 32, 64), hidden=()
        ),
        (26, 48, 64, 48, 1),
        (26,),
    ),
    "HRNet": Network(
        functools.partial(HRNet, size="paper", stem_strides=(2, 2), channels_in=3, outputs=19),
        (8, 192, 256, 3),
        (8, 192, 256),
    ),
}


def training_step(
    network: Network, norm: str, dtype: str
) -> tuple[Callable[..., Any], tuple[Any, Any, Any]]:
    """Returns a step of SGD with momentum, and the shapes of its arguments.

    Args:
      network: one of ``NETWORKS``, or with another batch.
      norm: ``flax``, or a shrinkage to which the network is converted.
      dtype: of the activations; parameters and statistics are float32.

    Returns:
      A function of state, inputs and labels, which returns the next state and the loss; and the
      three of one chip. The state is (parameters, statistics, memory of the optimiser).
    """

    def build() -> nnx.Module:
        factory = functools.partial(nnx.BatchNorm, dtype=jnp.dtype(dtype))
        model = network.build(factory, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
        return model if norm == REFERENCE else convert(model, norm)

    graphdef, params, rest = nnx.split(nnx.eval_shape(build), nnx.Param, ...)  # type: ignore[misc]
    optimiser = optax.sgd(0.1, momentum=0.9, nesterov=True)

    def loss_fn(params: Any, rest: Any, x: jax.Array, labels: jax.Array) -> Any:
        model = nnx.merge(graphdef, params, rest, copy=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(x), labels)
        return jnp.mean(losses), nnx.split(model, nnx.Param, ...)[2]  # type: ignore[misc]

    def step(state: Any, x: jax.Array, labels: jax.Array) -> Any:
        params, rest, memory = state
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, rest), gradients = gradient(params, rest, x, labels)
        updates, memory = optimiser.update(gradients, memory, params)
        return (optax.apply_updates(params, updates), rest, memory), loss

    state = (params, rest, jax.eval_shape(optimiser.init, params))
    x = jax.ShapeDtypeStruct(network.shape, jnp.float32)
    return step, (state, x, jax.ShapeDtypeStruct(network.labels, jnp.int32))


def _placed_training_step(
    network: Network, norm: str, dtype: str, target: str
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns the step, and its arguments on the devices, each of which has a batch."""
    chips = mesh(target).size
    (images, *shape), (examples, *axes) = network.shape, network.labels
    network = network._replace(shape=(chips * images, *shape), labels=(chips * examples, *axes))
    step, (state, x, labels) = training_step(network, norm, dtype)
    return step, (placed(state, target), *placed((x, labels), target, split=True))


def measure_network(norm: str, network: str, dtype: str, target: str) -> Figures:
    """Counts for a whole training step, whose arrays are given up (their memory is used again).

    Args:
      norm: ``flax``, or a shrinkage to which the network is converted.
      network: one of ``NETWORKS``.
      dtype: of the activations; parameters and statistics are float32.
      target: one chip or a topology of TPUs.
    """
    step, arguments = _placed_training_step(NETWORKS[network], norm, dtype, target)
    return figures(compiled(step, arguments, donate_argnums=0))


def measure_tracing(norm: str, network: str, dtype: str, target: str) -> Figures:
    """Compares how long JAX takes to trace and lower a training step, in processor time.

    From empty caches, as at the start of a program; Flax and ours in turn.

    Returns:
      ``reference``, the median of Flax's seconds, and ``ratio``, the median of the ratios to it.
    """
    times: dict[str, list[float]] = {REFERENCE: [], norm: []}
    for _ in range(TRACES):
        for name, found in times.items():
            step, arguments = _placed_training_step(NETWORKS[network], name, dtype, target)
            jax.clear_caches()
            start = time.process_time()
            jax.jit(step, donate_argnums=0).lower(*arguments)
            found.append(time.process_time() - start)
    ratios = [ours / flax for ours, flax in zip(times[norm], times[REFERENCE], strict=True)]
    return {
        "reference": statistics.median(times[REFERENCE]),
        "ratio": statistics.median(ratios),
    }
