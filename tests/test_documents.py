"""README and the pages of docs: their programs and examples run, their links lead somewhere."""

import doctest
import functools
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from tests import children
from tests.test_architecture import ROOT, relative

PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
        *(ROOT / folder / "README.md" for folder in ("experiments", "examples")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
EXAMPLES = [
    "docs/attacks.md",
    "docs/calibrate.md",
    "docs/convert.md",
    "docs/estimators.md",
    "docs/extending.md",
    "docs/linen.md",
    "docs/nnx.md",
    "docs/norms.md",
]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED_FILE = re.compile(r"\b(?:tests|steinnorm|experiments|benchmarks|examples)/[\w/]+\.py\b")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

# Runs every program in a namespace of its own; prints what each has printed, as JSON.
RUNNER = """
import contextlib, io, json, sys
printed = []
for program in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    printed.append(out.getvalue())
print(json.dumps(printed))
"""


def programs(page):
    """The blocks of a page that are programs, not examples with their output."""
    blocks = BLOCK.findall((ROOT / page).read_text())
    return [block for block in blocks if not block.startswith(">>>")]


@functools.cache
def printed_by(page, devices):
    """What the programs of a page print, in a process of their own with so many devices."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(programs(page)),
        env=children.environment(devices),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize("page", EXAMPLES)
def test_examples_run(page):
    failed, attempted = doctest.testfile(
        str(ROOT / page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert attempted >= 5
    assert failed == 0


def test_no_page_has_examples_that_are_not_run():
    with_examples = [relative(page) for page in PAGES if ">>> " in page.read_text()]
    assert with_examples == EXAMPLES
    with_programs = [relative(page) for page in PAGES if programs(page)]
    assert with_programs == [
        *("README.md", "docs/devices.md", "docs/linen.md", "docs/nnx.md"),
        "docs/results/README.md",
    ]


def test_programs_of_the_front_page_run():
    *layers, attack = printed_by("README.md", devices=1)
    assert layers == ["", ""]
    assert re.search(r"^worst +0\.05 ", attack, re.MULTILINE)


def test_two_sets_of_networks_say_what_is_told_of_them():
    (printed,) = printed_by("docs/results/README.md", devices=1)
    told = " ".join((ROOT / "docs/results.md").read_text().split())
    assert len(printed.splitlines()) == 2
    for interval in printed.splitlines():
        assert interval in told


def losses(page, devices):
    return [float(text.removeprefix("loss ")) for text in printed_by(page, devices)]


def test_training_steps_on_several_devices_end_where_one_device_does():
    (nnx,), (linen,) = (losses(f"docs/{name}.md", devices=1) for name in ("nnx", "linen"))
    assert max(nnx, linen) < 1  # 2.3 for a model that has learned nothing of ten classes
    on_four = losses("docs/devices.md", devices=4)
    np.testing.assert_allclose(on_four, [nnx, linen, nnx, linen, linen], rtol=1e-5)


def anchors(page):
    """Names of the headings of a page, as GitHub makes them."""
    text = FENCED.sub("", page.read_text())
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} is not there"
        target = target / "README.md" if target.is_dir() else target
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_files_and_modules_that_are_named_exist(page):
    text = page.read_text()
    for path in NAMED_FILE.findall(text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ((?:benchmarks|experiments)[\w.]*\w)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160
