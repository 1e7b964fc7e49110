"""Trains a Flax Linen network with SteinBatchNorm on scikit-learn's digits, and tests it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from steinnorm.linen import SteinBatchNorm

EPOCHS, BATCH = 4, 64


class Net(nn.Module):
    """A small convolutional network for images of 8 x 8 pixels."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits of shape (B, 10) for images of shape (B, 8, 8, 1)."""
        # No bias: the layer that follows subtracts the mean and adds a bias of its own.
        x = nn.Conv(16, (3, 3), strides=2, use_bias=False)(x)
        x = nn.relu(SteinBatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16  # their values go from 0 to 16
x_train, x_test, y_train, y_test = train_test_split(
    images, labels, test_size=0.2, stratify=labels, random_state=0
)

net, optimizer = Net(), optax.adam(1e-2)
variables = net.init(jax.random.key(0), x_train[:1], train=False)
# Gradients train the parameters; batch_stats has the running averages, which the forward pass
# replaces. So the two are kept apart.
params, batch_stats = variables["params"], variables["batch_stats"]
opt_state = optimizer.init(params)


@jax.jit
def train_step(params, batch_stats, opt_state, x, y):
    """Makes one step; returns the new parameters, statistics and optimiser state, and the loss."""

    def loss_fn(params):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = net.apply(variables, x, train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss, updated["batch_stats"]

    (loss, recorded), gradients = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), recorded, opt_state, loss


order = np.random.default_rng(0)
for epoch in range(1, EPOCHS + 1):
    # The last, smaller batch is left out: another shape would compile the step again.
    whole = order.permutation(len(x_train))[: len(x_train) // BATCH * BATCH]
    for rows in whole.reshape(-1, BATCH):
        params, batch_stats, opt_state, loss = train_step(
            params, batch_stats, opt_state, x_train[rows], y_train[rows]
        )
    print(f"epoch {epoch}: loss of the last batch {loss:.3f}")

means = batch_stats["SteinBatchNorm_0"]["mean"]  # they began at 0
print(f"running means of the layer: {means.min():.2f} to {means.max():.2f}")

# In inference nothing is recorded, and a prediction does not depend on the rest of its batch.
predict = jax.jit(lambda variables, x: net.apply(variables, x, train=False))
logits = predict({"params": params, "batch_stats": batch_stats}, x_test)
accuracy = jnp.mean(logits.argmax(axis=-1) == y_test)
print(f"test accuracy: {accuracy:.1%} of {len(y_test)} images")
