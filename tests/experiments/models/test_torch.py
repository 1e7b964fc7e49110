"""The same weights give the same results as the layers of PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models.hrnet import Fusion
from experiments.models.layers import Bottleneck
from experiments.models.norms import norm_factory
from tests.experiments.models.networks import abstract, cnn3d, filled, resnet

torch = pytest.importorskip("torch")
F = torch.nn.functional


def _tensor(x):
    return torch.tensor(np.asarray(x))


def _first(x):
    """Channels to the front, as PyTorch has them."""
    return _tensor(x).movedim(-1, 1)


def _conv(layer, x, stride=1):
    kernel = _tensor(layer.kernel[...])
    kernel = kernel.permute(-1, -2, *range(kernel.ndim - 2))
    convolve = F.conv2d if kernel.ndim == 4 else F.conv3d
    return convolve(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)


def _norm(layer, x):
    return F.batch_norm(
        x, None, None, _tensor(layer.scale[...]), _tensor(layer.bias[...]), training=True
    )


def _dense(layer, x):
    return F.linear(x, _tensor(layer.kernel[...]).T, _tensor(layer.bias[...]))


def _block(block, x, stride):
    y = F.relu(_norm(block.norm1, _conv(block.conv1, x, stride)))
    y = _norm(block.norm2, _conv(block.conv2, y))
    return F.relu(y + _shortcut(block, x, stride))


def _bottleneck(block, x, stride):
    y = F.relu(_norm(block.norm1, _conv(block.conv1, x)))
    y = F.relu(_norm(block.norm2, _conv(block.conv2, y, stride)))
    y = _norm(block.norm3, _conv(block.conv3, y))
    return F.relu(y + _shortcut(block, x, stride))


def _shortcut(block, x, stride):
    if not block.project:
        return x
    return _norm(block.shortcut_norm, _conv(block.shortcut, x, stride))


def _compiled(model, x):
    return nnx.jit(lambda model, x: model(x))(model, x)  # the operations one by one take longer


def _close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def _inputs(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_resnet_9():
    model = filled(abstract(resnet, "batch", stage_sizes=(1, 1, 1, 1)))
    x = _inputs(4, 8, 9, 3)  # an even size, where padding could differ, and an odd one
    y = F.relu(_norm(model.stem_norm, _conv(model.stem, _first(x))))
    for stage, block in enumerate(model.blocks):
        y = _block(block, y, 2 if stage else 1)
    _close(_compiled(model, x), _dense(model.head, y.mean((2, 3))))


def test_bottleneck():
    block = filled(abstract(Bottleneck, norm_factory("batch"), channels_in=5, width=3, stride=2))
    x = _inputs(4, 6, 8, 5)
    _close(_compiled(block, x), _bottleneck(block, _first(x), 2).movedim(1, -1))


@pytest.mark.parametrize("pool", [False, True])
def test_cnn3d(pool):
    model = filled(abstract(cnn3d, "batch", shape=(9, 8, 12), channels=(2, 3), pool=pool))
    x = _inputs(4, 9, 8, 12, 1)
    y = _first(x)
    for layer in model.convs:
        y = F.relu(_norm(layer.norm, _conv(layer.conv, y, 2)))
    # Ours flattens with the channels last.
    y = y.mean((2, 3, 4)) if pool else y.movedim(1, -1).flatten(1)
    for index, dense in enumerate(model.dense):
        y = _dense(dense, F.relu(y) if index else y)
    _close(_compiled(model, x), y)


def test_fusion():
    fusion = filled(abstract(Fusion, norm_factory("batch"), channels=(2, 3, 4), dtype=jnp.float32))
    branches = [_inputs(4, 9, 8, 2), _inputs(4, 5, 4, 3), _inputs(4, 3, 2, 4)]
    theirs = [_first(x) for x in branches]

    def step(layer, x, stride):
        return _norm(layer.norm, _conv(layer.conv, x, stride))

    def up(layer, x, size):
        return F.interpolate(step(layer, x, 1), size, mode="bilinear", align_corners=True)

    def layers(target, source):
        return fusion.paths[target][source].layers

    high, middle, low = theirs
    first, second = layers(2, 0)
    wanted = [
        high + up(*layers(0, 1), middle, (9, 8)) + up(*layers(0, 2), low, (9, 8)),
        step(*layers(1, 0), high, 2) + middle + up(*layers(1, 2), low, (5, 4)),
        step(second, F.relu(step(first, high, 2)), 2) + step(*layers(2, 1), middle, 2) + low,
    ]
    for ours, peer in zip(_compiled(fusion, branches), wanted, strict=True):
        _close(ours, F.relu(peer).movedim(1, -1))
