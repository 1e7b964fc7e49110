"""What a release promises: versions that are tested, and jobs that exist."""

import re
import tomllib

import yaml

from tests.test_architecture import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
PYTHONS = ["3.11", "3.12", "3.13"]


def bounds(requirements):
    """Names of packages and their lower bounds."""
    return dict(re.match(r"([\w-]+)>=([\d.]+)$", text).groups() for text in requirements)


def oldest(pair):
    """Names and versions that `make test-oldest` installs."""
    line = re.search(rf"^oldest-pair-{pair} := (.*)$", MAKEFILE, re.MULTILINE)[1]
    return dict(word.split("==") for word in line.split())


def same(version, other):
    """Whether two versions are one but for zeros at the end."""
    return version.removesuffix(".0").removesuffix(".0") == other.removesuffix(".0")


def test_lower_bounds_are_the_versions_that_are_tested():
    extras = PROJECT["optional-dependencies"]
    promised = bounds(PROJECT["dependencies"]) | bounds(extras["plots"])
    assert set(promised) == {"jax", "flax", "rich", "matplotlib"}
    for name, version in promised.items():
        assert same(oldest("linen")[name], version), name
    for name, version in bounds(extras["nnx"]).items():
        assert same(oldest("nnx")[name], version), name
    assert all(oldest(pair)["jax"] == oldest(pair)["jaxlib"] for pair in ("linen", "nnx"))


def test_pages_and_messages_name_these_versions():
    linen, nnx = bounds(PROJECT["dependencies"]), bounds(PROJECT["optional-dependencies"]["nnx"])
    readme = (ROOT / "README.md").read_text()
    for versions in (linen, nnx):
        assert f"jax {versions['jax']}" in readme
        assert f"flax {versions['flax']}" in readme
    assert f"Flax {linen['flax']}" in (ROOT / "docs" / "linen.md").read_text()
    assert f"Flax {nnx['flax']}" in (ROOT / "docs" / "nnx.md").read_text()
    assert f"needs flax {nnx['flax']} " in (ROOT / "steinnorm" / "nnx.py").read_text()


def test_hosted_jobs_call_targets_of_the_makefile():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    targets = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
    jobs = workflow["jobs"]
    runs = {name: [s["run"] for s in job["steps"] if "run" in s] for name, job in jobs.items()}
    assert runs == {name: [f"make {name}"] for name in ("lint", "test", "test-oldest", "docs")}
    assert set(runs) <= targets
    assert jobs["test"]["strategy"]["matrix"]["python"] == PYTHONS
    assert workflow[True] == {"push": {"branches": ["main"]}, "pull_request": None}  # "on" is true
    for job in jobs.values():
        caches = [s["with"] for s in job["steps"] if s.get("uses", "").startswith("actions/setup-")]
        assert caches[0]["cache"] == "pip"


def test_the_citation_is_that_of_the_version_and_its_date():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    dated = f"## [{citation['version']}] - {citation['date-released'].isoformat()}\n"
    assert dated in (ROOT / "CHANGELOG.md").read_text()


def test_classifiers_name_the_pythons_of_the_jobs():
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert named == PYTHONS
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
