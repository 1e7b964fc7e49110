"""Writes what the checks found: how often each passed, and every failure in full."""

from collections import Counter
from collections.abc import Sequence

from experiments.results import Check

_VERDICTS = ("PASS", "FAIL", "not applicable")
_IN_FULL = 5  # models of which each failure of a check is told


def failed_checks(checks: Sequence[Check]) -> str:
    """Returns how many checks failed, in words; nothing where all were made and none did.

    Args:
      checks: of any number of models.
    """
    failed = sum(check.verdict == "FAIL" for check in checks)
    if not checks:
        return "No checks of the evaluation were made"
    return f"{failed} of {len(checks)} checks of the evaluation FAILED" if failed else ""


def check_table(checks: Sequence[Check]) -> str:
    """Returns a Markdown table, fit for a terminal too: a line per check, counts of verdicts.

    Args:
      checks: of any number of models.
    """
    if not checks:
        return "No checks of the evaluation were made."
    names = list(dict.fromkeys(check.name for check in checks))
    found = Counter((check.name, check.verdict) for check in checks)
    width = max(len(name) for name in ("check", *names))
    lines = [
        f"| {'check':{width}} | " + " | ".join(_VERDICTS) + " |",
        f"| {'-' * width} | " + " | ".join("-" * (len(v) - 1) + ":" for v in _VERDICTS) + " |",
    ]
    for name in names:
        counts = " | ".join(f"{found[name, v]:{len(v)}}" for v in _VERDICTS)
        lines.append(f"| {name:{width}} | {counts} |")
    return "\n".join(lines)


def check_paragraphs(checks: Sequence[Check]) -> list[str]:
    """Returns, in Markdown, the table, every failure, and why a check could not be made.

    Args:
      checks: of any number of models.
    """
    parts = [check_table(checks)]
    for verdict, title in (("FAIL", "Failed:"), ("not applicable", "Not applicable:")):
        entries: list[str] = []
        for name, found in _by_name(checks, verdict).items():
            details: dict[str, list[Check]] = {}
            for check in found:
                details.setdefault(check.detail, []).append(check)
            if len(details) > _IN_FULL:
                where = f"{len(found)} times, of which the first found: {found[0].detail}"
                entries.append(f"- `{name}`: {where}. All are in checks.json ({_places(found)})")
                continue
            entries += [f"- `{name}`: {what} ({_places(of)})" for what, of in details.items()]
        if entries:
            parts.append("\n".join([title, "", *entries]))
    return parts


def _by_name(checks: Sequence[Check], verdict: str) -> dict[str, list[Check]]:
    """Returns the checks with that verdict by their names."""
    found: dict[str, list[Check]] = {}
    for check in checks:
        if check.verdict == verdict:
            found.setdefault(check.name, []).append(check)
    return found


def _places(checks: Sequence[Check]) -> str:
    """Returns whose checks these are, the seeds of a norm together."""
    seeds: dict[str, list[int]] = {}
    for check in checks:
        seeds.setdefault(f"{check.norm}, {check.statistics} statistics", []).append(check.seed)
    return "; ".join(
        f"{of}, seed{'s' * (len(mine) > 1)} {', '.join(map(str, mine))}"
        for of, mine in seeds.items()
    )


def failed_lines(checks: Sequence[Check]) -> list[str]:
    """Returns a line for each check that failed, with what it found or, of several models, where.

    Args:
      checks: of any number of models.
    """
    lines = []
    for name, found in _by_name(checks, "FAIL").items():
        detail = found[0].detail if len(found) == 1 else f"{len(found)} times"
        lines.append(f"FAILED {name}: {detail}; {_places(found)}")
    return lines
