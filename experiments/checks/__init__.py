"""Tests of the evaluation itself, run with every evaluation (after Carlini et al. 2019).

None of them proves that a model is robust; each of them, where it fails, disproves a number.
"""

from experiments.checks.findings import FAIL as FAIL
from experiments.checks.findings import NOT_APPLICABLE as NOT_APPLICABLE
from experiments.checks.findings import PASS as PASS
from experiments.checks.findings import Finding as Finding
from experiments.checks.run import NAMES as NAMES
from experiments.checks.run import Checks as Checks
from experiments.checks.run import run_checks as run_checks
from experiments.checks.runs import Target as Target
