"""What the runs of a report cannot show, said plainly."""

from keylayers.measures.blow_ups import noted
from keylayers.report.arms import Tuning
from keylayers.report.choice import Choice
from keylayers.report.collect import Collected
from keylayers.report.words import and_list, plural


def state_limits(collected: Collected, choice: Choice | None) -> tuple[str, ...]:
    """What the runs cannot show, one sentence each."""
    said: list[str] = []
    tuning = collected.tuned.tuning if collected.tuned else None
    if tuning is not None:
        said += _limits_of_tuning(tuning)
    elif choice is not None and collected.runs[0].command != "compare":
        said.append(
            "Scores alone do not show that training only these layers is enough: tune them, beside random layers of "
            "as many parameters."
        )
    if bare := [one for one in collected.rankings if one.scores.interval() is None]:
        names = and_list(list(dict.fromkeys(one.label for one in bare)))
        files = ", ".join(one.file for one in bare[:6]) + (", ..." if len(bare) > 6 else "")
        said.append(
            f"Scores without intervals, of which nothing says which ranks are certain: {names} ({files}). "
            "Several seeds or batches give intervals."
        )
    if any(ranking.scores.repeats is not None for ranking in collected.rankings):
        said.append(
            "Intervals of scores come from repeats of the scoring (batches or seeds) on one tuned model; another "
            "training seed or another data set may rank the layers otherwise."
        )
    if len(collected.rankings) > 1:
        said.append("Rankings that agree are stable, not necessarily right: only training the chosen layers tells.")
    return tuple(dict.fromkeys(said))


def _limits_of_tuning(tuning: Tuning) -> list[str]:
    seeds = len(tuning.arms[0].losses)
    random = [arm for arm in tuning.arms if arm.is_random]
    said = []
    if seeds == 1:
        said.append(
            "One training seed gives no interval: no difference between arms is shown here. Three seeds give one "
            "(keylayers tune --seeds 3)."
        )
    elif seeds < 5:
        said.append(f"With {seeds} seeds intervals are wide and rest on the assumption of normally distributed losses.")
    if not random:
        said.append(
            "No arm trained random layers, so nothing here tells the choice from chance. Such an arm does (keylayers "
            "tune --against random:30%)."
        )
    elif (draws := sum(1 if "seed=" in arm.policy else len(arm.losses) for arm in random)) < 5:
        said.append(f"The random layers are {plural(draws, 'draw')}; five or more are advisable.")
    said += noted({arm.policy: arm.blew_up for arm in tuning.arms})
    if len(tuning.arms) > 2:
        said.append("Each interval holds 95 % by itself; they are not adjusted for the number of comparisons.")
    return said
