"""Several processes and several devices train what one device trains."""

import contextlib
import dataclasses
import json
import shutil
import socket
import sys

import jax
import numpy as np
import pytest

from experiments.__main__ import main
from experiments.data import devices
from experiments.data.augment import Augmentation
from experiments.data.batches import TrainBatches
from experiments.data.examples import Examples
from experiments.errors import ConfigError
from experiments.evaluation.per_example import PerExampleResults
from tests.experiments import cli
from tests.experiments.data import test_volumes as volumes


@dataclasses.dataclass(frozen=True)
class _Device:
    """What a mesh asks of a device."""

    id: int
    process_index: int


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    return cli.environment(tmp_path_factory.mktemp("compiled"), as_users_compile=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Volumes as NIfTI files with a table: a validation part that does not fill its last batch."""
    root = tmp_path_factory.mktemp("nifti")
    # 16 for training, 10 for validation in batches of 8, 10 for the test.
    words = ["train"] * 16 + ["val"] * 10 + ["test"] * 10
    volumes._table(root, volumes._rows(root, len(words), split=lambda i: words[i]))
    return root


@pytest.fixture
def arguments(data, tmp_path):
    """What is trained: config -> arguments without the work folder."""
    caches = ["--data-dir", str(data), "--cache-dir", str(tmp_path / "cache")]
    common = ["--smoke", "--log-every", "1", "--set", "train.augment=true"]
    return {
        "digits": ["train", "digits", *common],
        "volumes": ["train", "volumes", *common, *caches, "--norm", "toward_running"],
    }


def _port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _joined(arguments, port, number, count=2):
    return [
        *map(str, arguments),
        *("--coordinator", f"127.0.0.1:{port}"),
        *("--processes", str(count), "--process-id", str(number)),
    ]


def _in_two_processes(arguments, env):
    """Runs a command; what each process printed."""
    port = _port()
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(cli.started(_joined(arguments, port, i), env)) for i in range(2)
        ]
        return _outputs(processes)


_COMMANDS = """
import json, sys
from experiments.__main__ import main, silence_libraries
silence_libraries()
for arguments in json.loads(sys.argv[1]):
    if status := main(arguments):
        sys.exit(status)
"""


def _commands_in_two_processes(commands, env):
    """Runs commands one after another in the same two processes; what each process printed."""
    port = _port()
    first, *others = commands
    with contextlib.ExitStack() as stack:
        processes = []
        for number in range(2):
            joined = [_joined(first, port, number), *(list(map(str, other)) for other in others)]
            command = [sys.executable, "-c", _COMMANDS, json.dumps(joined)]
            processes.append(stack.enter_context(cli.running(command, env)))
        return _outputs(processes)


def _outputs(processes):
    ends = [cli.ended(process) for process in processes]
    for status, _, err in ends:
        assert status == 0, err[-3000:]
    return [out for _, out, _ in ends]


@pytest.mark.usefixtures("several_devices")
@pytest.mark.parametrize("name", [pytest.param("digits", marks=pytest.mark.slow), "volumes"])
def test_two_processes_and_four_devices_train_what_one_trains(name, arguments, env, tmp_path):
    if name == "volumes":  # digits, which is slow, as users compile it
        env = cli.environment(tmp_path / "compiled")
    one, two, four = (tmp_path / word for word in ("one", "two", "four"))
    more = ["--cache-dir", str(tmp_path / "cache"), "--weights", "last"]
    more += ["--attacks", "fgsm", "--check-examples", "0"]
    more += [] if name == "digits" else ["--statistics", "batch"]

    alone = [*arguments[name], "--workdir", str(one)]
    if name == "volumes":
        with pytest.MonkeyPatch.context() as patch:  # one of the four devices here
            patch.setattr(devices, "mesh", lambda _: devices.own_mesh(1))
            assert main(alone) == 0
    else:
        cli.succeeds(alone, env)
    first, second = _commands_in_two_processes(
        [[*arguments[name], "--workdir", two], ["evaluate", two, *more]], env
    )
    assert "2 cpu device(s) in 2 processes" in first
    assert f"written: {two / 'results.json'}" in first
    # Only one of them talks; the library that joins them says that it has.
    assert all(line.startswith("[Gloo]") for line in second.splitlines())
    cli.close(one, two)
    assert cli.steps(one) == cli.steps(two)

    assert main([*arguments[name], "--workdir", str(four)]) == 0  # see tests/conftest.py
    cli.close(one, four)

    # What two processes wrote and measured, four devices measure alike.
    again = cli.copied(two, tmp_path / "again")
    shutil.rmtree(again / "evaluation")
    (again / "results.json").unlink()
    assert main(["evaluate", str(again), *more]) == 0
    _measured_alike(two, again)


def _measured_alike(one, other):
    """Rows and per-example results are equal but for rounding."""
    rows, others = cli.results(one), cli.results(other)
    for row, same in zip(rows, others, strict=True):
        for field, value in row.items():
            if isinstance(value, float):
                np.testing.assert_allclose(same[field], value, rtol=1e-5, atol=1e-5, err_msg=field)
            else:
                assert same[field] == value
    results = {path.name: PerExampleResults.read(path) for path in (one / "evaluation").iterdir()}
    assert {path.name for path in (other / "evaluation").iterdir()} == set(results)
    for name, found in results.items():
        same = PerExampleResults.read(other / "evaluation" / name)
        assert same.about == found.about
        np.testing.assert_array_equal(same.batch, found.batch)
        for part in ("summary", "shown"):
            arrays, others = getattr(found, part), getattr(same, part)
            assert arrays.keys() == others.keys()
            for key, values in arrays.items():
                np.testing.assert_allclose(others[key], values, rtol=1e-4, atol=1e-4, err_msg=key)


@pytest.mark.slow
def test_one_of_two_processes_is_killed_and_both_start_again(arguments, env, tmp_path):
    whole, workdir = tmp_path / "whole", tmp_path / "work"
    longer = [*arguments["volumes"], "--epochs", "60", "--checkpoint-every", "1"]
    _in_two_processes([*longer, "--workdir", whole], env)
    port = _port()
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(cli.started(_joined([*longer, "--workdir", workdir], port, i), env))
            for i in range(2)
        ]
        cli.until(lambda: max(cli.steps(workdir), default=0) > 5, processes[0])
        processes[1].kill()
        status, _, _ = cli.ended(processes[0])  # it notices, within a minute or two
    assert status != 0
    assert cli.steps(workdir)[-1] < 120
    first, _ = _in_two_processes([*longer, "--workdir", workdir], env)
    assert "going on from the checkpoint of step" in first
    cli.same(whole, workdir)


@pytest.mark.slow
def test_a_training_of_two_processes_goes_on_in_one(arguments, env, tmp_path):
    one, both = tmp_path / "one", tmp_path / "both"
    longer = [*arguments["volumes"], "--epochs", "3"]
    cli.succeeds([*longer, "--workdir", str(one)], env)
    # As if it had been stopped after the second of three epochs: the last checkpoint is gone.
    _in_two_processes([*longer, "--workdir", both], env)
    last = cli.steps(both)[-1]
    cli.shutil.rmtree(both / "checkpoints" / str(last))
    cli.succeeds([*longer, "--workdir", str(both)], env)
    cli.close(one, both)


_CHECKPOINTS = """
import json, sys, threading, warnings
from pathlib import Path
import numpy as np
from experiments.data import devices
from experiments.errors import CheckpointError
from experiments.training.checkpoints import Checkpoints, Progress
folder, port, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
devices.join("127.0.0.1:" + port, 2, number)
first, mesh, said = number == 0, devices.mesh(2), {}
warnings.simplefilter("ignore")
arrays = lambda step: devices.replicate({"w": np.full(3, step, np.float32)}, mesh)
written = lambda: sorted(path.name for path in folder.iterdir())
checkpoints = Checkpoints(folder)
said["none"] = checkpoints.load_newest(arrays(0))
if first:
    write, may_write = checkpoints._write, threading.Event()
    checkpoints._write = lambda *arguments: may_write.wait(60) and write(*arguments)
checkpoints.save(arrays(1), Progress(1))
devices.exchange(b"")
said["while one is to be written"] = written()
devices.exchange(b"")  # both have looked
if first:
    may_write.set()
checkpoints.complete()
said["steps"] = checkpoints.steps
checkpoints.save(arrays(2), Progress(2))
checkpoints.complete()
said["more steps"] = checkpoints.steps
if first:
    for file in (folder / "2" / "arrays").glob("**/d/*"):
        file.write_bytes(file.read_bytes()[:-1])
devices.exchange(b"")
found, progress = checkpoints.load_newest(arrays(0))
said["found"] = [progress.step, float(found["w"].addressable_data(0)[0])]
said["left"] = [written(), checkpoints.steps, checkpoints.newest_step(), checkpoints.best_step()]
def full(*arguments, **named):
    raise OSError(28, "No space left on device")
if first:
    checkpoints._manager.save = full
checkpoints.save(arrays(3), Progress(3))
try:
    checkpoints.save(arrays(4), Progress(4))
except CheckpointError as error:
    said["refused"] = str(error)
checkpoints.close()
print("said", json.dumps(said))
"""


def test_of_two_processes_one_writes_and_both_agree_on_what_there_is(env, tmp_path):
    """Nobody waits for the writer; what is damaged, and what cannot be written, is told to both."""
    folder, port = tmp_path / "checkpoints", str(_port())
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                cli.running(
                    [sys.executable, "-c", _CHECKPOINTS, str(folder), port, str(number)], env
                )
            )
            for number in range(2)
        ]
        lines = [line for out in _outputs(processes) for line in out.splitlines()]
    first, second = (json.loads(line[5:]) for line in lines if line.startswith("said "))
    refused = first.pop("refused"), second.pop("refused")
    assert first == second
    assert first == {
        "none": None,
        "while one is to be written": [],
        "steps": [1],
        "more steps": [1, 2],
        "found": [1, 1.0],
        "left": [["1"], [1], 1, 1],
    }
    assert refused[0].startswith(f"cannot write the checkpoint of step 3 to {folder}: ")
    assert "No space left on device; the last good checkpoint is that of step 1." in refused[0]
    assert refused[1] == f"process 0: {refused[0]}"


@pytest.mark.parametrize("count", [2, 4])
def test_the_processes_shares_are_the_rows_of_the_one_batch(count):
    generator = np.random.default_rng(0)
    examples = Examples(generator.uniform(size=(30, 5, 5, 1)), np.arange(30))
    settings = {"seed": 3, "augmentation": Augmentation(mirror=True, shift=1)}
    whole = TrainBatches(examples, 8, **settings)
    shares = [TrainBatches(examples, 8, **settings, process=(i, count)) for i in range(count)]
    seen = []
    for step in range(2 * whole.per_epoch):
        batch = whole[step]
        for field in batch._fields:
            parts = [getattr(share[step], field) for share in shares]
            np.testing.assert_array_equal(np.concatenate(parts), getattr(batch, field))
        seen.append(batch.targets)
    per_epoch = np.split(np.concatenate(seen), 2)
    for labels in per_epoch:
        assert len(set(labels)) == len(labels) == 24  # each at most once an epoch
    assert not np.array_equal(*per_epoch)


@pytest.mark.parametrize(("batch_size", "used"), [(32, 4), (30, 3), (26, 2), (25, 1), (3, 3)])
def test_devices_that_cannot_share_a_batch_evenly_stay_idle(batch_size, used):
    mesh = devices.mesh(batch_size)
    assert mesh.size == used
    idle = f"4 devices cannot share the batch evenly: {used} are used"
    assert devices.idle(mesh) == ("" if used == 4 else idle)


@pytest.mark.parametrize(("batch_size", "used"), [(64, 16), (24, 12), (8, 8), (20, 4)])
def test_every_process_uses_as_many_devices(batch_size, used, monkeypatch):
    """Four processes of four devices each, listed in another order, as those of a pod may be."""
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "devices", lambda: [_Device(i, i // 4) for i in reversed(range(16))])
    mesh = devices.mesh(batch_size)
    assert mesh.size == used
    of = [device.process_index for device in mesh.devices]
    assert of == sorted(of)
    assert {of.count(process) for process in range(4)} == {used // 4}


@pytest.mark.parametrize(("batch_size", "near"), [(26, "24 or 28"), (3, "4"), (9, "8 or 12")])
def test_a_batch_that_the_processes_cannot_share_is_refused(batch_size, near, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    message = f"4 processes cannot share a batch of {batch_size} evenly; choose {near}, or another"
    with pytest.raises(ConfigError, match=message):
        devices.mesh(batch_size)


def test_a_coordinator_that_cannot_be_used_is_one_message(env, tmp_path):
    """Half of the flags: JAX says what it misses, and the message says what to give."""
    arguments = ["train", "digits", "--smoke", "--workdir", str(tmp_path / "work")]
    with cli.started([*arguments, "--coordinator", "127.0.0.1:1"], env) as process:
        status, _, err = cli.ended(process)
    assert status == 2
    assert "cannot join the other processes" in err
    assert "--process-id" in err
    assert "Traceback" not in err
