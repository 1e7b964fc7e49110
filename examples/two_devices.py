"""Trains on two devices with shard_map, and compares the loss with that of one device."""

import functools

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

from steinnorm.nnx import SteinBatchNorm

# Two devices made of this machine's processor, so that the program runs anywhere. It has to be
# said before JAX looks for devices. On a machine with accelerators leave out both lines.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)

STEPS, BATCH = 20, 64  # examples of a batch, on all devices together
everywhere, by_example = PartitionSpec(), PartitionSpec("data")


def train_step(model, optimizer, x, y, axis_name=None):
    """Makes one step on the examples that one device has; returns the loss over all of them."""

    def loss_fn(model):
        loss = optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
        # Averaged inside what is differentiated, because shard_map sums the gradients by itself.
        return loss if axis_name is None else jax.lax.pmean(loss, axis_name)

    loss, gradients = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, gradients)
    return loss


images, labels = load_digits(return_X_y=True)
images = images.astype(np.float32) / 16  # their values go from 0 to 16
batches = np.random.default_rng(0).permutation(len(images))[: STEPS * BATCH].reshape(STEPS, BATCH)


def train(step, axis_name, placement):
    """Trains a new model on the batches; returns the loss of each step."""
    rngs = nnx.Rngs(0)
    # With axis_name the statistics are those of the whole batch, not of one device's part of it.
    norm = SteinBatchNorm(64, axis_name=axis_name, rngs=rngs)
    model = nnx.Sequential(
        nnx.Linear(64, 64, rngs=rngs), norm, nnx.relu, nnx.Linear(64, 10, rngs=rngs)
    )
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    placed = (jax.device_put((images[rows], labels[rows]), placement) for rows in batches)
    return [float(step(model, optimizer, x, y)) for x, y in placed]


mesh = jax.make_mesh((2,), ("data",))
step_on_each = nnx.shard_map(
    functools.partial(train_step, axis_name="data"),
    mesh=mesh,
    in_specs=(everywhere, everywhere, by_example, by_example),
    out_specs=everywhere,
)
one = train(nnx.jit(train_step), None, jax.devices()[0])
two = train(nnx.jit(step_on_each), "data", NamedSharding(mesh, by_example))

print(f"devices: {jax.device_count()}, {BATCH // 2} examples of each batch on each")
print(f"loss of step {STEPS} on one device:  {one[-1]:.6f}")
print(f"loss of step {STEPS} on two devices: {two[-1]:.6f}")
difference = max(abs(a - b) / a for a, b in zip(one, two, strict=True))
print(f"largest relative difference of {STEPS} steps: {difference:.1e}")
