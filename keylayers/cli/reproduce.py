"""A paper's experiment with controls, beside its published figures."""

import os
from pathlib import Path

from keylayers.cli.terminal import quiet_libraries, say
from keylayers.errors import BadInput, UnknownName

PAPERS = {"ila": "learned masks over deltas: are the rankings stable, are the layers worth training? (Shi et al. 2025)"}
SCALES = ("smoke", "small", "full")


def run_reproduce(paper: str, scale: str, out: Path | None, processes: int, fresh: bool) -> None:
    """`keylayers reproduce`."""
    if paper not in PAPERS:
        raise UnknownName("paper", paper, PAPERS)
    if scale not in SCALES:
        raise UnknownName("scale", scale, SCALES)
    if processes < 1:
        raise BadInput(f"--processes {processes}: expected at least 1.")
    folder = out or Path("runs") / f"{paper}-{scale}"
    say(f"{paper}, {scale}: {PAPERS[paper]}; results in {folder}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    quiet_libraries()
    from keylayers.recipes.ila import reproduce
    from keylayers.recipes.ila_plan import scale_of
    from keylayers.recipes.ila_tables import introduction, plain, tables
    from keylayers.runs import open_run, write_json, write_text
    from keylayers.studies.pages import page

    asked = scale_of(scale)
    if scale != "smoke" and not any(task.name.startswith("stories260K") for task in asked.tasks):
        say("without the real model and data: set KEYLAYERS_MODELS and KEYLAYERS_DATA (docs/stories260K.md)")
    with open_run(folder, f"reproduce {paper}", {"scale": scale}, fresh=fresh) as run:
        study = reproduce(asked, run, processes)
        write_json(folder / "results.json", plain(study))
        text = page("ILA and its rivals, measured", introduction(study.tasks, scale), tables(study))
        write_text(folder / "results.md", text)
    say(text)
    say(f"stored in {folder / 'results.md'}; every figure behind it in {folder / 'results.json'}")
