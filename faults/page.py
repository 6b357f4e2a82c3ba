"""Counts of faults tried and survived, as a page."""

from collections import Counter
from collections.abc import Sequence

from faults.trial import NOTHING, Verdict
from keylayers.runs import git_commit, machine, versions


def page(verdicts: Sequence[Verdict], asked: str, date: str, restless: Sequence[str]) -> str:
    """Markdown: what was tried and survived, by kind and by command, and every fault that was not."""
    verdicts = [verdict for verdict in verdicts if verdict.detail != NOTHING]
    wrong = [verdict for verdict in verdicts if verdict.wrong]
    lines = [
        "# Faults",
        "",
        f"Written by `make faults` (`{asked}`) on {date}, commit {git_commit()}; the same seed tries the same faults.",
        f"Machine: {machine()}. Versions: {versions()}.",
        "",
        "Each fault hits a whole command at its smallest; afterwards the same command runs undisturbed. Survived: no "
        "traceback (short of memory running out), no half file under a final name, no temporary file left, no process "
        "left, and in the end every file says what an uninterrupted run's says, bit by bit but for clocks. Where a "
        "stored file is damaged, `keylayers verify`, the same command or one that goes on from the file must name it, "
        "or give what it gives without the damage.",
        "",
        *_table("fault", [(verdict.kind, bool(verdict.wrong)) for verdict in verdicts]),
        "",
        *_table("command", [(verdict.command, bool(verdict.wrong)) for verdict in verdicts]),
        "",
        f"Of {len(verdicts)} faults {len(verdicts) - len(wrong)} were survived.",
    ]
    if restless:
        lines += ["", f"Not compared, as two uninterrupted runs write them differently: {', '.join(restless)}."]
    if wrong:
        lines += ["", "## Not survived", ""]
        lines += [f"* {one.number}, {one.command}, {one.kind} ({one.detail}): {' | '.join(one.wrong)}" for one in wrong]
    return "\n".join(lines) + "\n"


def _table(name: str, rows: Sequence[tuple[str, bool]]) -> list[str]:
    tried, lost = Counter(row for row, _ in rows), Counter(row for row, wrong in rows if wrong)
    lines = [f"| {name} | tried | survived |", "|---|---|---|"]
    return lines + [f"| {row} | {number} | {number - lost[row]} |" for row, number in tried.items()]
