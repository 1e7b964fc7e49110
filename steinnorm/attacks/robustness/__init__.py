"""Robustness of a model of one's own in one call: attacks, their worst case, checks and files.

``call`` has the function; ``data`` the batches, ``measure`` one attack on one batch, ``loop`` all
of them, ``store`` and ``identity`` what is kept and for which model, ``rows`` the numbers,
``result``, ``tables``, ``plots`` and ``pictures`` the files.
"""

from steinnorm.attacks.robustness.call import evaluate_robustness as evaluate_robustness
from steinnorm.attacks.robustness.result import Robustness as Robustness
from steinnorm.attacks.robustness.rows import Row as Row
