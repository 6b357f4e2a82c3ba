"""Spectrum: its ranking file (scores in the place of signal-to-noise ratios), and its list of unfrozen parameters.

The YAML is the selection, by the rule of the one who reads it: axolotl (see axolotl_full). The JSON is the ranking.
Whoever runs Spectrum or axolotl's SpectrumPlugin on it lets them choose anew: of each type the top int(count * percent
/ 100), and always the head and the embeddings (restated from cognitivecomputations/spectrum, spectrum.py,
generate_unfrozen_params_yaml). The YAML's header says how that would differ from the selection.
"""

import json
from collections.abc import Mapping

import yaml
from torch import nn

from keylayers.errors import BadSelection
from keylayers.exports import axolotl_full
from keylayers.exports.stored import stored_parameters
from keylayers.exports.target import ExportSettings, Target
from keylayers.exports.yaml_format import yaml_text
from keylayers.scores.scores import shown_names
from keylayers.scores.selection import Selection

FOLDER = "model_snr_results"
ALWAYS = {"^lm_head.weight$": "lm_head.weight", "^model.embed_tokens.weight$": "model.embed_tokens.weight"}
Ranking = Mapping[str, Mapping[str, float | str]]


def render(model: nn.Module, selection: Selection, settings: ExportSettings) -> dict[str, str]:
    """Both files, by the names Spectrum gives them."""
    ranking, meaning = _ranking(model, selection, settings)
    wanted = {name for layer in selection.chosen for name in layer.parameters}
    percent, found = _closest(ranking, meaning, wanted)
    own = yaml.safe_load(axolotl_full.render(model, selection, settings)[axolotl_full.FILE])
    del own["base_model"]
    named = f"snr_results_{settings.model.replace('/', '-').replace('_', '-')}"
    return {
        f"{FOLDER}/{named}.json": json.dumps(ranking, indent=4) + "\n",
        f"{named}_unfrozenparameters_{percent}percent.yaml": yaml_text(
            own, selection, [_difference(wanted, found, percent)]
        ),
    }


def read_back(model: nn.Module, files: Mapping[str, str]) -> set[str]:
    """Parameters that the YAML leaves trainable in axolotl."""
    text = next(text for name, text in files.items() if name.endswith(".yaml"))
    return axolotl_full.read_back(model, {axolotl_full.FILE: text})


def top_per_type(ranking: Ranking, percent: int) -> list[str]:
    """What Spectrum lists as unfrozen for a ranking file, in its order."""
    types: dict[str, list[str]] = {}
    for name, entry in ranking.items():
        types.setdefault(str(entry["type"]), []).append(name)
    chosen = list(ALWAYS)
    for names in types.values():
        ordered = sorted(names, key=lambda name: float(ranking[name]["snr"]), reverse=True)
        chosen += ordered[: int(len(names) * percent / 100)]
    return chosen


def _ranking(
    model: nn.Module, selection: Selection, settings: ExportSettings
) -> tuple[dict[str, dict[str, float | str]], dict[str, set[str]]]:
    """Spectrum's ranking of every candidate (1 or 0 where only a selection is known); each key's parameters."""
    names = [layer.name for layer in selection.layers]
    scores = dict(zip(names, selection.mask.astype(float).tolist(), strict=True))
    if settings.scores is not None:
        scores = settings.scores.by_name()
    if missing := [name for name in names if name not in scores]:
        raise BadSelection(f"the scores have no value for {shown_names(missing)}; give those of the selection.")
    stored, ranking, meaning = stored_parameters(model), dict[str, dict[str, float | str]](), dict[str, set[str]]()
    for layer in selection.layers:
        for key, parameters in _keys(layer.name, set(layer.parameters), stored).items():
            ranking[key], meaning[key] = {"snr": scores[layer.name], "type": layer.kind}, parameters
    return ranking, meaning | {key: {name} & stored for key, name in ALWAYS.items()}


def _keys(name: str, own: set[str], stored: set[str]) -> dict[str, set[str]]:
    """What to call a layer in the ranking, where a name stands for all parameters that begin with it."""
    for key in (name, f"{name}."):  # block 1 would be block 10 too, a router `mlp.gate` also `mlp.gate_proj`
        if {other for other in stored if other.startswith(key)} == own:
            return {key: own}
    return {f"{whole}${bracket}{row}": {f"{whole}{bracket}{row}"} for whole, bracket, row in map(_split, sorted(own))}


def _split(parameter: str) -> tuple[str, str, str]:
    return parameter.partition("[")


def _closest(ranking: Ranking, meaning: Mapping[str, set[str]], wanted: set[str]) -> tuple[int, set[str]]:
    """The percentage at which Spectrum's own choice is nearest to the wanted parameters, and that choice."""
    choices = {
        percent: set[str]().union(*(meaning[key] for key in top_per_type(ranking, percent)))
        for percent in range(1, 101)
    }
    percent = min(choices, key=lambda percent: len(choices[percent] ^ wanted))
    return percent, choices[percent]


def _difference(wanted: set[str], found: set[str], percent: int) -> str:
    """One line: how Spectrum's own choice from the ranking file differs."""
    start = f"Run on the ranking file, Spectrum itself would at --top-percent {percent} train"
    if found == wanted:
        return f"{start} the same."
    more, less = sorted(found - wanted), sorted(wanted - found)
    parts = [f"{len(more)} more ({shown_names(more)})"] * bool(more)
    parts += [f"{len(less)} fewer ({shown_names(less)})"] * bool(less)
    return f"{start} {' and '.join(parts)}; no other percentage is nearer."


TARGET = Target(
    name="spectrum",
    unit="parameters",
    render=render,
    read_back=read_back,
    nearest=axolotl_full.nearest,
    usage=(
        "copy unfrozen_parameters from the YAML into axolotl's configuration (full fine-tuning, no SpectrumPlugin: "
        f"that one chooses anew from {FOLDER}/ and adds the head and the embeddings)."
    ),
)
