"""Attacks a network of one's own, prints the tables and the checks, and says how to read them."""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from steinnorm.attacks import AttackSettings, evaluate_robustness
from steinnorm.attacks.checks import CheckSettings
from steinnorm.nnx import SteinBatchNorm

BATCH, STEPS = 64, 60

images, labels = load_digits(return_X_y=True)
# Values from 0 to 1: the box that attacks stay in, and the unit in which radii are given.
images = images.astype(np.float32) / 16
x_train, x_test, y_train, y_test = train_test_split(
    images, labels, test_size=0.2, stratify=labels, random_state=0
)

rngs = nnx.Rngs(0)
norm = SteinBatchNorm(64, momentum=0.9, rngs=rngs)
model = nnx.Sequential(nnx.Linear(64, 64, rngs=rngs), norm, nnx.relu, nnx.Linear(64, 10, rngs=rngs))
optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, x, y):
    """Makes one step, which changes the model and the optimiser; returns the loss."""

    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    loss, gradients = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, gradients)
    return loss


order = np.random.default_rng(0)
for _ in range(STEPS):
    rows = order.choice(len(x_train), BATCH, replace=False)
    train_step(model, optimizer, x_train[rows], y_train[rows])
model.eval()  # attacks take the model as it is: in training mode logits would depend on the batch

# Budgets for a quick look. For a number that is quoted: "autoattack", the usual checks, more
# examples. Two losses and an attack without gradients, because each alone can be misled.
found = evaluate_robustness(
    model,
    jnp.asarray(x_test[:128]),
    jnp.asarray(y_test[:128]),
    norm="linf",
    epsilons=(0.05, 0.1),
    attacks=(
        AttackSettings("pgd", "pgd", steps=10),
        AttackSettings("pgd-margin", "pgd", steps=10, loss="margin"),
        AttackSettings("square", "square", queries=100),
    ),
    batch_size=128,
    checks=CheckSettings(steps=10, restarts=2, square_queries=100),
    progress=False,
)
print(found)
for finding in found.checks:  # in full where one did not pass; a PASS has its numbers too
    print(finding if finding.verdict != "PASS" else f"PASS            {finding.name}")

clean, worst = found.row("none").value, found.row("worst", 0.1).value
print(
    f"""
How to read this: quote the row worst, {worst:.1%} at radius 0.1, beside {clean:.1%} clean.
It is an upper bound, as other attacks may find more; the interval is about other examples only.
A FAIL means that the attacks may be too weak to be believed: explain it before you quote."""
)
