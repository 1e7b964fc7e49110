"""Attacks on inputs that are split over two devices; run by test_split_inputs in its own process.

Prints one line for each attack: its name, and how far its result is from that on one device.
"""

import contextlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from steinnorm.attacks import (
    Threat,
    apgd,
    autoattack,
    batch_dependence,
    fab,
    fgsm,
    pgd,
    pgd_scan,
    predict,
    sea,
    segpgd,
    square,
)
from steinnorm.attacks.batch_threats import companion, independent

KEY = jax.random.key(0)
generator = np.random.default_rng(0)
WEIGHTS = jnp.asarray(generator.normal(size=(48, 5)), jnp.float32)
MAPS = jnp.asarray(generator.normal(size=(3, 4)), jnp.float32)
X = generator.uniform(0.2, 0.8, (20, 4, 4, 3)).astype(np.float32)


def one_label(weights, x):
    return jnp.tanh(x.reshape(len(x), -1) - 0.5) @ weights


def with_statistics(weights, x):
    flat = x.reshape(len(x), -1)
    return (flat - jnp.mean(flat, axis=0, keepdims=True)) @ weights


def per_pixel(weights, x):
    return (x - 0.5) @ weights


def attacks(x, place):
    """Calls by name, each of which attacks ``x``; ``place`` puts labels where the inputs are."""
    model = jax.tree_util.Partial(one_label, WEIGHTS)
    joint = jax.tree_util.Partial(with_statistics, WEIGHTS)
    maps = jax.tree_util.Partial(per_pixel, MAPS)
    y = np.asarray(jnp.argmax(one_label(WEIGHTS, X), axis=-1))
    y_joint = np.asarray(jnp.argmax(with_statistics(WEIGHTS, X), axis=-1))
    y_maps = np.asarray(jnp.argmax(per_pixel(MAPS, X), axis=-1))
    with_key = {"threat": Threat("linf", 0.03), "key": KEY}
    few = {"target_classes": 2, **with_key}
    told = {"batch_dependent": True, **with_key}
    in_l2 = {"threat": Threat("l2", 0.2), "key": KEY}
    two = {"steps": 2, "victims": [0, 13], **with_key}
    short = {"steps": 4, "queries": 6}
    scan = jax.jit(lambda x, y: pgd_scan(model, x, y, steps=3, **with_key))
    return {
        "fgsm": lambda: fgsm(model, x, y, **with_key),
        "pgd": lambda: pgd(model, x, place(y), steps=3, restarts=2, **with_key),
        "pgd l2": lambda: pgd(model, x, y, steps=3, **in_l2),
        "apgd": lambda: apgd(model, x, y, steps=10, **with_key),
        "apgd-t": lambda: apgd(model, x, y, steps=6, loss="targeted_dlr", **few),
        "fab": lambda: fab(model, x, y, steps=6, **few),
        "square": lambda: square(model, x, y, queries=30, **with_key),
        "autoattack": lambda: autoattack(model, x, y, batch_size=8, **short, **few),
        "joint pgd": lambda: pgd(joint, x, y_joint, steps=3, restarts=2, **told),
        "joint margin": lambda: pgd(joint, x, place(y_joint), steps=3, loss="margin", **told),
        "joint autoattack": lambda: autoattack(joint, x, y_joint, **short, **told),
        "sea": lambda: sea(maps, x, place(y_maps), steps=6, **with_key),
        "sea of one loss": lambda: sea(maps, x, place(y_maps), steps=6, losses=["js"], **with_key),
        "segpgd": lambda: segpgd(maps, x, y_maps, steps=3, restarts=2, **with_key),
        "independent": lambda: independent(pgd, joint, x, y_joint, **two),
        "companion": lambda: companion(pgd, joint, x, y_joint, **two),
        "pgd_scan": lambda: scan(x, jnp.asarray(y)),
        "plain pgd_scan": lambda: pgd_scan(
            maps, x, place(y_maps), steps=3, loss="margin", **with_key
        ),
        "batch_dependence": lambda: batch_dependence(joint, x, key=KEY).alone.logit,
        "predict": lambda: predict(model, x),
    }


# SEA is APGD in balls that shrink, so that its steps are those of APGD as well.
FEW = ("pgd",)
SOME = (
    *("pgd", "square", "joint pgd", "joint margin", "sea of one loss", "plain pgd_scan"),
    "batch_dependence",
)


def ways(everything):
    """Ways of splitting: name, sharding, whether the mesh is set for all of JAX, which attacks."""
    batch, rows = PartitionSpec("data"), PartitionSpec(None, "data")
    explicit = jax.make_mesh((2,), ("data",))
    auto = jax.make_mesh((2,), ("data",), (AxisType.Auto,))
    few = None if everything else FEW
    yield "explicit", NamedSharding(explicit, batch), False, None if everything else SOME
    yield "explicit, set", NamedSharding(explicit, batch), True, few
    yield "auto", NamedSharding(auto, batch), False, few
    yield "rows of pixels", NamedSharding(explicit, rows), False, few


def main(everything):
    """Compares ways of splitting with one device; ``everything``: every attack in every way."""
    on_one = attacks(jnp.asarray(X), lambda y: y)
    alone = {name: on_one[name]() for name in (on_one if everything else SOME)}
    for way, sharding, is_set, names in ways(everything):
        spec = PartitionSpec("data") if sharding.spec[0] else PartitionSpec()
        labels = NamedSharding(sharding.mesh, spec)
        with jax.set_mesh(sharding.mesh) if is_set else contextlib.nullcontext():
            x = jax.device_put(X, sharding)
            calls = attacks(x, lambda y, to=labels: jax.device_put(y, to))
            for name in names or calls:
                compare(way, name, calls[name](), alone[name])
    divided_weights(alone["pgd"])


def divided_weights(expected):
    """Attacks a model whose weights are divided: what comes back lies where the inputs lay."""
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,))
    weights = jax.device_put(WEIGHTS, NamedSharding(mesh, PartitionSpec("data")))
    model = jax.tree_util.Partial(one_label, weights)
    y = np.asarray(jnp.argmax(one_label(WEIGHTS, X), axis=-1))
    for x in (jnp.asarray(X), jax.device_put(X, NamedSharding(mesh, PartitionSpec(None, "data")))):
        result = pgd(model, x, y, threat=Threat("linf", 0.03), key=KEY, steps=3, restarts=2)
        assert result.x_adv.sharding.is_equivalent_to(x.sharding, x.ndim), result.x_adv.sharding
        assert result.x_adv.committed == x.committed
        compare("weights", "pgd", result, expected)


def compare(way, name, result, expected):
    """Prints the largest difference."""
    pairs = [(result, expected)]
    if hasattr(result, "x_adv"):
        pairs = [(result.x_adv, expected.x_adv), (result.success, expected.success)]
        split = len(result.x_adv.sharding.device_set) == 2
        assert split or way == "weights", f"{name}: the result is not split"
    worst = max(np.abs(np.asarray(a) * 1.0 - np.asarray(b)).max() for a, b in pairs)
    print(f"{way};{name};{worst:.3g}", flush=True)


if __name__ == "__main__":
    main(everything="all" in sys.argv)
