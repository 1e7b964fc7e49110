"""Checks of a robustness evaluation itself (after Carlini et al. 2019).

No check proves that a model is robust, but a failed check shows that a measured robustness is not
to be trusted.
"""

from steinnorm.attacks.checks.findings import FAIL as FAIL
from steinnorm.attacks.checks.findings import NOT_APPLICABLE as NOT_APPLICABLE
from steinnorm.attacks.checks.findings import PASS as PASS
from steinnorm.attacks.checks.findings import Finding as Finding
from steinnorm.attacks.checks.run import NAMES as NAMES
from steinnorm.attacks.checks.run import Checks as Checks
from steinnorm.attacks.checks.run import run_checks as run_checks
from steinnorm.attacks.checks.settings import CheckSettings as CheckSettings
