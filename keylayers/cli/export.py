"""`keylayers export`: the selected layers in the configuration of the trainer, merger or editor that acts on them."""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from keylayers.cli.terminal import quiet_libraries
from keylayers.errors import BadInput, KeylayersError, UnknownName
from keylayers.exports import TARGETS

if TYPE_CHECKING:
    from torch import nn

    from keylayers.exports.target import Export, ExportSettings
    from keylayers.scores import LayerScores, Selection

RANKS = ("equal", "by-score")


def run_export(scores: str, options: dict[str, Any]) -> None:
    """`keylayers export`: every target is verified before the first file is written."""
    from keylayers.runs import note
    from keylayers.scores import load_scores, select
    from keylayers.scores.caveats import list_caveats

    targets = list(dict.fromkeys(options["to"]))
    for name in targets:
        if name not in TARGETS:
            raise UnknownName("export target", name, TARGETS)
    if options["ranks"] not in RANKS:
        raise UnknownName("way to give ranks", options["ranks"], RANKS)
    found = load_scores(scores)
    selection = select(found, options["select"])
    for caveat in list_caveats(selection):
        note(caveat)
    quiet_libraries()
    from keylayers.exports import get
    from keylayers.exports.target import ExportSettings
    from keylayers.layers.model_versions import remainder_named

    settings = ExportSettings(  # refused, if they are, before the model is looked for
        tuned=_known_elsewhere(options["tuned"] or ExportSettings.tuned),
        remainder=remainder_named(options["remainder"]),
        rank=options["rank"],
        alpha=2.0 * options["rank"] if options["alpha"] is None else options["alpha"],
        scores=found,
    )
    model, source = _model(found, options["model"], options["trust_remote_code"])
    settings = replace(settings, model=_known_elsewhere(source))
    if options["tuned"] is not None and any(get(name).merges for name in targets):
        _check_versions(model, source, options["tuned"], options["trust_remote_code"])
    note(f"{selection.policy} of {source}, scored by {found.criterion}")
    exports = [_export(model, selection, name, settings, options["ranks"], options["nearest"]) for name in targets]
    for export in exports:
        note(str(export))
    texts = _texts(exports)
    placeholder = re.compile(rf"\b{ExportSettings.tuned}\b")
    if options["tuned"] is None and any(placeholder.search(text) for text in texts.values()):
        note(f"no --tuned is given: put the tuned model in place of {ExportSettings.tuned}")
    if options["out"] is None:
        _show(texts)
    else:
        from keylayers.exports.files import write_files

        for path in write_files(options["out"], texts, options["overwrite"]):
            note(f"written: {path}")
    for export in exports:
        note(f"{export.target}, how to use it: {export.usage}")


def _model(scores: "LayerScores", named: str | None, trust_remote_code: bool) -> tuple["nn.Module", str]:
    """The network the scores are of, without its weights, and its name."""
    from keylayers.inputs.scores_fit import check_scores_fit
    from keylayers.models.loading import load_shape
    from keylayers.models.sources import stated_source

    stored = str(scores.provenance.model.get("id") or "")
    source = named or stated_source(stored)
    if named is None and trust_remote_code:
        raise BadInput(
            f"code of a model runs only where you name it, and it is the score file that says {source!r}",
            f"name it yourself: `model={source}`",
        )
    try:
        model = load_shape(source, trust_remote_code=trust_remote_code)
    except KeylayersError as problem:
        if named is not None:
            raise
        raise BadInput(f"the scores are of {stored!r}, but: {problem} Name the model as --model.") from problem
    check_scores_fit(scores, model, stored if named is None else source)
    return model, source


def _check_versions(model: "nn.Module", source: str, tuned: str, trust_remote_code: bool) -> None:
    """Raises BadInput if a tuned model on this machine is no version of the base whose tensors could be exchanged."""
    from keylayers.layers.model_versions import versions
    from keylayers.layers.tensors import tensors_in_memory
    from keylayers.models.adapters import is_adapter
    from keylayers.models.loading import load_shape
    from keylayers.models.sources import local_folder

    folder = local_folder(tuned)
    if folder is None:  # a hub id, which the other tool reads
        return
    if is_adapter(folder):
        raise BadInput(
            f"{tuned} is a LoRA adapter, and mergekit takes tensors from a whole model; merge the adapter first, or "
            "use keylayers revert, which takes it as it is."
        )
    other = load_shape(str(folder), trust_remote_code=trust_remote_code)
    both = versions(tensors_in_memory(model, source), tensors_in_memory(other, tuned), model)
    if both.rows:
        raise BadInput(f"{both.notes()[0]}; mergekit would need one vocabulary: use keylayers revert instead.")


def _known_elsewhere(source: str) -> str:
    """A model's name as other tools can use it: the folder of a bundled one."""
    from keylayers.models.sources import local_folder

    return str(local_folder(source)) if source.startswith("bundled:") else source


def _export(
    model: "nn.Module", selection: "Selection", name: str, settings: "ExportSettings", ranks: str, nearest: bool
) -> "Export":
    """The selection for one target; with `nearest`, what the target can express instead, said on standard error."""
    from keylayers.exports.target import CannotExpress, export
    from keylayers.runs import note

    own = _with_ranks(model, selection, name, settings, ranks)
    try:
        found = export(model, selection, name, own)
    except CannotExpress as problem:
        if not nearest or problem.nearest is None:
            raise
        other, reason = problem.nearest, str(problem).partition(" The nearest it can express")[0]
    else:
        _note_ranks(model, selection, own)
        return found
    note(f"{name}: {reason}")
    if other.names != selection.names:
        note(f"{name}: not {selection.policy}, but the nearest it can express: {_differing(selection, other)}")
    if own.ranks is not None:
        note(f"{name}: with equal ranks")
    return export(model, other, name, settings)


def _with_ranks(
    model: "nn.Module", selection: "Selection", name: str, settings: "ExportSettings", ranks: str
) -> "ExportSettings":
    """The settings with each layer's rank, where ranks are to differ and the target has any."""
    from keylayers.exports import get
    from keylayers.exports.ranks import ranks_by_score
    from keylayers.runs import note

    if ranks == "equal" or settings.scores is None:
        return settings
    if get(name).adapters is None:
        note(f"{name} has no adapters, so no ranks either: --ranks {ranks} changes nothing there")
        return settings
    return replace(settings, ranks=ranks_by_score(settings.scores, selection, settings.rank, model))


def _note_ranks(model: "nn.Module", selection: "Selection", settings: "ExportSettings") -> None:
    """What unequal ranks cost, beside equal ones: the mean rank is the same, the number of parameters is not."""
    from keylayers.exports.ranks import adapter_size
    from keylayers.runs import note

    if settings.ranks is None:
        return
    size = adapter_size(model, selection.chosen, settings.ranks)
    equal = adapter_size(model, selection.chosen, dict.fromkeys(settings.ranks, settings.rank))
    note(
        f"ranks {min(settings.ranks.values())} to {max(settings.ranks.values())}, mean {settings.rank}: adapters of "
        f"{size:,} parameters ({equal:,} at equal ranks)"
    )


def _differing(asked: "Selection", nearest: "Selection") -> str:
    """The layers that are added, and those that are left out, by name."""
    more = [name for name in nearest.names if name not in asked]
    less = [name for name in asked.names if name not in nearest]
    return "; ".join(
        f"{len(names)} {word}: {', '.join(names)}" for names, word in ((more, "more"), (less, "fewer")) if names
    )


def _texts(exports: Sequence["Export"]) -> dict[str, str]:
    """File texts by path; several targets get a folder each."""
    if len(exports) == 1:
        return dict(exports[0].files)
    return {f"{export.target}/{name}": text for export in exports for name, text in export.files.items()}


def _show(texts: dict[str, str]) -> None:
    """One file as it is, so that it can be piped; several under their names."""
    for name, text in texts.items():
        if len(texts) > 1:
            sys.stdout.write(f"==> {name} <==\n")
        sys.stdout.write(text)
    sys.stdout.flush()
