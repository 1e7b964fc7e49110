"""Our attacks against other implementations on the same network, weights and images.

Run with ``python -m benchmarks.attack_peers W --data-dir D`` on the work folder of a training of
``cifar10`` (a norm with running statistics); ``speed`` alone also runs without one, as
``python -m benchmarks.attack_peers --width 64 --images 64 --parts speed``, on a ResNet-9 and images
drawn at random.  Needs peers that are no dependencies:
``pip install torch==2.13.0 torchattacks foolbox`` and, for the original AutoAttack,
``pip install pyautoattack``; what is missing is left out with a message.

``agreement``: share of pixels on which FGSM and PGD give the same image as torchattacks.
``speed``: images times gradient steps per second of PGD, paired rounds.
``apgd``: robust accuracy under APGD on the cross-entropy alone.
``autoattack``: robust accuracy and time of the standard ensemble, ours and the original.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.torch_twin import twin_of
from benchmarks.training_throughput import torch_network
from experiments import data, tasks
from experiments.evaluation.attack_batch import as_logits_fn
from experiments.models.norms import in_evaluation, norm_factory
from experiments.models.resnet import ResNet, of_depth
from experiments.training.folder import read_settings
from experiments.training.weights import load_weights
from steinnorm.attacks import Threat, apgd, autoattack, fab, fgsm, pgd, predict, square

Images = tuple[jax.Array, jax.Array]


def load(workdir: Path, data_dir: Path, count: int) -> tuple[nnx.Module, Images]:
    """The network in evaluation, and the first test images, in [0, 1], with labels."""
    settings = read_settings(workdir)
    cache = Path.home() / ".cache" / "steinnorm"
    dataset = data.load(settings.config.data, data_dir, cache)
    task = tasks.create(settings.config.task, dataset.classes)
    model, _ = load_weights(workdir, settings, dataset, task, "best")
    part = dataset.test.take(np.arange(count))
    images = np.asarray(part.inputs, np.float32) / 255
    return in_evaluation(model, "running"), (jnp.asarray(images), jnp.asarray(part.targets))


def drawn(width: int, count: int) -> tuple[nnx.Module, Images]:
    """An untrained ResNet-9 of that width in evaluation, and images with labels, all random."""
    block, stages = of_depth(9)
    model = ResNet(
        norm_factory("batch"),
        channels_in=3,
        outputs=10,
        width=width,
        block=block,
        stage_sizes=stages,
        rngs=nnx.Rngs(0),
    )
    images = jax.random.uniform(jax.random.key(0), (count, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(1), (count,), 0, 10)
    return in_evaluation(model, "running"), (images, labels)


def missing(*names: str) -> bool:
    """Says which of the packages are not installed."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if absent:
        print(f"left out: {', '.join(absent)} not installed")
    return bool(absent)


def theirs(model: Any) -> Any:
    """The twin in PyTorch, on images (B, 3, 32, 32)."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(os.cpu_count() or 1)
    width = model.stem.kernel[...].shape[-1]
    return twin_of(torch, torch_network(torch, width), model)


def first(images: jax.Array) -> Any:
    """Channels to the front, as PyTorch has them."""
    torch = importlib.import_module("torch")
    return torch.tensor(np.asarray(images).transpose(0, 3, 1, 2).copy())


def agreement(model: nnx.Module, batch: Images, epsilon: float) -> None:
    """FGSM and PGD without a random start, Linf and L2, against torchattacks."""
    if missing("torch", "torchattacks"):
        return
    ta = importlib.import_module("torchattacks")
    torch = importlib.import_module("torch")
    net, (x, y) = theirs(model), batch
    logits_fn = as_logits_fn(model)
    worst = np.abs(net(first(x)).detach().numpy() - np.asarray(predict(logits_fn, x))).max()
    print(f"logits: largest difference {worst:.2e}")
    linf, l2 = Threat("linf", epsilon), Threat("l2", 0.5)
    pairs: dict[str, tuple[Any, Callable[[], Any]]] = {
        "FGSM": (ta.FGSM(net, eps=epsilon), lambda: fgsm(logits_fn, x, y, threat=linf)),
        "PGD-10 Linf": (
            ta.PGD(net, eps=epsilon, alpha=epsilon / 4, steps=10, random_start=False),
            lambda: pgd(logits_fn, x, y, threat=linf, steps=10, step_size=epsilon / 4),
        ),
        "PGD-10 L2": (
            ta.PGDL2(net, eps=0.5, alpha=0.125, steps=10, random_start=False),
            lambda: pgd(logits_fn, x, y, threat=l2, steps=10, step_size=0.125),
        ),
    }
    for name, (peer, ours) in pairs.items():
        expected = peer(first(x), torch.tensor(np.asarray(y)).long()).numpy().transpose(0, 2, 3, 1)
        found = np.asarray(ours().x_adv)
        same = np.abs(found - expected) <= 1e-5
        print(f"{name}: {100 * same.mean():.4f} % of pixels within 1e-5 of torchattacks")
        differ = np.flatnonzero(~same.reshape(len(same), -1).all(axis=1))
        if len(differ):
            truth = in_double(net, peer, (x[differ], y[differ]))
            wins = [
                np.abs(a[differ] - truth).max(axis=(1, 2, 3)) <= 1e-5 for a in (found, expected)
            ]
            print(
                f"  {len(differ)} of {len(same)} images differ; in float64 {wins[0].sum()} of them "
                f"are as ours and {wins[1].sum()} as torchattacks'"
            )


def in_double(net: Any, peer: Any, batch: Images) -> np.ndarray:
    """The images (B, H, W, 3) of torchattacks in float64, which rounding hardly turns."""
    torch = importlib.import_module("torch")
    attack = copy.copy(peer)
    attack.model = copy.deepcopy(net).double()
    images, labels = first(batch[0]).double(), torch.tensor(np.asarray(batch[1])).long()
    return attack(images, labels).numpy().transpose(0, 2, 3, 1)


def speed(model: nnx.Module, batch: Images, epsilon: float, rounds: int) -> None:
    """PGD in image-steps per second; each round times everyone once, in turn."""
    steps, (x, y) = 10, (batch[0][:128], batch[1][:128])
    logits_fn = as_logits_fn(model)
    threat, size = Threat("linf", epsilon), epsilon / 4

    def ours() -> None:
        jax.block_until_ready(
            pgd(logits_fn, x, y, threat=threat, steps=steps, step_size=size).x_adv
        )

    # What Foolbox is given: a function with the weights as constants, not as arguments.
    constant = jax.jit(lambda images: logits_fn(images))  # noqa: PLW0108

    def ours_with_constants() -> None:
        jax.block_until_ready(pgd(constant, x, y, threat=threat, steps=steps, step_size=size).x_adv)

    runs: dict[str, Callable[[], Any]] = {
        "steinnorm": ours,
        "steinnorm, weights as constants": ours_with_constants,
    }
    if not missing("torch", "torchattacks"):
        torch = importlib.import_module("torch")
        attack = importlib.import_module("torchattacks").PGD
        net, xt, yt = theirs(model), first(x), torch.tensor(np.asarray(y)).long()
        for layout in ("contiguous_format", "channels_last"):
            form = getattr(torch, layout)
            own = copy.deepcopy(net).to(memory_format=form)  # ``to`` changes a network in place
            peer = attack(own, eps=epsilon, alpha=size, steps=steps, random_start=False)
            images = xt.contiguous(memory_format=form)
            runs[f"torchattacks, {layout}"] = functools.partial(peer, images, yt)
    if not missing("foolbox"):
        fb = importlib.import_module("foolbox")
        ep = importlib.import_module("eagerpy")
        fmodel = fb.JAXModel(constant, bounds=(0, 1))
        walk = fb.attacks.LinfPGD(abs_stepsize=size, steps=steps, random_start=False)
        xe, ye = ep.astensor(x), ep.astensor(y)
        runs["Foolbox on JAX, steps alone"] = lambda: jax.block_until_ready(
            walk.run(fmodel, xe, ye, epsilon=epsilon).raw
        )
        # As its users call it: images, and which of them are misclassified, which ours says too.
        runs["Foolbox on JAX"] = lambda: jax.block_until_ready(
            walk(fmodel, xe, ye, epsilons=epsilon)[2].raw
        )
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if number:  # the first one compiles
                times[name].append(time.perf_counter() - began)
    print(f"\n| PGD-10 on {len(x)} images | image-steps/s | speed of steinnorm over it |")
    print("|---|---:|---:|")
    for name, found in times.items():
        ratio = statistics.median(
            them / us for them, us in zip(found, times["steinnorm"], strict=True)
        )
        print(f"| {name} | {len(x) * steps / statistics.median(found):.0f} | {ratio:.2f} |")


def ensembles(model: nnx.Module, batch: Images, epsilon: float, *, everything: bool) -> None:
    """The standard ensemble: ours, the original, and ours with every attack on every example."""
    (x, y), logits_fn = batch, as_logits_fn(model)
    threat, key = Threat("linf", epsilon), jax.random.key(0)
    began = time.perf_counter()
    result = autoattack(logits_fn, x, y, threat=threat, key=key, batch_dependent=False)
    seconds = time.perf_counter() - began
    robust = 1 - np.asarray(result.success).mean()
    print(f"steinnorm: robust accuracy {100 * robust:.1f} %, {seconds:.0f} s", flush=True)
    for stage in result.stages:
        print(f"  {stage.name}: {stage.broken} of {stage.attacked} broken, {stage.seconds:.0f} s")
    if everything:
        began = time.perf_counter()
        every(logits_fn, x, y, threat, key)
        took = time.perf_counter() - began
        print(f"every attack on every example: {took:.0f} s, {took / seconds:.1f} times as long")
    if missing("torch", "pyautoattack"):
        return
    began = time.perf_counter()
    robust = original(model, batch, epsilon, version="standard")
    seconds = time.perf_counter() - began
    print(f"original: robust accuracy {100 * robust:.1f} %, {seconds:.0f} s")


def original(model: nnx.Module, batch: Images, epsilon: float, **which: Any) -> float:
    """The robust accuracy that the original implementation leaves."""
    torch = importlib.import_module("torch")
    attack = importlib.import_module("pyautoattack").AutoAttack(
        theirs(model), norm="Linf", eps=epsilon, seed=0, **which
    )
    attack.apgd.n_restarts = 1  # as in the standard version
    labels = torch.tensor(np.asarray(batch[1])).long()
    x_adv, _ = attack.run_standard_evaluation(first(batch[0]), labels, batch_size=128)
    return float((theirs(model)(x_adv).argmax(dim=1) == labels).float().mean())


def single(model: nnx.Module, batch: Images, epsilon: float) -> None:
    """APGD on the cross-entropy alone, ours and the original."""
    (x, y), threat = batch, Threat("linf", epsilon)
    alone = apgd(as_logits_fn(model), x, y, threat=threat, key=jax.random.key(0))
    print(f"steinnorm apgd-ce alone: {100 * (1 - np.asarray(alone.success).mean()):.1f} %")
    if not missing("torch", "pyautoattack"):
        robust = original(model, batch, epsilon, version="custom", attacks=["apgd-ce"])
        print(f"original apgd-ce alone: {100 * robust:.1f} %")


def every(logits_fn: Any, x: jax.Array, y: jax.Array, threat: Threat, key: jax.Array) -> None:
    """What an ensemble without sorting out costs: nothing leaves the batch.

    A model that is said to depend on its batch keeps all of it; FAB has no such form, so that it
    is given everything as it is.
    """
    whole: dict[str, Any] = {"threat": threat, "key": key, "batch_dependent": True}
    for start in range(0, len(x), 128):
        part = (x[start : start + 128], y[start : start + 128])
        apgd(logits_fn, *part, **whole)
        apgd(logits_fn, *part, loss="targeted_dlr", **whole)
        fab(logits_fn, *part, threat=threat, key=key, batch_dependent=False)
        square(logits_fn, *part, **whole)


def main() -> None:
    """Prints what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path, nargs="?")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--width", type=int, help="an untrained network instead of a workdir")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--epsilon", type=lambda text: float(Fraction(text)), default=8 / 255)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", default="agreement,speed,apgd,autoattack")
    parser.add_argument("--everything", action="store_true", help="also every attack on everything")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if arguments.width is not None:
        if parts != ["speed"]:
            parser.error("an untrained network tells the speed only: add --parts speed")
        model, batch = drawn(arguments.width, arguments.images)
    elif arguments.workdir is None or arguments.data_dir is None:
        parser.error("name a work folder and --data-dir, or --width N --parts speed")
    else:
        model, batch = load(arguments.workdir, arguments.data_dir, arguments.images)
    if "agreement" in parts:
        agreement(model, batch, arguments.epsilon)
    if "speed" in parts:
        speed(model, batch, arguments.epsilon, arguments.rounds)
    if "apgd" in parts:
        single(model, batch, arguments.epsilon)
    if "autoattack" in parts:
        ensembles(model, batch, arguments.epsilon, everything=arguments.everything)


if __name__ == "__main__":
    main()
