"""`make bench`: runs every benchmark, writes BENCHMARKS.md, fails where a ratio misses its limit."""

import sys
from pathlib import Path

from benchmarks import (
    ablation,
    cka,
    experts,
    hardening,
    observing,
    screening,
    spectrum,
    stage_two,
    starting,
    suppression,
)
from keylayers.runs import machine, note, versions

PARTS = {
    "Learning gates (ILA, stage 2)": stage_two.table,
    "Ablation sweep": ablation.table,
    "Changes of single experts": experts.table,
    "Singular values (weight-only criteria)": spectrum.table,
    "CKA of every pair of layers": cka.table,
    "Criteria of hidden states from one pass": observing.table,
    "Fragility of features, and CLAT's choosing anew": hardening.table,
    "Screening a stream of images": screening.table,
    "Scan of skip connections": suppression.table,
    "Commands that need no model": starting.table,
}


def main() -> int:
    """Exit status: 0 if every limit holds."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`: ratios within one run, repetitions interleaved, medians with the extremes.",
        f"Machine: {machine()}. Versions: {versions()}.",
    ]
    fine = True
    for title, run in PARTS.items():
        note(f"benchmark: {title}")
        body, holds = run()
        fine &= holds
        lines += ["", f"## {title}", "", *body]
    text = "\n".join(lines) + "\n"
    Path("BENCHMARKS.md").write_text(text)
    print(text)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
