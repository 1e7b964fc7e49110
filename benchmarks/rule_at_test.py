"""What does a trained network lose where another shrinkage is applied at test time?

Run with ``python -m benchmarks.rule_at_test WORKDIR... --data-dir DIR``, work folders of
``python -m experiments train``.  A network is measured with its own rule and with others, on clean
test examples and under gaussian noise, with each source of statistics in which a rule has a part.
Forward passes only.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import data, tasks
from experiments.commands.caches import user_cache
from experiments.configs.schema import AttackConfig, Statistics
from experiments.evaluation.compiled_programs import release_where_many
from experiments.evaluation.measure import measure
from experiments.evaluation.plan import Plan, Run
from experiments.report import of_task
from experiments.training.folder import read_settings
from experiments.training.weights import load_weights

SOURCES: tuple[Statistics, ...] = ("running", "batch", "shrunk")


def scores(
    workdir: Path, rules: Sequence[str], data_dir: Path, examples: int, noise: float
) -> list[list[str]]:
    """Returns a row of the table for each rule and source."""
    settings = read_settings(workdir)
    config = settings.config
    if settings.norm == "group":
        raise SystemExit(f"{workdir} was trained with norm group, which has no rule: leave it out")
    dataset = data.load(config.data, data_dir, user_cache())
    dataset = dataclasses.replace(
        dataset, test=dataset.test.take(np.arange(len(dataset.test))[:examples])
    )
    task = tasks.create(config.task, dataset.classes)
    attacks = (AttackConfig("gaussian", "gaussian", (noise,)),)
    (metric, *_) = of_task(config.task)
    found = []
    for rule in dict.fromkeys((settings.norm, *rules)):
        # The weights are of the same names and shapes, whatever the rule.
        as_if = dataclasses.replace(settings, norm=rule)
        model, _ = load_weights(workdir, as_if, dataset, task, "best")
        for source in SOURCES:
            plan = Plan(source, config.evaluation.batch_size, attacks)
            run = Run(config.name, rule, settings.seed)
            measured = measure(model, task, dataset.test, plan, run=run)
            values = (f"{100 * task.scores(each.summary)[metric]:.1f}" for each in measured)
            found.append([settings.norm, str(settings.seed), rule, source, *values])
        release_where_many()
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdirs", nargs="+", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--rules", nargs="+", default=["batch", "stein"], help="besides its own")
    parser.add_argument("--examples", type=int, default=64, help="the first of the test part")
    parser.add_argument("--noise", type=float, default=77 / 255, help="root mean square")
    options = parser.parse_args()
    print("| trained with | seed | rule at test | statistics | clean | noise |")
    print("|---|---|---|---|---:|---:|")
    for workdir in options.workdirs:
        for row in scores(
            workdir, options.rules, options.data_dir, options.examples, options.noise
        ):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
