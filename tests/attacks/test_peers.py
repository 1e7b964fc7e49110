"""The same network and weights under other people's attacks.

Foolbox, which runs on JAX, is installed with the tests.  torchattacks and the original AutoAttack
need PyTorch; without it their tests are skipped (``pip install torch==2.13.0 torchattacks
pyautoattack``).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steinnorm.attacks import Threat, apgd, autoattack, fgsm, pgd, predict
from tests.attacks.problems import KEY

foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed (extra: test)")

COUNT, SIDE, HIDDEN, CLASSES = 64, 8, 32, 6
EPSILON = {"linf": 0.03, "l2": 0.3}


def _conv(weights, x):
    """A convolution of stride 2 and two dense layers."""
    kernel, hidden, out = weights
    dimensions = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=dimensions)
    x = jax.nn.relu(x).reshape(x.shape[0], -1)
    return jax.nn.relu(x @ hidden) @ out


@pytest.fixture(scope="module")
def network():
    """Weights, and images with the labels that the network gives to slightly other ones."""
    rng = np.random.default_rng(0)
    shapes = [(3, 3, 3, 8), (3 * 3 * 8, HIDDEN), (HIDDEN, CLASSES)]
    weights = [
        (rng.normal(size=s) * np.sqrt(2 / np.prod(s[:-1]))).astype(np.float32) for s in shapes
    ]
    model = jax.tree_util.Partial(_conv, [jnp.asarray(w) for w in weights])
    x = rng.uniform(size=(COUNT, SIDE, SIDE, 3)).astype(np.float32)
    near = np.clip(x + 0.02 * rng.normal(size=x.shape), 0, 1).astype(np.float32)
    y = np.argmax(predict(model, jnp.asarray(near)), axis=1)
    return model, weights, jnp.asarray(x), jnp.asarray(y, jnp.int32)


def _agree(ours, theirs):
    same = np.abs(np.asarray(ours) - np.asarray(theirs)) <= 1e-5
    assert same.mean() >= 0.999


# Foolbox mixes dtypes and ranks.
@pytest.fixture
def as_foolbox_wants():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.usefixtures("as_foolbox_wants")
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [1, 8])
def test_foolbox_finds_the_same_images(norm, steps, network):
    model, _, x, y = network
    epsilon = EPSILON[norm]
    size = epsilon if steps == 1 else epsilon / 3
    kinds = {
        ("linf", 1): foolbox.attacks.LinfFastGradientAttack(random_start=False),
        ("l2", 1): foolbox.attacks.L2FastGradientAttack(random_start=False),
        ("linf", 8): foolbox.attacks.LinfPGD(abs_stepsize=size, steps=8, random_start=False),
        ("l2", 8): foolbox.attacks.L2PGD(abs_stepsize=size, steps=8, random_start=False),
    }
    fmodel = foolbox.JAXModel(jax.jit(model), bounds=(0, 1))
    _, expected, success = kinds[norm, steps](fmodel, x, y, epsilons=epsilon)
    threat = Threat(norm, epsilon)
    if steps == 1:
        ours = fgsm(model, x, y, threat=threat)
    else:
        ours = pgd(model, x, y, threat=threat, steps=steps, step_size=size)
    _agree(ours.x_adv, expected)
    assert 0 < int(success.sum()) < COUNT
    assert abs(int(ours.success.sum()) - int(success.sum())) <= 1


@pytest.fixture(scope="module")
def torch_network(network):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    _, weights, x, y = network
    kernel, hidden, out = (torch.tensor(w) for w in weights)

    class Network(torch.nn.Module):
        def forward(self, images):
            z = torch.nn.functional.conv2d(images, kernel.permute(3, 2, 0, 1), stride=2)
            z = torch.relu(z).permute(0, 2, 3, 1).flatten(1)
            return torch.relu(z @ hidden) @ out

    images = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).contiguous()
    return Network().eval(), images, torch.tensor(np.asarray(y)).long()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_torchattacks_finds_the_same_images(norm, network, torch_network):
    theirs = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    model, _, x, y = network
    net, images, labels = torch_network
    epsilon = EPSILON[norm]
    threat, walk = Threat(norm, epsilon), {"steps": 10, "random_start": False}
    kind = theirs.PGD if norm == "linf" else theirs.PGDL2
    peer = kind(net, eps=epsilon, alpha=epsilon / 4, **walk)
    ours = pgd(model, x, y, threat=threat, steps=10, step_size=epsilon / 4)
    _agree(ours.x_adv, peer(images, labels).permute(0, 2, 3, 1))
    if norm == "linf":
        single = theirs.FGSM(net, eps=epsilon)(images, labels).permute(0, 2, 3, 1)
        _agree(fgsm(model, x, y, threat=threat).x_adv, single)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_original_ensemble_is_no_stronger(norm, network, torch_network):
    original = pytest.importorskip("pyautoattack", reason="pyautoattack is not installed")
    model, _, x, y = network
    net, images, labels = torch_network
    threat = Threat(norm, EPSILON[norm] / 2)
    peer = original.AutoAttack(
        net,
        norm={"linf": "Linf", "l2": "L2"}[norm],
        eps=threat.epsilon,
        version="custom",
        attacks=["apgd-ce", "apgd-t"],
        seed=0,
    )
    peer.apgd.n_restarts = 1
    peer.apgd_targeted.n_target_classes = CLASSES - 1
    found, _ = peer.run_standard_evaluation(images, labels)
    theirs = int((net(found).argmax(dim=1) == labels).sum())
    ours = autoattack(model, x, y, threat=threat, key=KEY, queries=10)
    left = COUNT - int(ours.success.sum())
    assert 0 < left < COUNT - 10
    assert left <= theirs + 1
    alone = apgd(model, x, y, threat=threat, key=KEY)
    peer = original.AutoAttack(
        net,
        norm={"linf": "Linf", "l2": "L2"}[norm],
        eps=threat.epsilon,
        version="custom",
        attacks=["apgd-ce"],
        seed=0,
    )
    peer.apgd.n_restarts = 1
    found, _ = peer.run_standard_evaluation(images, labels)
    assert COUNT - int(alone.success.sum()) <= int((net(found).argmax(dim=1) == labels).sum()) + 1
