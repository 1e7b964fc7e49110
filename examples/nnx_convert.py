"""Converts a Flax NNX model with BatchNorm, trains it, and loads its checkpoint into both."""

import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from steinnorm.nnx import convert

BATCH, STEPS = 64, 60


def make_model() -> nnx.Sequential:
    """Returns a network as one might have it: with Flax's own BatchNorm."""
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Linear(64, 64, use_bias=False, rngs=rngs),
        nnx.BatchNorm(64, momentum=0.9, rngs=rngs),
        nnx.relu,
        nnx.Linear(64, 10, rngs=rngs),
    )


@nnx.jit
def train_step(model, optimizer, x, y):
    """Makes one step, which changes the model and the optimiser; returns the loss."""

    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    loss, gradients = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, gradients)
    return loss


images, labels = load_digits(return_X_y=True)
images = images.astype(np.float32) / 16  # their values go from 0 to 16
x_train, x_test, y_train, y_test = train_test_split(
    images, labels, test_size=0.2, stratify=labels, random_state=0
)

# A new model: weights, running statistics and settings carry over, the old one stays as it is.
model = convert(make_model(), shrinkage="stein")
print(f"converted: {type(model.layers[1]).__name__} in place of BatchNorm")

# The optimiser is made of the converted model, whose parameters it has to follow.
optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
order = np.random.default_rng(0)
for _ in range(STEPS):
    rows = order.choice(len(x_train), BATCH, replace=False)
    loss = train_step(model, optimizer, x_train[rows], y_train[rows])
print(f"loss of the last of {STEPS} batches: {loss:.3f}")

model.eval()  # from here on the running statistics are used, and nothing is recorded
logits = model(x_test)
print(f"test accuracy: {jnp.mean(logits.argmax(axis=-1) == y_test):.1%} of {len(y_test)} images")

# The variables are those of Flax's layer, so one checkpoint serves both kinds of model.
with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
    path = Path(folder) / "model"
    checkpointer.save(path, nnx.state(model))
    checkpointer.wait_until_finished()  # saving goes on beside the program
    for name, loaded in [("SteinBatchNorm", convert(make_model())), ("BatchNorm", make_model())]:
        nnx.update(loaded, checkpointer.restore(path, nnx.state(loaded)))
        loaded.eval()
        change = jnp.abs(loaded(x_test) - logits).max()
        print(f"loaded into {name}: logits differ by at most {change:.1e}")
