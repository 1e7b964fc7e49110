"""The flags of each command, and what it is called with; those of ``train`` are beside."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.commands.caches import user_cache
from experiments.commands.parsing import first_look, parse
from experiments.commands.train_flags import TrainOptions, train, train_with


def demo(
    workdir: Path,
    norms: tuple[str, ...] = (),
    seeds: int = 2,
    smoke: bool = False,
) -> None:
    """Train every norm on real digits, attack it, print a table, write tables and plots.

    Args:
        workdir: Folder for the results; finished runs in it are reused.
        norms: Norms to compare; all but those for small batches if none is named.
        seeds: Number of seeds.
        smoke: Tiny network and few images, to see that all parts run.
    """
    # Imported here, so that --help answers at once.
    from experiments.commands import demo as command  # noqa: PLC0415
    from experiments.models.norms import DEMO_NORMS  # noqa: PLC0415

    command.run(workdir, norms=norms or DEMO_NORMS, seeds=seeds, smoke=smoke)


def compare(  # noqa: PLR0917
    config: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")],
    workdir: Path,
    data_dir: Path | None = None,
    preset: str | None = None,
    norms: tuple[str, ...] = (),
    seeds: int = 3,
    split_per_seed: bool = False,
    control: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    smoke: bool = False,
    statistics: str = "",
    attacks: str = "",
    epsilon: str = "",
    test_examples: int | None = None,
    independent_batch_size: int | None = None,
    steps: int | None = None,
    check_examples: int | None = None,
    cache_dir: Path | None = None,
) -> None:
    """Train, evaluate and report several norms with several seeds.

    Run the same command again to go on with a comparison that was stopped. The runs are work
    folders, which `evaluate`, `report` and `shift` take too.

    Args:
        config: digits, cifar10, volumes or cityscapes; `list` describes them.
        workdir: Folder for the report and, in runs/NORM-SEED, the work folders.
        data_dir: Folder of the data set (not needed for digits).
        preset: One of the config's presets; the first of them by default.
        norms: Norms to compare; all but those for small batches if none is named.
        seeds: Number of seeds, from 0 up.
        split_per_seed: Let each seed draw its own training, validation and test parts, as
            --set data.split_seed=SEED; volumes by subject, whatever their table says.
        control: Also train batch norm otherwise, as --control model.width=12, and compare the
            norms with it at equal clean accuracy (may be repeated).
        set: A setting for all norms, as --set train.epochs=10, or for one, whose learning rate may
            be its own, as --set group:train.learning_rate=0.02 (may be repeated).
        smoke: Tiny networks and few examples, to see that all parts run.
        statistics: Sources of the statistics, as in evaluate.
        attacks: Attacks and noises, as in evaluate; `all` of the config's.
        epsilon: Their radii instead of their own, as in evaluate.
        test_examples: Only the first of the test part.
        independent_batch_size: As in evaluate.
        steps: Gradient steps of the attacks instead of their own.
        check_examples: Test examples for the checks of the attacks, as in evaluate.
        cache_dir: Folder for decoded data; the user's cache by default.
    """
    from experiments.commands import compare as command  # noqa: PLC0415
    from experiments.commands import evaluation_request  # noqa: PLC0415
    from experiments.models.norms import DEMO_NORMS  # noqa: PLC0415

    request = evaluation_request.Request(
        statistics=statistics,
        attacks=attacks,
        epsilons=epsilon,
        test_examples=test_examples,
        independent_batch_size=independent_batch_size,
        steps=steps,
        check_examples=check_examples,
    )
    configs = command.configs(config, preset, smoke, norms or DEMO_NORMS, set)
    comparison = command.Comparison(
        configs=configs,
        seeds=seeds,
        request=request,
        requests=command.requests(request, configs, set),
        controls=command.controls(config, preset, smoke, set, control),
        split_per_seed=split_per_seed,
        data_dir=data_dir,
        cache_dir=cache_dir or user_cache(),
    )
    command.run(workdir, comparison)


def risk(out: Path, smoke: bool = False, seed: int = 0, parts: str = "") -> None:
    """Measure the risk of every estimator: exactly, by Monte Carlo, on a network's feature maps.

    Run the same command again to go on with a measurement that was stopped.

    Args:
        out: Folder for the results.
        smoke: Small grids and a tiny network: a minute at most instead of 15.
        seed: Seed of all random numbers, the networks' training included.
        parts: Only some, separated by commas: counterexamples, independent, map, correlated,
            perturbed, maps, fraction, lipschitz.
    """
    from experiments.commands import risk as command  # noqa: PLC0415

    command.run(out, smoke=smoke, seed=seed, parts=parts)


def evaluate(  # noqa: PLR0917
    workdir: Annotated[Path, tyro.conf.Positional],
    data_dir: Path | None = None,
    statistics: str = "",
    attacks: str = "",
    epsilon: str = "",
    threat_models: str = "joint",
    victims: int = 32,
    test_examples: int | None = None,
    batch_size: int | None = None,
    independent_batch_size: int | None = None,
    steps: int | None = None,
    queries: int | None = None,
    weights: str = "best",
    twin: Path | None = None,
    check_examples: int | None = None,
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = (),
    cache_dir: Path | None = None,
    distributed: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Measure a trained network on the test part: clean, and attacked where asked.

    Run the same command again to go on with an evaluation that was stopped.

    Args:
        workdir: Work folder of a training.
        data_dir: Folder of the data set; that of the training by default.
        statistics: Sources of the statistics, as running,batch,shrunk,calibrated; the config's by
            default.
        attacks: Attacks and noises, separated by commas: `all` of the config's; fgsm, pgd,
            pgd-margin, apgd, apgd-dlr, apgd-margin, apgd-t, fab-t, square, autoattack, segpgd, sea,
            each also with -l2 behind; gaussian, uniform, rademacher, truncated_gaussian,
            clipped_cauchy. None by default.
        epsilon: Radii (of noises: root mean squares) instead of their own, as 2/255,8/255.
        threat_models: Who attacks where statistics are the test batch's: joint (the attacker owns
            the batch), independent (one example at a time, its batch stays clean), companion (only
            the others of an example's batch).
        victims: Examples for independent and companion, which attack one at a time.
        test_examples: Only the first of the test part.
        batch_size: Test examples per batch; the config's by default. With the test batch's
            statistics it is part of the model.
        independent_batch_size: The same with statistics under which no example depends on its
            batch, as running ones: a larger one keeps a GPU busier, and is lost whole where the
            command is stopped within it.
        steps: Gradient steps of the attacks instead of their own.
        queries: Queries of square and autoattack instead of their own.
        weights: best (by validation) or last.
        twin: Work folder of the same training with --norm batch, for the transfer check.
        check_examples: Test examples for the checks of the attacks, at most one batch of them; the
            config's by default, 0 for no checks.
        set: A setting of the evaluation instead of the config's, as --set
            evaluation.checks.restarts=20 (may be repeated).
        cache_dir: Folder for decoded data; the user's cache by default.
        distributed: Join other processes as the environment says (Slurm, Open MPI, Kubernetes).
        coordinator: HOST:PORT of process 0, to join other processes explicitly.
        processes: How many processes there are; they share the work folder and take batches in
            turn.
        process_id: Number of this process, from 0.
    """
    from experiments.data import devices  # noqa: PLC0415

    devices.join_if_asked(coordinator, processes, process_id, by_environment=distributed)
    from experiments.commands import evaluate as command  # noqa: PLC0415
    from experiments.commands import evaluation_request  # noqa: PLC0415

    request = evaluation_request.Request(
        statistics=statistics,
        attacks=attacks,
        epsilons=epsilon,
        threat_models=threat_models,
        victims=victims,
        test_examples=test_examples,
        batch_size=batch_size,
        independent_batch_size=independent_batch_size,
        steps=steps,
        queries=queries,
        weights=weights,
        twin=twin,
        check_examples=check_examples,
        changes=set,
    )
    command.run(workdir, request, data_dir=data_dir, cache_dir=cache_dir or user_cache())


def report(workdirs: Annotated[tuple[Path, ...], tyro.conf.Positional], out: Path) -> None:
    """Merge evaluated work folders over seeds and norms: tables, plots, pictures.

    Args:
        workdirs: Work folders of `evaluate`, `compare` or `demo`, in any order.
        out: Folder for the report.
    """
    from experiments.commands import report as command  # noqa: PLC0415

    command.run(workdirs, out)


def shift(  # noqa: PLR0917
    workdirs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    out: Path,
    data_dir: Path | None = None,
    data_name: str = "",
    test_examples: int = 1024,
    seed: int = 0,
    smoke: bool = False,
    weights: str = "best",
    cache_dir: Path | None = None,
) -> None:
    """Measure trained networks on corrupted test data, in batches of 1 to 64 and in sorted ones.

    Compares where the norms may take their statistics from: stored, the test batch's, and what lies
    between. Run the same command again to go on with a measurement that was stopped.

    Args:
      workdirs: Work folders of trainings, with any norm but group.
      out: Folder for the results.
      data_dir: Folder of the data set; that of each training by default.
      data_name: Name of the data set in the report, as "CIFAR-10 (JPEG copy)"; the config's by
        default.
      test_examples: At most so many of the first test examples; batches of the largest size that
        they fill.
      seed: Seed of the corruptions and of the bootstrap.
      smoke: Few examples, corruptions and batch sizes, to see that all parts run.
      weights: best (by validation) or last.
      cache_dir: Folder for decoded data; the user's cache by default.
    """
    from experiments.commands import shift as command  # noqa: PLC0415

    request = command.Request(
        out=out,
        data_dir=data_dir,
        data_name=data_name,
        test_examples=test_examples,
        seed=seed,
        smoke=smoke,
        weights=weights,
        cache_dir=cache_dir or user_cache(),
    )
    command.run(workdirs, request)


def list_configs() -> None:
    """List the configurations and presets with data set, size and expected time."""
    from experiments.configs import presets  # noqa: PLC0415

    for name in presets.config_names():
        for preset in presets.preset_names(name):
            config = presets.load(name, preset)
            print(f"{name} --preset {preset}\n  data  {config.dataset}\n  size  {config.size}")
            print(f"  time  {config.expected_time}")


def parsed(arguments: list[str]) -> Callable[[], Any]:
    """Returns the command that the arguments ask for, ready to be called."""
    commands: dict[str, Callable[..., Any]] = {
        "demo": demo,
        "compare": compare,
        "train": train,
        "evaluate": evaluate,
        "report": report,
        "risk": risk,
        "shift": shift,
        "list": list_configs,
    }
    if arguments[:1] != ["train"]:
        return parse(commands, arguments)
    found = first_look(TrainOptions, arguments[1:])
    if found.config is None:
        return parse(commands, arguments)
    # Imported here, because the other commands' help need not wait for pydantic.
    from experiments.configs import flags, presets  # noqa: PLC0415

    config = presets.load(found.config, found.preset, smoke=bool(found.smoke))
    flags.check_names(config, arguments)
    return parse({**commands, "train": train_with(config)}, arguments, flags.registry())
