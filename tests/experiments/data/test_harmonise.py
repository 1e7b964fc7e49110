"""ComBat against the paper's equations, written out voxel by voxel, and in the loader."""

import dataclasses

import numpy as np
import pytest

from experiments import data
from experiments.configs.data import VolumesData
from experiments.data.harmonise import Combat
from experiments.data.problems import DataError
from experiments.errors import ConfigError
from tests.experiments.data.test_volumes import _fails, _rows, _save, _table, _which

CONFIG = VolumesData(shape=(4, 4, 4), normalise="none", harmonise=True)


def _example(seed=0, count=60, voxels=200):
    rng = np.random.default_rng(seed)
    sites = np.array(["b", "a", "c"])[np.array([0, 0, 0, 1, 1, 2])[np.arange(count) % 6]]
    values = rng.normal(size=(count, voxels)) * rng.uniform(0.5, 1.5, voxels)
    values += (sites == "b")[:, None] * (0.7 + 0.3 * rng.normal(size=voxels))
    values[sites == "c"] *= 1.3
    return 0.5 + 0.05 * values, sites


def _reference(values, sites):
    """Johnson, Li & Rabinovic (2007), section 3: standardise, estimate, shrink, adjust."""
    adjusted = np.empty_like(values)
    names = sorted(set(sites))
    site_mean = {s: values[sites == s].mean(0) for s in names}
    alpha = sum((sites == s).sum() * site_mean[s] for s in names) / len(values)
    fitted = np.stack([site_mean[s] for s in sites])
    sigma = np.sqrt(((values - fitted) ** 2).mean(0))
    z = (values - alpha) / sigma
    for s in names:
        own = z[sites == s]
        n = len(own)
        gamma_hat, delta_hat = own.mean(0), own.var(0, ddof=1)
        gamma_bar, tau2 = gamma_hat.mean(), gamma_hat.var(ddof=1)
        m, s2 = delta_hat.mean(), delta_hat.var(ddof=1)
        lam, theta = (m**2 + 2 * s2) / s2, (m**3 + m * s2) / s2
        for g in range(values.shape[1]):
            gamma, delta2 = gamma_hat[g], delta_hat[g]
            for _ in range(500):
                gamma = (n * tau2 * gamma_hat[g] + delta2 * gamma_bar) / (n * tau2 + delta2)
                delta2 = (theta + 0.5 * ((own[:, g] - gamma) ** 2).sum()) / (n / 2 + lam - 1)
            adjusted[sites == s, g] = sigma[g] / np.sqrt(delta2) * (own[:, g] - gamma) + alpha[g]
    return adjusted


def test_is_the_papers():
    values, sites = _example()
    ours = values.copy()
    Combat.fit(values, sites).apply(ours, sites)
    np.testing.assert_allclose(ours, np.clip(_reference(values, sites), 0, 1), atol=1e-5)


def test_removes_what_sites_add_to_new_volumes():
    values, sites = _example(count=300)
    model = Combat.fit(values[:150], sites[:150])
    new, where = values[150:].copy(), sites[150:]

    def differences(x):
        means = np.stack([x[where == s].mean(0) for s in "abc"])
        return means.std(0).mean()

    before = differences(new)
    model.apply(new, where)
    assert differences(new) < 0.5 * before


def test_background_stays():
    values, sites = _example()
    values[:, :5] = 0.25
    values[sites == "a", 5] = 0.5  # constant within one site
    ours = values.copy()
    Combat.fit(values, sites).apply(ours, sites)
    np.testing.assert_array_equal(ours[:, :6], values[:, :6])
    assert np.isfinite(ours).all()
    with pytest.raises(DataError, match="no voxel varies"):
        Combat.fit(values[:, :6], sites)


def _table_of_sites(root, site, split=None):
    words = ["train", "train", "train", "val", "test"]
    split = split or (lambda i: words[i // 2 % 5])
    rows = _rows(root, 40, site=site, split=split)
    _table(root, rows)
    return rows


def test_loader_harmonises_by_the_training_part_only(tmp_path):
    rows = _table_of_sites(tmp_path, lambda i: "xy"[i % 4 // 2])
    plain = data.load(dataclasses.replace(CONFIG, harmonise=False), tmp_path)
    changed = data.load(CONFIG, tmp_path, tmp_path / "cache")
    again = data.load(CONFIG, tmp_path, tmp_path / "cache")
    np.testing.assert_array_equal(changed.train.inputs, again.train.inputs)
    assert not np.allclose(plain.train.inputs, changed.train.inputs, atol=1e-3)
    sites = {
        name: [rows[i]["site"] for i in _which(getattr(plain, name))] for name in ("train", "test")
    }
    model = Combat.fit(plain.train.inputs, sites["train"])
    expected = plain.test.inputs.copy()
    model.apply(expected, sites["test"])
    np.testing.assert_allclose(changed.test.inputs, expected, atol=1e-6)
    # Other test volumes do not move the training part.
    test = next(row for row in rows if row["split"] == "test")
    _save(tmp_path / test["path"], np.random.default_rng(9).uniform(size=(4, 4, 4)).astype("f4"))
    np.testing.assert_array_equal(data.load(CONFIG, tmp_path).train.inputs, changed.train.inputs)


def test_sites_that_cannot_be_harmonised(tmp_path):
    def refused(message, site):
        _table_of_sites(tmp_path, site)
        _fails(tmp_path, message, kind=ConfigError, harmonise=True)

    refused("it is empty in 1 (lines 5)", lambda i: "" if i == 3 else "x")
    refused("needs two sites or more for training, not ['x']", lambda i: "x")
    refused("there is one of ['z']", lambda i: "z" if i == 0 else "xy"[i % 2])
    refused("['z'] of the test part", lambda i: "z" if i // 2 % 5 == 4 else "xy"[i % 2])
    _table(tmp_path, _rows(tmp_path))
    _fails(tmp_path, "needs the column site", kind=ConfigError, harmonise=True)
