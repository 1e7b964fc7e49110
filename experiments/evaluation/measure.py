"""Scores of a trained model on the test part: clean, under noise and under attack."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import steinnorm
from experiments.configs.schema import AttackConfig, Statistics
from experiments.data.batches import Batch, in_order
from experiments.data.examples import Examples, as_inputs
from experiments.evaluation import aggregate as scores
from experiments.evaluation import per_example as cells
from experiments.evaluation.attack_batch import DEPENDENT, Opponent, ThreatModel, check_fits
from experiments.evaluation.per_example import Cell, Values
from experiments.models.norms import in_evaluation
from experiments.results import Row
from experiments.tasks import Summary, Task
from steinnorm.attacks.code_digest import code_digest


class Labels(NamedTuple):
    """What rows say about the run that they were measured in.

    Attributes:
      config: name of the configuration.
      norm: name of the norm.
      seed: of the run; also of noise and random starts.
      class_names: for pictures; may be empty.
    """

    config: str
    norm: str
    seed: int
    class_names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
      statistics: the source of the norm's statistics.
      batch_size: with statistics of the test batch, scores depend on it.
      attacks: measured besides the clean scores.
      threat_model: who attacks whom in a batch whose statistics count;
        elsewhere there is nothing to choose.
      victims: with the threat models ``independent`` and ``companion``, which attack one example
        at a time, how many of the first examples; None is all.
      metrics: names of the scores that become rows; None is all.
    """

    statistics: Statistics
    batch_size: int
    attacks: Sequence[AttackConfig] = ()
    threat_model: ThreatModel = "joint"
    victims: int | None = None
    metrics: Sequence[str] | None = None

    @property
    def dependent(self) -> bool:
        """Whether an example's answer depends on its batch."""
        return self.statistics in DEPENDENT

    @property
    def threat(self) -> str:
        """The threat model, as rows state it; empty where there is nothing to choose."""
        return self.threat_model if self.dependent and self.attacks else ""

    @property
    def alone(self) -> bool:
        """Whether examples are attacked one at a time."""
        return self.threat not in ("", "joint")

    def measured(self, examples: int) -> int:
        """How many of the examples are measured."""
        return min(self.victims or examples, examples) if self.alone else examples

    def batches(self, examples: int) -> int:
        """How many batches ``evaluate`` goes through, over all attacks and strengths."""
        cells_of_all = 1 + sum(len(attack.epsilons) for attack in self.attacks)
        return cells_of_all * -(-self.measured(examples) // self.batch_size)


def evaluate(
    model: nnx.Module,
    task: Task,
    examples: Examples,
    plan: Plan,
    *,
    labels: Labels,
    workdir: Path | None = None,
    on_batch: Callable[[str], None] = lambda what: None,
    on_progress: Callable[[str], None] = lambda how_far: None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Measures scores on all examples with one source of statistics.

    The attacker sees the model that is evaluated: gradients go through the statistics of the test
    batch where those are used.

    Args:
      model: the trained model.
      task: its scores.
      examples: the test part.
      plan: what is measured.
      labels: for the rows, and the seed of noise and random starts.
      workdir: where per-example results are kept after every batch; what is found there, measured
        with the same weights, settings and versions, is not measured again.
      on_batch: called after each batch with what it was.
      on_progress: called within a batch with how far a long attack is.
      on_row: called with each row as soon as it is there.

    Raises:
      ConfigError: an attack that does not exist for this task.
      LeftThreatError: an attack left its ball or box.
    """
    for attack in plan.attacks:
        check_fits(attack, task)
    logits_fn = as_logits_fn(in_evaluation(model, plan.statistics))
    measure = _Measure(
        Opponent(logits_fn, plan.threat_model, plan.dependent),
        task,
        examples,
        plan,
        on_batch,
        on_progress,
    )
    identity = {
        **identity_of(model, examples, plan.batch_size),
        "measured": plan.measured(len(examples)),
    }
    done, rows = [], []
    for attack in (scores.CLEAN, *plan.attacks):
        for epsilon in attack.epsilons:
            about = _about(attack, epsilon, plan, labels, identity)
            cell = measure.cell(attack, about, workdir)
            done.append(cell)
            for row in scores.rows(task, cell, plan.metrics):
                on_row(row)
                rows.append(row)
    for row in scores.worst_rows(task, done, plan.metrics):
        on_row(row)
        rows.append(row)
    return rows


def as_logits_fn(model: nnx.Module) -> jax.tree_util.Partial:
    """A model as a pure function of inputs, in a form that compiles once per architecture.

    Whatever a layer records while it runs is dropped: the model stays as it is.

    Args:
      model: ready for evaluation.
    """
    graphdef, state = nnx.split(model)
    return jax.tree_util.Partial(_apply, graphdef, state)


def _apply(graphdef: nnx.GraphDef, state: nnx.State, x: jax.Array) -> jax.Array:
    # Copies: under a gradient, writing to the caller's variables would be an error in NNX.
    return nnx.merge(graphdef, state, copy=True)(x)


@dataclasses.dataclass(frozen=True)
class _Measure:
    """Fills cells, batch after batch."""

    opponent: Opponent
    task: Task
    examples: Examples
    plan: Plan
    on_batch: Callable[[str], None]
    on_progress: Callable[[str], None]

    def cell(self, attack: AttackConfig, about: dict[str, Any], workdir: Path | None) -> Cell:
        """All examples under an attack; what is on disk already is taken from there."""
        cell = cells.load(cells.path_of(workdir, about)) if workdir else None
        if cell is not None and cell.about != about:
            cell = None
        what = f"{about['statistics']}, {about['attack']} {about['epsilon']:.3g}"
        opponent = dataclasses.replace(
            self.opponent, on_progress=lambda how_far: self.on_progress(f"{what}: {how_far}")
        )
        key = jax.random.fold_in(jax.random.key(about["seed"]), _number(about))
        for place, batch in enumerate(self._batches()):
            if cell is None or place >= cell.batches:
                at_batch = jax.random.fold_in(key, place)
                more = self._batch(opponent, (attack, about), batch, place, at_batch)
                cell = more if cell is None else cell.extended(more)
                if workdir:
                    cell.save(workdir)
            self.on_batch(what)
        assert cell is not None  # a test part is never empty
        return cell

    def _batches(self) -> Iterator[Batch]:
        """The batches that are measured; the last of them may be cut by ``victims`` later."""
        # Copies that fill the last batch would count in its statistics.
        fill = not self.plan.dependent
        left = self.plan.measured(len(self.examples))
        for batch in in_order(self.examples, self.plan.batch_size, fill=fill):
            if left <= 0:
                return
            yield batch
            left -= len(batch.real)

    def _batch(
        self,
        opponent: Opponent,
        what: tuple[AttackConfig, dict[str, Any]],
        batch: Batch,
        place: int,
        key: jax.Array,
    ) -> Cell:
        attack, about = what
        x, y = as_inputs(jnp.asarray(batch.inputs)), jnp.asarray(batch.targets)
        before = place * self.plan.batch_size
        left = self.plan.measured(len(self.examples)) - before
        found = opponent.attacked(attack, about["epsilon"], (x, y), key, left)
        count = min(int(batch.real.sum()), len(found.distance), left)
        summary = _summary(found.outputs, y[: len(found.outputs)], task=self.task)
        shown = min(count, cells.SHOWN)
        return Cell(
            about=about,
            summary={name: np.asarray(v)[:count] for name, v in summary.items()},
            distance=np.asarray(found.distance)[:count],
            batch=np.full(count, place),
            values=Values.of(np.asarray(found.inputs)),
            zero_gradients=min(found.zero_gradients, count),
            shown={
                "x": np.asarray(x[:shown]),
                "x_adv": np.asarray(found.inputs[:shown]),
                "y": np.asarray(y[:shown]),
                "prediction": _predictions(np.asarray(found.outputs[:shown])),
            },
        )


@functools.partial(jax.jit, static_argnames="task")
def _summary(outputs: jax.Array, y: jax.Array, *, task: Task) -> Summary:
    return task.summary(outputs, y)


def _predictions(outputs: np.ndarray) -> np.ndarray:
    """Classes, of K logits or of one."""
    if outputs.shape[-1] == 1:
        return (outputs[..., 0] > 0).astype(np.int32)
    return np.argmax(outputs, axis=-1).astype(np.int32)


def _about(
    attack: AttackConfig, epsilon: float, plan: Plan, labels: Labels, identity: dict[str, Any]
) -> dict[str, Any]:
    """What a cell is of, with all that its numbers depend on; as JSON gives it back."""
    how = dataclasses.asdict(attack)
    for name in ("epsilons", "shown"):
        del how[name]
    return {
        "config": labels.config,
        "norm": labels.norm,
        "seed": labels.seed,
        "class_names": list(labels.class_names),
        "statistics": plan.statistics,
        "threat_model": plan.threat,
        "attack": attack.name,
        "epsilon": float(epsilon),
        "norm_order": attack.norm if attack.has_ball else "",
        "attack_settings": how,
        "identity": identity,
    }


def identity_of(model: Any, examples: Examples, batch_size: int) -> dict[str, Any]:
    """What all numbers of an evaluation depend on, whichever its attacks: as JSON gives it back.

    Args:
      model: the trained model, before it is made ready for evaluation.
      examples: the test part.
      batch_size: test examples per batch.
    """
    data = hashlib.sha256(np.ascontiguousarray(examples.inputs).data)
    data.update(np.ascontiguousarray(examples.targets).data)
    return {
        "weights": weights_digest(model),
        "data": data.hexdigest(),
        "batch_size": batch_size,
        # Of both packages: models, tasks and checks count as much as the attacks.
        "code": code_digest(Path(steinnorm.__file__).parent, Path(__file__).parents[1]),
        "versions": [module.__version__ for module in (steinnorm, jax, flax)],
    }


def weights_digest(model: Any) -> str:
    """A hash of all arrays of a model, or of any pytree."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        nnx.state(model) if isinstance(model, nnx.Module) else model
    ):
        if isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _number(about: dict[str, Any]) -> int:
    """The same random numbers for an attack, whichever others are measured beside it."""
    return int(hashlib.sha256(about["attack"].encode()).hexdigest()[:7], 16)
