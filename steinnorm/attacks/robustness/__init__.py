"""Evaluation of a model's robustness in one call: attacks, their worst case, checks and files.

``call`` has the public function. ``data`` provides the batches, ``evaluator`` runs one attack on
one batch, and ``loop`` runs all attacks on all batches. ``store`` keeps results in files,
``identity`` decides whether stored results may be used again, and ``rows`` computes the reported
values. ``result``, ``tables``, ``plots`` and ``pictures`` write the files.
"""

from steinnorm.attacks.robustness.call import evaluate_robustness as evaluate_robustness
from steinnorm.attacks.robustness.result import Robustness as Robustness
from steinnorm.attacks.robustness.rows import Row as Row
