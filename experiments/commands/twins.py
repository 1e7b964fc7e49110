"""The plain batch-norm models of a demo, which its other models are compared with as twins."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from steinnorm.attacks.files import write_bytes


class Twins:
    """Keeps a trained model of each seed in the work folder, for commands that go on later."""

    def __init__(
        self,
        folder: Path,
        norm: str,
        untrained: Callable[[int], nnx.Module],
        is_ours: Callable[[int], bool] = lambda seed: True,
    ):
        """Notes where models are kept and how one is built.

        Args:
          folder: of the files.
          norm: of the models, for their names.
          untrained: builds the model of a seed, whose arrays are then replaced.
          is_ours: whether the file of a seed belongs to the present configuration.
        """
        self._folder, self._norm = folder, norm
        self._untrained, self._is_ours = untrained, is_ours
        self._found: dict[int, nnx.Module] = {}

    def keep(self, seed: int, model: nnx.Module) -> None:
        """Writes the arrays of a trained model."""
        content = io.BytesIO()
        arrays: dict[str, Any] = {k: np.asarray(leaf) for k, leaf in _arrays(model).items()}
        np.savez(content, **arrays)
        write_bytes(self._path(seed), content.getvalue())
        self._found[seed] = model

    def find(self, seed: int) -> nnx.Module | None:
        """Returns the trained model; None where none was kept that fits, or can be read."""
        if seed not in self._found:
            if not self._is_ours(seed):
                return None
            try:
                with np.load(self._path(seed)) as file:
                    kept = dict(file)
            except (OSError, ValueError, zipfile.BadZipFile):
                return None
            model = self._untrained(seed)
            wanted = {name: leaf.shape for name, leaf in _arrays(model).items()}
            if {name: leaf.shape for name, leaf in kept.items()} != wanted:
                return None
            state = jax.tree_util.tree_map_with_path(
                lambda path, leaf: jnp.asarray(kept.get(jax.tree_util.keystr(path), leaf)),
                nnx.state(model),
            )
            nnx.update(model, state)
            self._found[seed] = model
        return self._found[seed]

    def _path(self, seed: int) -> Path:
        return self._folder / f"{self._norm}-{seed}.npz"


def _arrays(model: nnx.Module) -> dict[str, jax.Array]:
    """Returns all arrays but keys of random numbers, by their place."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model))
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in leaves
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }
