"""A paper's experiment with controls, beside its published figures."""

import json
import os
from pathlib import Path

from keylayers.cli.terminal import UNFINISHED, quiet_libraries, redact_paths, say
from keylayers.errors import BadInput, UnknownName
from keylayers.papers.registry import MASKS, PAPERS, load_paper
from keylayers.studies.study import SCALES


def run_reproduce(paper: str, scale: str, out: Path | None, processes: int, fresh: bool) -> None:
    """`keylayers reproduce`."""
    if paper not in PAPERS:
        raise UnknownName("paper", paper, PAPERS)
    scales = (*SCALES, MASKS) if paper == "ila" else SCALES
    if scale not in scales:
        raise UnknownName("scale", scale, scales)
    if processes < 1:
        raise BadInput(f"--processes {processes}: expected at least 1.")
    folder = out or Path("runs") / f"{paper}-{scale}"
    question = PAPERS[paper][0] + (" The mask's settings" if scale == MASKS else "")
    say(f"{paper}, {scale}: {question}; results in {folder}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    quiet_libraries()
    from keylayers.runs import open_run, write_json, write_text
    from keylayers.studies.real_data import given_of

    experiment = load_paper(paper, scale)
    plan = experiment.scale_of(scale)
    if lacking := experiment.missing_requirements(plan):
        say(lacking)
    given = given_of(plan)
    with open_run(folder, f"reproduce {paper}", {"scale": scale}, given=given, fresh=fresh) as run:
        for results in experiment.reproduce(plan, run, processes):
            write_json(folder / "results.json", json.loads(redact_paths(json.dumps(experiment.to_json(results)))))
            write_text(
                folder / "results.md", UNFINISHED + (text := redact_paths(experiment.render_page(results, scale)))
            )
            say(f"so far in {folder / 'results.md'}")
        write_text(folder / "results.md", text)
    say(text)
    say(f"stored in {folder / 'results.md'}; every figure behind it in {folder / 'results.json'}")
