"""`keylayers report`, and the report that other commands end with."""

from pathlib import Path

from keylayers.cli.terminal import say


def run_report(run: Path, out: Path | None) -> None:
    """`keylayers report`."""
    from keylayers.report.page import write_report

    written = write_report(run, out)
    if written.plots:
        say(f"plots in {written.plots[0].parent}: {', '.join(plot.name for plot in written.plots)}")
    say(f"report in {written.page}")


def end_with_report(run: Path) -> None:
    """The page of a run that has just ended; where it cannot be made, the results stay and standard error says why."""
    from keylayers.runs import note

    try:
        from keylayers.report.page import write_report

        page = write_report(run).page
    except Exception as error:  # whatever it is, the results are worth more than their picture
        reason = f"{type(error).__name__}: {error}"
        note(f"the results are whole, but their report could not be made ({reason}); later: keylayers report {run}")
        return
    say(f"report in {page}")
