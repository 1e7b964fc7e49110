"""How well each estimator finds the true channel statistics of real feature maps.

One network (the digits configuration, plain batch norm) is trained.  In evaluation mode, with
running statistics, the inputs of each of its norm layers are recorded for all training images.
**The population is this finite set of digits images**: the truth of a channel is its mean and its
biased variance over all of them and all pixels.  Nothing here speaks of images outside the set.

Then batches of 2, 8 and 64 distinct images of the set are drawn.  From a batch's statistics each
estimator makes its means or variances; its loss is the total squared error over the channels, its
risk the loss averaged over batches.  Reported is the ratio to the risk of the sample statistics of
the same batches: per layer, and over the layers as geometric mean, smallest and largest.  The
intervals are bootstraps over batches, paired: all estimators and layers of one resample saw the
same batches.

``running`` and ``toward_running`` know more than the batch (see ``KNOWLEDGE``).  ``james_stein``
shrinks towards zero with the noise measured between the batch's examples; ``moderated`` takes
every pixel as an independent observation, as its degrees of freedom say.
"""

import dataclasses
import math
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.table import Table

from experiments import data, tasks
from experiments.commands.console import Bar, Display, make_folder
from experiments.configs import presets
from experiments.configs.schema import ExperimentConfig
from experiments.data.examples import Dataset
from experiments.errors import ConfigError
from experiments.models.build import build
from experiments.models.recording import NormLayer, norm_layers
from experiments.training.loop import Loop, Observer
from steinnorm import batch_statistics, estimators
from steinnorm import shrinkage as rules
from steinnorm.attacks.files import write_json, write_text
from steinnorm.shrinkage import Rule, RunningStatistics

BATCH_SIZES = (2, 8, 64)
BATCHES, SMOKE_BATCHES, RESAMPLES = 400, 20, 2000
REFERENCE = "none"
ALL_LAYERS = "all"
KNOWLEDGE = (
    "running (the stored statistics, the batch ignored) and toward_running (shrinks to them) know "
    "more than the batch: they come from training on these very images. That running is so close "
    "is no skill, and on images unlike the training images it need not be."
)

Target = Literal["mean", "variance"]
Key = tuple[Target, str]
"""What is estimated, and the estimator's name: a line of the table."""

ESTIMATORS: dict[Key, Rule] = {
    ("mean", REFERENCE): rules.none().mean,
    ("mean", "stein"): rules.stein().mean,
    ("mean", "jsnorm"): rules.jsnorm().mean,
    ("mean", "james_stein"): lambda batch, running: estimators.james_stein(
        batch.mean, jnp.asarray(batch.mean_noise)
    ),
    ("mean", "ridge"): rules.ridge().mean,
    ("mean", "lasso"): rules.lasso().mean,
    ("mean", "toward_running"): rules.toward_running().mean,
    ("mean", "running"): lambda batch, running: running.mean,
    ("variance", REFERENCE): rules.none().variance,
    ("variance", "stein"): rules.stein().variance,
    ("variance", "stein, fraction 0.5"): rules.stein(fraction=0.5).variance,
    ("variance", "jsnorm"): rules.jsnorm().variance,
    ("variance", "moderated"): lambda batch, running: estimators.moderated_variance(
        batch.variance, batch.count - 1
    ),
    ("variance", "ridge"): rules.ridge().variance,
    ("variance", "lasso"): rules.lasso().variance,
    ("variance", "toward_running"): rules.toward_running().variance,
    ("variance", "running"): lambda batch, running: running.variance,
}


@dataclasses.dataclass(frozen=True)
class RiskRow:
    """One ratio of risks.

    Attributes:
      config: the experiment's name.
      seed: of the weights, the training and the batches.
      target: ``mean`` or ``variance``, what is estimated.
      estimator: its name.
      batch_size: images per batch.
      layer: the layer's path, or ``all``.
      ratio: risk relative to that of the sample statistics; over all layers the geometric mean.
      lowest: the smallest ratio of a layer.
      highest: the largest.
      ci_low: lower end of the ratio's 95 % bootstrap interval over batches.
      ci_high: upper end.
      risk: the risk itself, summed over channels; None over all layers, whose units differ.
      batches: how many were drawn.
      n: images in the population.
    """

    config: str
    seed: int
    target: Target
    estimator: str
    batch_size: int
    layer: str
    ratio: float
    lowest: float
    highest: float
    ci_low: float
    ci_high: float
    risk: float | None
    batches: int
    n: int


def run(
    out: Path, *, smoke: bool = False, seed: int = 0, display: Display | None = None
) -> list[RiskRow]:
    """Trains one network, measures the risks, writes ``out/risk.*``; returns the rows.

    Args:
      out: the folder for the results; made where there is none.
      smoke: a tiny network and few batches, to see that all parts run.
      seed: of the weights, the order of the training images and the batches.
      display: where to print and to show bars; standard output by default.

    Raises:
      ConfigError: a negative seed, or a folder that cannot be used.
    """
    if seed < 0:
        raise ConfigError(f"seed must be at least 0; got {seed}")
    # Where there is no terminal to ask, rich would break the table at 80 columns.
    config = presets.load("digits", smoke=smoke)
    make_folder(out)
    write_json(out / "config.json", dataclasses.asdict(config))
    dataset = data.load(config.data)
    began, rows = time.perf_counter(), list[RiskRow]()
    display = display or Display()
    with display:
        layers = _trained_layers(config, dataset, seed, display)
        with display.bar("", len(BATCH_SIZES)) as bar:
            for size in BATCH_SIZES:
                bar.note(f"batches of {size}")
                batches = SMOKE_BATCHES if smoke else BATCHES
                rows += measure(layers, size, batches, experiment=config.name, seed=seed)
                bar.advance()
                display.say(f"batches of {size}: measured, {time.perf_counter() - began:.0f} s")
        flags = f"{'--smoke ' if smoke else ''}--seed {seed}"
        command = f"python -m experiments risk --out {shlex.quote(str(out))} {flags}"
        _write(out, command, rows, display)
    return rows


class _Shown(Observer):
    """Moves the bar."""

    def __init__(self, bar: Bar):
        self._bar = bar
        self.loss = math.nan

    def stepped(self, step: int, total: int, loss: float) -> None:
        """A step is done."""
        self.loss = loss
        self._bar.note(f"batch: training, loss {loss:.3f}")
        self._bar.move_to(step, total)


def _trained_layers(
    config: ExperimentConfig, dataset: Dataset, seed: int, display: Display
) -> list[NormLayer]:
    task = tasks.create(config.task, dataset.classes)
    model = build(
        config.model, "batch", config.train, examples=dataset.train, outputs=task.outputs, seed=seed
    )
    with display.bar("batch: compiling") as bar:
        shown = _Shown(bar)
        loop = Loop(task=task, config=config.train, seed=seed, observer=shown)
        trained = loop.run(model, dataset.train)
    layers = norm_layers(trained.model, dataset.train.inputs)
    display.say(f"batch, seed {seed}: trained, loss {shown.loss:.3f}, {len(layers)} norm layers")
    return layers


def draw(images: int, batch_size: int, batches: int, seed: int) -> np.ndarray:
    """Indices (batches, batch_size) of random batches; the images of one batch are distinct."""
    generator = np.random.default_rng((seed, batch_size))
    return np.stack([generator.permutation(images)[:batch_size] for _ in range(batches)])


def measure(
    layers: Sequence[NormLayer], batch_size: int, batches: int, *, experiment: str, seed: int
) -> list[RiskRow]:
    """Ratios of risks at one batch size, per layer and over all layers.

    Args:
      layers: of one network, so that all have the same images.
      batch_size: images per batch.
      batches: how many are drawn; the same for all layers.
      experiment: name of the configuration, for the rows.
      seed: of the batches.
    """
    indices = draw(len(layers[0].inputs), batch_size, batches, seed)
    per_layer = [squared_errors(layer, indices) for layer in layers]
    errors = {key: np.stack([e[key] for e in per_layer], axis=1) for key in ESTIMATORS}
    # How often each batch is in each resample: one draw for all layers and estimators pairs them.
    generator = np.random.default_rng((seed, batch_size, 1))
    weights = generator.multinomial(batches, np.full(batches, 1 / batches), RESAMPLES)
    rows = []
    for target, estimator in ESTIMATORS:
        own, reference = errors[target, estimator], errors[target, REFERENCE]
        ratio = _with_average(own.mean(0) / reference.mean(0))
        resampled = _with_average((weights @ own) / (weights @ reference))
        low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
        for i, name in enumerate([*(layer.name for layer in layers), ALL_LAYERS]):
            is_all = name == ALL_LAYERS
            behind = ratio[:-1] if is_all else ratio[[i]]
            row = RiskRow(
                config=experiment,
                seed=seed,
                target=target,
                estimator=estimator,
                batch_size=batch_size,
                layer=name,
                ratio=float(ratio[i]),
                lowest=float(behind.min()),
                highest=float(behind.max()),
                ci_low=float(low[i]),
                ci_high=float(high[i]),
                risk=None if is_all else float(own[:, i].mean()),
                batches=batches,
                n=len(layers[0].inputs),
            )
            rows.append(row)
    return rows


def _with_average(ratios: np.ndarray) -> np.ndarray:
    """Appends the geometric mean over the layers, the last axis."""
    return np.append(ratios, np.exp(np.log(ratios).mean(-1, keepdims=True)), axis=-1)


def squared_errors(layer: NormLayer, indices: np.ndarray) -> dict[Key, np.ndarray]:
    """Total squared error over the channels of every estimator: (R,) for indices (R, B)."""
    axes = tuple(range(layer.inputs.ndim - 1))
    population = layer.inputs.astype(np.float64)
    truth = {"mean": population.mean(axes), "variance": population.var(axes)}
    estimates = _estimates(layer.inputs, indices, layer.running)
    return {
        key: np.sum((np.asarray(estimates[key], np.float64) - truth[key[0]]) ** 2, axis=-1)
        for key in ESTIMATORS
    }


@jax.jit
def _estimates(
    inputs: jax.Array, indices: jax.Array, running: RunningStatistics
) -> dict[Key, jax.Array]:
    def one(index: jax.Array) -> dict[Key, jax.Array]:
        batch = batch_statistics(inputs[index], noise=True)
        return {key: rule(batch, running) for key, rule in ESTIMATORS.items()}

    return jax.vmap(one)(indices)


def _write(out: Path, command: str, rows: Sequence[RiskRow], display: Display) -> None:
    write_json(out / "risk.json", [dataclasses.asdict(row) for row in rows])
    caption, chance = _caption(rows), _chance(rows)
    parts = [
        "# Risk of the estimators on real feature maps",
        f"```\n{command}\n```",
        caption,
        _markdown(rows, _range),
        chance,
        KNOWLEDGE,
        "The same geometric means, with their 95 % intervals over batches.",
        _markdown(rows, _interval),
    ]
    write_text(out / "risk.md", "\n\n".join(part.rstrip() for part in parts) + "\n")
    display.say(_terminal(rows, caption))
    display.say(f"{chance}\n{KNOWLEDGE}")
    display.say(f"Rows and tables: {out}")


def _caption(rows: Sequence[RiskRow]) -> str:
    layers = len({row.layer for row in rows} - {ALL_LAYERS})
    return (
        "Total squared error of the channel statistics against those of the population (all "
        f"{rows[0].n} training images), relative to the sample statistics of the same batch: "
        f"geometric mean over the {layers} norm layers (smallest – largest layer). Below 1 is "
        "better than no shrinkage; ~: the 95 % interval of the geometric mean contains 1."
    )


def _chance(rows: Sequence[RiskRow]) -> str:
    """What the number of batches leaves open, and what it says nothing about."""
    drawn = [row for row in rows if row.layer == ALL_LAYERS and row.estimator != REFERENCE]
    width = [math.sqrt(row.ci_high / row.ci_low) - 1 for row in drawn]
    worst = drawn[int(np.argmax(width))]
    return (
        f"Chance: {worst.batches} batches of each size. The widest 95 % interval of a geometric "
        f"mean is about ±{100 * max(width):.2g} % of it ({worst.target}, {worst.estimator}, batch "
        f"size {worst.batch_size}: {_number(worst.ci_low)} to {_number(worst.ci_high)}). This is "
        f"the chance of drawing batches, not of training: it is one network, of seed {worst.seed}."
    )


def _number(value: float) -> str:
    if value < 0.1:
        return f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _range(row: RiskRow) -> str:
    if row.estimator == REFERENCE:
        return "1"
    unclear = "~" if row.ci_low <= 1 <= row.ci_high else ""
    return f"{unclear}{_number(row.ratio)} ({_number(row.lowest)} – {_number(row.highest)})"


def _interval(row: RiskRow) -> str:
    if row.estimator == REFERENCE:
        return "1"
    # More digits than in the range: ridge and lasso move the third.
    return f"{row.ratio:.4g} [{row.ci_low:.4g}, {row.ci_high:.4g}]"


def _lines(rows: Sequence[RiskRow], write: Callable[[RiskRow], str]) -> list[tuple[str, ...]]:
    """The table's cells, the header first."""
    found = {(r.target, r.estimator, r.batch_size): r for r in rows if r.layer == ALL_LAYERS}
    header = ("estimator", "of", *(f"batch size {size}" for size in BATCH_SIZES))
    body = [
        (estimator, target, *(write(found[target, estimator, size]) for size in BATCH_SIZES))
        for target, estimator in ESTIMATORS
    ]
    return [header, *body]


def _terminal(rows: Sequence[RiskRow], caption: str) -> Table:
    table = Table(title=caption, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    header, *body = _lines(rows, _range)
    for i, name in enumerate(header):
        table.add_column(name, no_wrap=True, justify="left" if i < 2 else "right")
    for line in body:
        if line[0] == REFERENCE:
            table.add_section()
        table.add_row(*line)
    return table


def _markdown(rows: Sequence[RiskRow], write: Callable[[RiskRow], str]) -> str:
    header, *body = _lines(rows, write)
    ruler = ("---", "---", *("---:" for _ in BATCH_SIZES))
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ruler, *body)) + "\n"
