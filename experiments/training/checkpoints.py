"""Writes checkpoints whole or not at all, and verifies them when they are read.

Orbax writes them, atomically; beside the arrays stands a digest of them, because a flipped bit in
a compressed file can be read without an error.

The training only waits until its arrays are copied; they are hashed and written beside it.  Of
several processes, each of which has all arrays, the first writes alone; all read, and agree on what
they read.  What the first one could not write is told to all at the next checkpoint or at the end.
"""

import concurrent.futures
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from orbax.checkpoint import checkpoint_managers as policies

from experiments.data import devices
from experiments.errors import CheckpointError

T = TypeVar("T")

_KEPT = 2  # the newest ones: one to resume from, one more in case it is damaged


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint could not be read and an older one was taken."""


class Progress(NamedTuple):
    """How far a training is: with the arrays, all that is needed to go on as if never stopped.

    Attributes:
      step: steps done.
      score: validation score of these weights; None where they were not scored.
      best_score: the best so far; None where there is none.
      best_step: the step of the best score.
      epochs_without_gain: since then.
    """

    step: int
    score: float | None = None
    best_score: float | None = None
    best_step: int = 0
    epochs_without_gain: int = 0


class Checkpoints:
    """The checkpoints in one folder: the two newest, and the best by validation.

    Several processes call ``save``, ``complete`` and whatever reads in the same order; the others
    are about one process.

    Args:
      folder: made where there is none.
      read_only: leave the folder as it is: a training may be writing to it.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        # Orbax reports every save at this level; problems come as exceptions and warnings.
        absl_logging.set_verbosity(absl_logging.ERROR)
        self._folder, self._read_only = folder.absolute(), read_only
        self.kept_step: int | None = None  # the best: it stays, however old
        self._manager = self._open()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._writing: concurrent.futures.Future[None] | None = None

    def _open(self) -> ocp.CheckpointManager:
        if not self._read_only:
            self._folder.mkdir(parents=True, exist_ok=True)
        process = jax.process_index()
        options = ocp.CheckpointManagerOptions(
            create=False,  # Orbax makes no folder for one of several processes
            # Not Orbax's own policy for the best: it forgets scores when it is opened again.
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(_KEPT), _Best(self)]
            ),
            # What a killed process left half written, or another command is writing now.
            cleanup_tmp_directories=not self._read_only and process == 0,
            read_only=self._read_only or process != 0,
            # What is written beside the training is hashed there as well, by a thread of ours.
            enable_async_checkpointing=False,
            # Each process for itself, without Orbax's barriers: those would stop the training.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process,
                active_processes={process},
                barrier_sync_key_prefix=f"process {process}",
            ),
        )
        return ocp.CheckpointManager(self._folder, options=options)

    @property
    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, in order, once this process is writing none."""
        self.wait()
        if jax.process_index():
            self._manager.reload()  # another process writes them
        return sorted(self._manager.all_steps())

    def save(self, arrays: Any, progress: Progress) -> None:
        """Begins to write a checkpoint, then removes those that are no longer wanted.

        Args:
          arrays: a pytree, whole in every process.  They may be given up as soon as this returns.
          progress: of these arrays.

        Raises:
          CheckpointError: the one before could not be written; older ones are untouched.
        """
        self.complete()
        if jax.process_index() or progress.step in self.steps:
            return
        flat = _flat(arrays)
        for x in jax.tree.leaves(flat):
            x.copy_to_host_async()  # all of them at once
        copies = {name: np.array(x) for name, x in flat.items()}
        self._writing = self._thread.submit(self._write, copies, progress)

    def complete(self) -> None:
        """Returns once nothing is being written by any process.

        Raises:
          CheckpointError: it could not be written, in every process; older ones are untouched.
        """
        _together(self.wait)

    def wait(self) -> None:
        """Returns once this process writes nothing.

        Raises:
          CheckpointError: it could not be written; older ones are untouched.
        """
        writing = self._writing
        if writing is None:
            return
        try:
            writing.result()
        finally:
            if writing.done():  # else a second Ctrl-C: its failure is still to be told
                self._writing = None

    def _write(self, flat: dict[str, Any], progress: Progress) -> None:
        record = progress._asdict()
        content = {**record, "digest": _digest(flat), "record_digest": _record_digest(record)}
        self.kept_step = progress.best_step
        try:
            self._manager.save(
                progress.step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(flat), progress=ocp.args.JsonSave(content)
                ),
            )
            self._manager.wait_until_finished()
        except Exception as error:  # tensorstore and Orbax have no common class of errors
            raise CheckpointError(
                f"cannot write the checkpoint of step {progress.step} to {self._folder}: "
                f"{_first_line(error)}; {self._last_good(progress.step)}. "
                "Make room (df -h) and run the same command again: it goes on from there"
            ) from error

    def load(self, like: Any, step: int) -> tuple[Any, Progress]:
        """Returns the arrays and the progress of one step.

        Args:
          like: a pytree of arrays with the shapes, dtypes and shardings that are wanted.
          step: one of ``steps``.

        Raises:
          CheckpointError: it is damaged, or of another model, or cannot be read by another process.
        """
        return _together(lambda: self._load(like, step))

    def _load(self, like: Any, step: int) -> tuple[Any, Progress]:
        flat = _flat(like)
        target = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
            for name, x in flat.items()
        }
        try:
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardRestore(target), progress=ocp.args.JsonRestore()
                ),
            )
            progress, digest = _checked(found["progress"], step)
        except Exception as error:  # as above: damage shows in many classes
            raise CheckpointError(
                f"the checkpoint of step {step} in {self._folder} cannot be read: "
                f"{_first_line(error)}"
            ) from error
        if _digest(found["arrays"]) != digest:
            raise CheckpointError(
                f"the checkpoint of step {step} in {self._folder} is damaged: "
                "its arrays are not those that were written"
            )
        leaves = [found["arrays"][name] for name in flat]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), progress

    def load_newest(self, like: Any) -> tuple[Any, Progress] | None:
        """Returns the newest that can be read, or None where there is none at all.

        Damaged ones are moved to a folder ``damaged`` beside, so that their step can be written
        again.

        Args:
          like: as in ``load``.

        Raises:
          CheckpointError: there are some, and none can be read.

        Warns:
          DamagedCheckpointWarning: the newest could not be read.
        """
        failures = []
        for step in reversed(_of_first(lambda: self.steps)):
            try:
                found = self.load(like, step)
            except CheckpointError as error:
                failures.append((step, str(error)))
                continue
            self._set_aside(failures)
            return found
        if failures:
            told = "\n".join(message for _, message in failures)
            raise CheckpointError(
                f"{told}\nno checkpoint in {self._folder} can be read; to begin anew, remove the "
                "folder or choose another --workdir"
            )
        return None

    def best_step(self) -> int | None:
        """Returns the step of the best validation score, else the newest; None where none is.

        Raises:
          CheckpointError: the newest one's record cannot be read.
        """
        return _of_first(self._best_step)

    def newest_step(self) -> int | None:
        """Returns the newest step; None where there is none."""
        return _of_first(lambda: max(self.steps, default=None))

    def _best_step(self) -> int | None:
        steps = self.steps
        if not steps:
            return None
        newest = steps[-1]
        try:
            found = self._manager.restore(
                newest, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
            )
            best = _checked(found["progress"], newest)[0].best_step
        except Exception as error:  # as above
            raise CheckpointError(
                f"the record of step {newest} in {self._folder} cannot be read: "
                f"{_first_line(error)}"
            ) from error
        return best if best in steps else newest

    def close(self) -> None:
        """Waits for what this process is writing.

        Raises:
          CheckpointError: it could not be written; older ones are untouched.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()

    def _last_good(self, failed: int) -> str:
        older = [step for step in self._manager.all_steps(read=True) if step != failed]
        return (
            f"the last good checkpoint is that of step {max(older)}" if older else "there is none"
        )

    def _set_aside(self, failures: list[tuple[int, str]]) -> None:
        if not failures:
            return
        self._manager.close()
        for step, message in failures:
            warnings.warn(f"{message}; taking an older one", DamagedCheckpointWarning, stacklevel=3)
            if jax.process_index() == 0:
                aside = self._folder.parent / "damaged"
                aside.mkdir(exist_ok=True)
                shutil.rmtree(aside / str(step), ignore_errors=True)
                shutil.move(self._folder / str(step), aside / str(step))
        _together(lambda: None)  # the others wait for the first
        self._manager = self._open()


class _Best(policies.PreservationPolicy):
    """Keeps the best step, which ``Checkpoints`` names."""

    def __init__(self, owner: Checkpoints):
        self._owner = owner

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """Returns for each checkpoint whether it stays."""
        del context
        return [checkpoint.step == self._owner.kept_step for checkpoint in checkpoints]


def _together(act: Callable[[], T]) -> T:
    """Does something in every process; where it fails in one, it fails in all.

    Raises:
      CheckpointError: it failed in this process, or else in another one, which the message names.
    """
    failure: CheckpointError | None = None
    try:
        result = act()
    except CheckpointError as error:
        failure = error
    told = devices.exchange(str(failure or "").encode())
    if failure is not None:
        raise failure
    for number, message in enumerate(told):
        if message:
            raise CheckpointError(f"process {number}: {message.decode()}")
    return result


def _of_first(find: Callable[[], T]) -> T:
    """Returns in every process what the first finds; the others' folder may lag behind.

    Args:
      find: gives what JSON can hold.

    Raises:
      CheckpointError: it failed in the first process, in all of them.
    """
    found = _together(lambda: find() if devices.is_first() else None)
    return json.loads(devices.exchange(json.dumps(found).encode())[0])


def _checked(content: dict[str, Any], step: int) -> tuple[Progress, str]:
    """Returns the progress and the digest of the arrays from a checkpoint's record.

    Raises:
      ValueError: it is not what was written, or of another step.
    """
    record = dict(content)
    digest, own = record.pop("digest"), record.pop("record_digest")
    if own != _record_digest(record) or record["step"] != step:
        raise ValueError("the record of the progress is not what was written")
    return Progress(**record), digest


def _record_digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _flat(tree: Any) -> dict[str, Any]:
    """Returns leaves by path: readable names in the files, whatever classes the tree has."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}
    if len(named) != len(leaves):
        raise ValueError("two leaves of the tree have the same path")
    return named


def _digest(flat: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(flat):
        value = np.ascontiguousarray(flat[name])
        digest.update(f"{name} {value.dtype} {value.shape} ".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    line = f"{type(error).__name__}: {str(error).strip() or '(no message)'}".splitlines()[0]
    # TensorStore names the cause at the end, behind long paths; and behind it, in brackets, now and
    # then a whole description of the array.
    line = re.split(r" \[\w+='", line, maxsplit=1)[0]
    return line if len(line) <= 300 else f"{line[:100]} ... {line[-200:]}"
