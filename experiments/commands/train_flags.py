"""The flags of ``train``, which has one for each setting of a configuration besides its own."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import tyro

from experiments.commands.caches import user_cache

if TYPE_CHECKING:  # its import takes pydantic, which the help can do without
    from experiments.configs.schema import ExperimentConfig

_UNNAMED = tyro.conf.arg(name="")  # its fields are flags without a prefix


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """The options of ``train``, besides the settings of the configuration.

    Attributes:
      config: digits, cifar10, volumes or cityscapes; `list` describes them, and
        `train CONFIG --help` shows a flag for each of its settings.
      workdir: Folder for settings, log and checkpoints.
      data_dir: Folder of the data set (not needed for digits).
      preset: One of the config's presets; the first of them by default.
      norm: batch, stein, stein_mean_only, jsnorm, ridge, lasso, toward_running, batch_renorm,
        learnt_noise or group.
      seed: Seed of the weights and of the order of the examples.
      epochs: Short for --train.epochs.
      train_examples: Short for --data.train-examples.
      set: Any setting in another spelling, as --set train.learning_rate=0.05 (may be repeated).
      smoke: Tiny network and few examples: seconds instead of hours (attacks on it still compile
        for a minute or more).
      checkpoint_every: Steps between checkpoints, besides one at the end of each epoch.
      log_every: Steps between two lines of metrics.jsonl.
      loader_threads: Threads that make batches; by default one for each core, at most 8.
      tensorboard: Write TensorBoard event files too.
      cache_dir: Folder for decoded data, shared by all runs; the user's cache by default.
      distributed: Join other processes as the environment says (Slurm, Open MPI, Kubernetes).
      coordinator: HOST:PORT of process 0, to join other processes explicitly.
      processes: How many processes there are.
      process_id: Number of this process, from 0.
    """

    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    workdir: Path
    data_dir: Path | None = None
    preset: str | None = None
    norm: str = "stein"
    seed: int = 0
    epochs: int | None = None
    train_examples: int | None = None
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    smoke: bool = False
    checkpoint_every: int | None = None
    log_every: int = 20
    loader_threads: int | None = None
    tensorboard: bool = False
    cache_dir: Path | None = None
    distributed: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process_id: int | None = None


def train(options: Annotated[TrainOptions, _UNNAMED]) -> None:
    """Train one network; run the same command again to go on with a training that was stopped."""
    _train(options, {})


def train_with(config: "ExperimentConfig") -> Callable[..., None]:
    """Returns the command ``train`` with a flag for each setting of a configuration."""
    from experiments.configs import flags, schema  # noqa: PLC0415

    def command(
        options: Annotated[TrainOptions, _UNNAMED],
        settings: Annotated[schema.ExperimentConfig, _UNNAMED] = config,
    ) -> None:
        # The rules of ``flags`` read settings as dictionaries.
        _train(options, flags.changed(config, cast("dict[str, Any]", settings)))

    command.__doc__ = train.__doc__
    return command


def _train(options: TrainOptions, settings: dict[str, Any]) -> None:
    from experiments.configs import overrides  # noqa: PLC0415
    from experiments.data import devices  # noqa: PLC0415

    devices.join_if_asked(
        options.coordinator,
        options.processes,
        options.process_id,
        by_environment=options.distributed,
    )
    from experiments.commands import train as command  # noqa: PLC0415

    resolved = overrides.resolve(
        options.config,
        preset=options.preset,
        smoke=options.smoke,
        settings=settings,
        epochs=options.epochs,
        train_examples=options.train_examples,
        overrides=options.set,
    )
    command.run(
        resolved,
        command.Places(options.workdir, options.data_dir, options.cache_dir or user_cache()),
        norm=options.norm,
        seed=options.seed,
        checkpoint_every=options.checkpoint_every,
        log_every=options.log_every,
        loader_threads=options.loader_threads,
        tensorboard=options.tensorboard,
    )
