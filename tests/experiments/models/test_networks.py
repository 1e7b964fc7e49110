"""Networks: published sizes, shapes, every norm, gradients everywhere, bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models.hrnet import SIZES, HRNetSize
from experiments.models.layers import BasicBlock, Bottleneck
from experiments.models.norms import NORMS, norm_factory
from experiments.models.resnet import DEPTHS, of_depth
from steinnorm.nnx import SteinBatchNorm
from tests.experiments.models.networks import (
    TINY_HRNET,
    abstract,
    cnn3d,
    count,
    filled,
    hrnet,
    output,
    resnet,
    rngs,
)

# 10 classes, width 64. Norms: the stem's, two (bottleneck: three) per block, and one per stage
# whose first block changes the shape (with bottlenecks, the first stage's does too).
_RESNETS = {
    9: (4_903_242, 1 + 2 * 4 + 3),
    18: (11_173_962, 1 + 2 * 8 + 3),
    34: (21_282_122, 1 + 2 * 16 + 3),
    50: (23_520_842, 1 + 3 * 16 + 4),
    101: (42_512_970, 1 + 3 * 33 + 4),
    152: (58_156_618, 1 + 3 * 50 + 4),
}


@pytest.mark.parametrize("depth", DEPTHS)
def test_resnets_have_their_published_sizes(depth):
    block, stage_sizes = of_depth(depth)
    model = abstract(resnet, outputs=10, width=64, block=block, stage_sizes=stage_sizes)
    assert count(model) == _RESNETS[depth]


def test_norms_add_no_parameters_of_their_own():
    model = abstract(resnet, "stein", outputs=10, width=64, stage_sizes=of_depth(9)[1])
    assert count(model, SteinBatchNorm) == _RESNETS[9]


def test_unknown_depths_list_the_known_ones():
    with pytest.raises(ValueError, match="9, 18, 34, 50, 101, 152"):
        of_depth(20)


def test_cnn3d_has_the_papers_size():
    full = {"shape": (128, 128, 64), "outputs": 1, "hidden": (768, 16)}
    convolutions = 27 * (1 * 3 + 3 * 6 + 6 * 6 + 6 * 6) + 2 * (3 + 6 + 6 + 6)
    dense = (6 * 8 * 8 * 4 + 1) * 768 + (768 + 1) * 16 + 16 + 1
    assert count(abstract(cnn3d, **full)) == (convolutions + dense, 4)
    assert convolutions + dense == 1_195_290
    pooled = abstract(cnn3d, **{**full, "hidden": ()}, pool=True)
    assert count(pooled) == (convolutions + 6 + 1, 4)


@pytest.mark.parametrize(
    ("size", "parameters", "norms"),
    [("paper", 1_540_819, 72), ("w18", 9_641_119, 306), ("w48", 65_859_379, 306)],
)
def test_hrnets_have_their_published_sizes(size, parameters, norms):
    assert count(abstract(hrnet, size=size, outputs=19)) == (parameters, norms)


def test_unknown_hrnets_list_the_known_ones():
    with pytest.raises(ValueError, match="paper, w18, w48"):
        hrnet(size="w32")


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_resnet_halves_odd_sizes_rounding_up(block):
    model = abstract(resnet, block=block, stage_sizes=(1, 1, 1))
    assert output(model, (2, 7, 9, 3)) == ((2, 5), jnp.float32)
    x = (2, 7, 9, 4)
    sizes = [(7, 9), (4, 5), (2, 3)]
    for inner, size, width in zip(model.blocks, sizes, (4, 8, 16), strict=True):
        x, _ = output(inner, x)
        assert x == (2, *size, width * block.expansion)


def test_cnn3d_shapes():
    assert output(abstract(cnn3d), (3, 5, 8, 4, 1)) == ((3, 2), jnp.float32)
    odd = abstract(cnn3d, shape=(33, 17, 5), channels_in=2)
    assert odd.dense[0].in_features == 6 * 3 * 2 * 1
    assert output(odd, (3, 33, 17, 5, 2)) == ((3, 2), jnp.float32)
    with pytest.raises(ValueError, match=r"\(5, 8, 4, 1\); got \(8, 8, 4, 1\)"):
        output(abstract(cnn3d), (3, 8, 8, 4, 1))
    pooled = abstract(cnn3d, pool=True, hidden=())
    assert output(pooled, (3, 9, 8, 4, 1)) == ((3, 2), jnp.float32)


@pytest.mark.parametrize("stem_strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("shape", [(16, 24), (13, 9)])
def test_hrnet_answers_every_pixel(shape, stem_strides):
    model = abstract(hrnet, stem_strides=stem_strides)
    assert output(model, (2, *shape, 3)) == ((2, *shape, 5), jnp.float32)


def test_hrnet_sizes_have_their_own_stems():
    assert [SIZES[size].stem_strides for size in ("paper", "w18", "w48")] == [
        (1, 1),
        (2, 2),
        (2, 2),
    ]
    strided = dataclasses.replace(TINY_HRNET, stem_strides=(2, 2))
    for size, positions in (("paper", 16), (strided, 4)):
        model = abstract(hrnet, size=size)
        assert output(model.stem, (1, 16, 16, 3))[0] == (1, positions, positions, 64)
        assert output(model, (2, 16, 24, 3)) == ((2, 16, 24, 5), jnp.float32)


def test_hrnet_changes_and_fuses_its_branches():
    model = abstract(hrnet)
    assert [len(stage.branches[0]) for stage in model.stages] == [2, 3]
    fusion = model.stages[1].fusions[0]
    down = fusion.paths[2][0].layers  # from the highest resolution to the lowest
    assert [layer.conv.out_features for layer in down] == [TINY_HRNET.channels[c] for c in (0, 2)]
    assert [layer.relu for layer in down] == [True, False]
    assert not fusion.paths[1][1].layers
    # Convolutions between stages stand where channels differ, and only there.
    changes = [[len(change.layers) for change in stage.changes] for stage in model.stages]
    assert changes == [[1], [0, 0]]


def _inputs(*shape):
    return jnp.asarray(np.random.default_rng(0).uniform(size=shape), jnp.float32)


def _assert_every_parameter_learns(model, x):
    def loss(model, x):
        return jnp.mean(jnp.square(model(x) - 1.0))

    argnums = (nnx.DiffState(0, nnx.Param), 1)
    value, gradients = nnx.jit(nnx.value_and_grad(loss, argnums=argnums))(model, x)
    assert np.isfinite(float(value))
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert np.all(np.isfinite(np.asarray(gradient))), path
        assert np.any(np.asarray(gradient) != 0), path


@pytest.mark.parametrize("norm", NORMS)
def test_every_parameter_learns_with_every_norm(norm):
    _assert_every_parameter_learns(resnet(norm, stage_sizes=(1,)), _inputs(4, 6, 6, 3))


@pytest.mark.parametrize(
    ("build", "options", "shape"),
    [
        (cnn3d, {"shape": (5, 8, 4), "channels": (3, 6), "hidden": (7,)}, (4, 5, 8, 4, 1)),
        (hrnet, {"size": HRNetSize((1, 2), 1, 2, (4, 8), (1,), 1)}, (2, 10, 7, 3)),
        (resnet, {"block": Bottleneck, "stage_sizes": (1,)}, (4, 5, 5, 3)),
    ],
    ids=["cnn3d", "hrnet", "bottleneck"],
)
def test_every_parameter_of_the_other_networks_learns(build, options, shape):
    _assert_every_parameter_learns(filled(abstract(build, "group", **options)), _inputs(*shape))


@pytest.mark.parametrize(
    ("build", "norm", "shape", "activation"),
    [
        (resnet, "stein", (2, 6, 6, 3), lambda m, x: m.blocks[0](m.stem_norm(m.stem(x)))),
        (resnet, "group", (2, 6, 6, 3), lambda m, x: m.blocks[0](m.stem_norm(m.stem(x)))),
        (cnn3d, "stein", (2, 5, 8, 4, 1), lambda m, x: m.convs[0](x)),
        (hrnet, "group", (2, 6, 8, 3), lambda m, x: m.stages[0]([m.first(m.stem(x))])[1]),
    ],
    ids=["resnet-stein", "resnet-group", "cnn3d", "hrnet"],
)
@pytest.mark.usefixtures("mixed_dtypes")  # Flax's group norm mixes them
def test_bfloat16_is_for_activations_only(build, norm, shape, activation):
    model = abstract(build, norm, dtype=jnp.bfloat16)
    assert output(model, shape)[1] == jnp.float32
    assert output(model, shape, activation)[1] == jnp.bfloat16
    kept = jax.tree.leaves(nnx.state(model, (nnx.Param, nnx.BatchStat)))
    assert {v.dtype for v in kept} == {np.dtype("float32")}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.usefixtures("mixed_dtypes")
def test_norms_take_a_dtype(norm):
    x = _inputs(16, 8).astype(jnp.bfloat16)
    plain = norm_factory(norm, total_steps=1)(8, rngs=rngs())
    half = norm_factory(norm, total_steps=1, dtype=jnp.bfloat16)(8, rngs=rngs())
    wanted, got = plain(x.astype(jnp.float32)), half(x)
    assert (wanted.dtype, got.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(got.astype(jnp.float32), wanted, rtol=0.02, atol=0.05)
    # Parameters, and statistics that the call has recorded.
    states = (nnx.to_flat_state(nnx.state(layer)) for layer in (half, plain))
    for (path, ours), (_, theirs) in zip(*states, strict=True):
        assert ours.dtype == jnp.float32, path
        np.testing.assert_allclose(ours[...], theirs[...], rtol=0.01, atol=1e-4, err_msg=str(path))
    recorded = getattr(half, "norm", half)  # norms for small batches hold the layer
    assert norm == "group" or np.any(np.asarray(recorded.mean[...]) != 0)
