"""Trainings that are killed, and go on as if they had not been."""

import random
import shutil
import signal

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.__main__ import main
from experiments.data.examples import Dataset, Examples
from experiments.training.checkpoints import Checkpoints
from experiments.training.loop import Observer
from experiments.training.step import CompiledStep
from tests.experiments import cli
from tests.experiments.training import test_loop

STEPS = 28  # 7 epochs of 4


def _arguments(workdir, *more, norm="stein", epochs=STEPS // 4):
    return [
        *("train", "digits", "--smoke", "--workdir", str(workdir), "--norm", norm),
        *("--epochs", str(epochs), "--checkpoint-every", "1", "--log-every", "1"),
        *("--set", "train.augment=true", "--set", "train.shift=1", *more),
    ]


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return cli.environment(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, env):
    """A training that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "work"
    cli.succeeds(_arguments(workdir), env)
    return workdir


def _newest(workdir):
    return max(cli.steps(workdir), default=0)


def _kill_at(workdir, env, step, wait, **settings):
    """Kills a training a moment after the checkpoint of a step; False where it was faster."""
    with cli.started(_arguments(workdir, **settings), env) as process:
        cli.until(lambda: _newest(workdir) >= step, process)
        cli.until(wait, process)
        if process.poll() is not None:
            return False
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    return True


def _kill_within_a_write(workdir, env, **settings):
    """Kills a training with a checkpoint half written; the process stands still meanwhile."""
    with cli.started(_arguments(workdir, **settings), env) as process:
        # One must be finished; to look without a pause before that takes a processor.
        cli.until(lambda: _newest(workdir), process)
        while cli.until(lambda: cli.unfinished(workdir), process, pause=0):
            cli.stand_still(process)
            if cli.unfinished(workdir) and _newest(workdir):
                process.kill()
                process.wait()
                return
            process.send_signal(signal.SIGCONT)
    pytest.fail("no checkpoint was seen being written")


def _moments(generator, count, step, last):
    """(step, polls to wait after it) of some kills, in order."""
    chosen = sorted(generator.sample(range(step + 1, last), count))
    for at in chosen:
        left = generator.randrange(20)

        def wait(left=[left]):  # noqa: B006
            left[0] -= 1
            return left[0] < 0

        yield at, wait


def test_a_training_killed_again_and_again_ends_bit_for_bit_the_same(whole, env, tmp_path):
    workdir = tmp_path / "work"
    _kill_within_a_write(workdir, env)
    assert cli.unfinished(workdir)
    for at, wait in _moments(random.Random(0), 1, _newest(workdir) + 3, STEPS - 8):
        assert _kill_at(workdir, env, at, wait)
        assert cli.steps(workdir)[-1] < STEPS
    out, _ = cli.succeeds(_arguments(workdir), env)
    assert "going on from the checkpoint of step" in out
    cli.same(whole, workdir)
    assert [line["step"] for line in cli.log(workdir, "train")] == [*range(1, STEPS + 1)]
    assert not cli.unfinished(workdir)
    assert cli.steps(workdir) == [STEPS - 1, STEPS]
    rows = []
    # In this process: the same program for both.  The next test compares checks.
    more = ["--attacks", "fgsm", "--check-examples", "0"]
    for folder in (whole, workdir):
        assert main(["evaluate", str(folder), *more]) == 0
        rows.append(cli.results(folder))
    assert rows[0] == rows[1]


def test_an_evaluation_that_is_killed_goes_on(whole, env, tmp_path):
    calm, killed = (cli.copied(whole, tmp_path / name) for name in ("calm", "killed"))
    for workdir in (calm, killed):  # another test may have evaluated it before
        (workdir / "results.json").unlink(missing_ok=True)
        shutil.rmtree(workdir / "evaluation", ignore_errors=True)
    more = ["--attacks", "fgsm,pgd,square", "--epsilon", "0.1", "--queries", "5"]
    more += ["--statistics", "running", "--batch-size", "10"]
    # One of them is killed, in a process of its own; the others run here.
    assert main(["evaluate", str(calm), *more]) == 0
    with cli.started(["evaluate", killed, *more], env) as process:
        folder = killed / "evaluation"
        assert cli.until(lambda: list(folder.glob("*pgd*.npz")), process)
        process.kill()
        process.wait()
    assert not (killed / "results.json").exists()
    done = {path.name: path.read_bytes() for path in folder.glob("*.npz")}
    assert "running-fgsm-0.1.npz" in done
    assert "running-square-0.1.npz" not in done
    assert main(["evaluate", str(killed), *more]) == 0
    assert cli.results(killed) == cli.results(calm)
    after = (folder / "running-fgsm-0.1.npz").read_bytes()
    assert after == done["running-fgsm-0.1.npz"]
    assert (killed / "checks.json").read_text() == (calm / "checks.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["toward_running", "stein"])
def test_fifteen_kills(norm, env, tmp_path):
    whole, workdir, generator = tmp_path / "whole", tmp_path / "work", random.Random(1)
    settings = {"norm": norm, "epochs": 30}
    cli.succeeds(_arguments(whole, **settings), env)
    # While it starts: nothing is there yet, or an older state.
    for seconds in (0.5, 2.0):
        with cli.started(_arguments(workdir, **settings), env) as process:
            try:
                process.wait(seconds * generator.uniform(0.5, 1.5))
            except cli.subprocess.TimeoutExpired:
                process.kill()
    for _ in range(3):
        _kill_within_a_write(workdir, env, **settings)
    kills = 0
    for at, wait in _moments(generator, 10, _newest(workdir) + 1, 110):
        if at > _newest(workdir):
            kills += _kill_at(workdir, env, at, wait, **settings)
    assert kills >= 8
    cli.succeeds(_arguments(workdir, **settings), env)
    cli.same(whole, workdir)
    assert [line["step"] for line in cli.log(workdir, "train")] == [*range(1, 121)]


@pytest.fixture
def _interruptible():
    """Shells start background jobs with SIGINT ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_a_folder_in_use_and_control_c(env, tmp_path, capsys):
    """A second command is refused; Ctrl-C leaves a checkpoint and a way on."""
    workdir = tmp_path / "work"
    # A checkpoint at the ends of epochs only, so that the one of Ctrl-C is told apart.
    arguments = _arguments(workdir, epochs=2000)
    place = arguments.index("--checkpoint-every")
    arguments[place + 1] = "100000"
    arguments += ["--set", "train.batch_size=4"]  # 32 steps an epoch
    with cli.started(arguments, env) as process:
        assert cli.until(lambda: _newest(workdir), process)
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert f"{workdir} is in use by another command" in error
        assert error.count("\n") == 1
        process.send_signal(signal.SIGINT)
        status, _, err = cli.ended(process)
    assert status == 130, err[-3000:]
    assert "the same command goes on where it was" in err
    assert "Traceback" not in err
    logged = cli.log(workdir, "train")[-1]["step"]
    # Reports come one step late.
    assert cli.steps(workdir)[-1] in (logged, logged + 1)
    assert not cli.unfinished(workdir)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("moment", ["before", "after", "report"])
def test_control_c_at_any_moment_of_a_step_goes_on_bit_for_bit(moment, tmp_path, monkeypatch):
    """Ctrl-C lands between any two lines: beside a step, or where its report is waited for."""
    generator = np.random.default_rng(0)
    inputs, labels = generator.normal(size=(64, 3, 3, 4)), generator.integers(0, 2, 64)
    train = Examples(inputs.astype(np.float32), labels.astype(np.int32))
    dataset = Dataset(train, train.take(np.arange(0)), train, classes=2)
    whole, _ = test_loop._train(dataset)
    step_fn, count = CompiledStep.take, 0

    def interrupted(self, *arguments):
        nonlocal count
        count += 1
        if moment == "before" and count == 6:
            signal.raise_signal(signal.SIGINT)
        result = step_fn(self, *arguments)
        if moment == "after" and count == 6:
            signal.raise_signal(signal.SIGINT)
        return result

    class Observed(Observer):
        def stepped(self, step, total, loss):
            if moment == "report" and step == 6:
                signal.raise_signal(signal.SIGINT)

    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(CompiledStep, "take", interrupted)
        with pytest.raises(KeyboardInterrupt):
            test_loop._train(dataset, checkpoints=checkpoints, observer=Observed())
    resumed, notes = test_loop._train(dataset, checkpoints=checkpoints)
    checkpoints.close()
    # A step whose result was lost on the way may be done again, never done twice.
    assert notes.starts[0] >= 4
    for a, b in zip(
        jax.tree.leaves(nnx.state(whole.model)),
        jax.tree.leaves(nnx.state(resumed.model)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_other_settings_in_the_same_folder_are_refused(tmp_path, capsys):
    whole = tmp_path / "work"
    assert main(_arguments(whole, epochs=1)) == 0
    before = (whole / "config.json").read_bytes()
    for more, name in (
        (["--set", "train.learning_rate=0.01"], "config.train.learning_rate is 0.1 there, 0.01"),
        (["--seed", "1"], "seed is 0 there, 1 here"),
        (["--norm", "batch"], "norm is 'stein' there, 'batch' here"),
    ):
        assert main(_arguments(whole, *more, epochs=1)) == 2
        error = capsys.readouterr().err
        assert name in error
        assert "Choose another --workdir" in error
    assert (whole / "config.json").read_bytes() == before
    assert cli.steps(whole)[-1] == 4


def _spoil(checkpoint):
    """Flips a bit in each of the files that hold arrays."""
    for file in (checkpoint / "arrays").glob("**/d/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


# The parts of it are fast: test_checkpoints_read.py.
@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(whole, env, tmp_path, capsys):
    workdir = cli.copied(whole, tmp_path / "work")
    _spoil(workdir / "checkpoints" / str(STEPS))
    out, err = cli.succeeds(_arguments(workdir), env)
    assert f"the checkpoint of step {STEPS}" in err
    assert "taking an older one" in err
    assert f"going on from the checkpoint of step {STEPS - 1} of {STEPS}" in out
    cli.same(whole, workdir)
    assert [p.name for p in (workdir / "damaged").iterdir()] == [str(STEPS)]

    for step in cli.steps(workdir):
        _spoil(workdir / "checkpoints" / str(step))
    assert main(_arguments(workdir)) == 1
    error = capsys.readouterr().err
    assert "no checkpoint" in error
    assert "can be read" in error
    assert "Traceback" not in error
    # Removed by hand, as the message says: it begins anew, and so does its log.
    shutil.rmtree(workdir / "checkpoints")
    assert main(_arguments(workdir)) == 0
    assert [line["step"] for line in cli.log(workdir, "train")] == [*range(1, STEPS + 1)]


def test_a_training_that_diverges_stops_and_names_the_step(tmp_path, capsys):
    arguments = _arguments(tmp_path / "work", "--set", "train.learning_rate=1e30")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "after step" in error or "at step" in error
    assert "train.learning_rate" in error
    assert error.count("\n") == 1
    # What is kept is finite, and going on from it stops again instead of training on.
    assert main(arguments) == 1
