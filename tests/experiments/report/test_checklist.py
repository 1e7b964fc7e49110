"""What a report says of the checks: every failure of a few models, and of many where they were."""

from experiments import report
from experiments.results import Check


def _check(verdict, norm="batch", seed=0, detail="as it should be", name="more_restarts"):
    return Check(
        config="digits",
        norm=norm,
        seed=seed,
        statistics="running",
        name=name,
        verdict=verdict,
        value=None,
        detail=detail,
    )


def test_failures_of_a_few_models_are_told_in_full():
    checks = [_check("PASS"), *(_check("FAIL", "stein", s, f"{s} more fell") for s in range(3))]
    table, failed = report.check_paragraphs(checks)
    assert "| more_restarts |    1 |    3 |" in table
    assert failed.splitlines()[2:] == [
        f"- `more_restarts`: {s} more fell (stein, running statistics, seed {s})" for s in range(3)
    ]


def test_failures_of_many_models_are_counted_with_the_first_of_them():
    norms = ("batch", "stein")
    checks = [_check("FAIL", n, s, f"{n} {s} fell") for s in range(4) for n in norms]
    (_, failed) = report.check_paragraphs(checks)
    (line,) = failed.splitlines()[2:]
    assert line == (
        "- `more_restarts`: 8 times, of which the first found: batch 0 fell. All are in "
        "checks.json (batch, running statistics, seeds 0, 1, 2, 3; stein, running statistics, "
        "seeds 0, 1, 2, 3)"
    )
    assert report.failed_lines(checks) == [
        "FAILED more_restarts: 8 times; batch, running statistics, seeds 0, 1, 2, 3; "
        "stein, running statistics, seeds 0, 1, 2, 3"
    ]


def test_one_reason_for_many_models_stands_once():
    checks = [_check("not applicable", seed=s, detail="no twin") for s in range(9)]
    (_, reasons) = report.check_paragraphs(checks)
    assert reasons.splitlines()[2:] == [
        "- `more_restarts`: no twin (batch, running statistics, seeds 0, 1, 2, 3, 4, 5, 6, 7, 8)"
    ]
