"""Layers by their scores as arguments of peft's LoraConfig, in the words of peft's own selector."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import nn

from keylayers.actions.freezing import Forecast, freeze
from keylayers.errors import BadInput, BadSelection, UnknownName
from keylayers.exports.peft import to_lora_config
from keylayers.exports.ranks import ranks_by_score
from keylayers.exports.target import ExportSettings, export
from keylayers.scores import LayerScores, Selection, select
from keylayers.scores.policy_text import Amount, PolicySpec

if TYPE_CHECKING:
    from peft import LoraConfig

RANKS = ("equal", "by-score")
Ranks = Mapping[str, int] | Literal["equal", "by-score"]


class LayerSelector:
    """The most critical layers of a model, by scores that exist already, for peft or for freezing the rest.

    Methods and arguments are those of `KappaTuneSelector` (peft, src/peft/helpers.py), so one takes the other's place:

        selector = LayerSelector(scores, model)
        LoraConfig(target_modules=selector.get_best_targets(top_p=0.3),
                   target_parameters=selector.get_best_target_parameters(top_p=0.3))

    Each method takes at most one of `top_p` (share of the layers, in (0, 1]), `num_modules` (how many) and `threshold`
    (scores at least this high); with none of them it takes all layers.

    All raise BadInput for two of these at once or a value out of range, and BadSelection if no layer is chosen, or one
    is not in the model.
    """

    # deviates: peft ranks modules and fused experts apart, top_p of each; here together, as every policy does.
    # deviates: peft takes values up to the threshold, as low is good there; here scores from it up, as high is.
    # deviates: peft rounds a share down and gives fewer than num_modules if there are no more; here as `select` does.

    def __init__(self, scores: LayerScores, model: nn.Module) -> None:
        self.scores, self.model = scores, model

    def select(
        self, top_p: float | None = None, num_modules: int | None = None, threshold: float | None = None
    ) -> Selection:
        """The chosen layers."""
        given = {"top_p": top_p, "num_modules": num_modules, "threshold": threshold}
        named = [f"{name}={value}" for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise BadInput(f"{' and '.join(named)} say how many layers twice; give one of them.")
        if top_p is not None:
            if not 0 < top_p <= 1:
                raise BadInput(f"top_p is {top_p}: expected a share of the layers above 0 and up to 1.")
            return select(self.scores, PolicySpec("top", Amount.of_share(top_p)), allow_total=True)
        if num_modules is not None:
            if num_modules < 1:
                raise BadInput(f"num_modules is {num_modules}: expected at least 1.")
            return select(self.scores, PolicySpec("top", Amount(str(num_modules), count=num_modules)), allow_total=True)
        if threshold is None:
            return select(self.scores, "all")
        return self._at_least(threshold)

    def get_best_targets(
        self, top_p: float | None = None, num_modules: int | None = None, threshold: float | None = None
    ) -> list[str] | str:
        """Names of the chosen modules in full, most critical first; empty where all chosen are fused experts.

        Where other modules' names end with one of these, so that peft would take them for it, one pattern instead.
        """
        config, ranking = self._config(self.select(top_p, num_modules, threshold))
        named = config.target_modules or ()
        return named if isinstance(named, str) else sorted(named, key=ranking.index)

    def get_best_target_parameters(
        self, top_p: float | None = None, num_modules: int | None = None, threshold: float | None = None
    ) -> list[str]:
        """Names of the chosen fused expert tensors (and of weights that peft knows by no other way), best first."""
        config, ranking = self._config(self.select(top_p, num_modules, threshold))
        return sorted(config.target_parameters or (), key=lambda name: ranking.index(name.removesuffix(".weight")))

    def to_lora_config(
        self,
        top_p: float | None = None,
        num_modules: int | None = None,
        threshold: float | None = None,
        r: int = 16,
        lora_alpha: float = 32,
        ranks: Ranks = "equal",
    ) -> "LoraConfig":
        """A LoraConfig that adapts exactly the chosen layers, as peft itself confirmed on this model.

        `ranks` may be "by-score" (mean `r`, see ranks_by_score), or layer name -> rank for some of the layers; the
        others have `r`. alpha / rank is the same everywhere.

        Raises:
            CannotExpress: if peft adapts no such layers (whole blocks, single experts).
            BadScores: where scores cannot give ranks.
        """
        selection = self.select(top_p, num_modules, threshold)
        chosen = _ranks(ranks, self.scores, selection, r, self.model)
        return self._config(selection, ExportSettings(rank=r, alpha=lora_alpha, ranks=chosen))[0]

    def freeze(
        self, top_p: float | None = None, num_modules: int | None = None, threshold: float | None = None
    ) -> Forecast:
        """Freezes all but the chosen layers of the model, for good; returns what trains and what that costs."""
        return freeze(self.model, self.select(top_p, num_modules, threshold))

    def _at_least(self, threshold: float) -> Selection:
        values = self.scores.values
        if not (values >= threshold).any():
            raise BadSelection(
                f"no score reaches threshold={threshold:g}: they lie between {values.min():.4g} and {values.max():.4g}."
            )
        just_below = float(np.nextafter(threshold, -np.inf))
        chosen = select(self.scores, PolicySpec("above", just_below), allow_total=True)
        return replace(chosen, policy=f"score >= {threshold:g}")

    def _config(self, selection: Selection, settings: ExportSettings | None = None) -> tuple["LoraConfig", list[str]]:
        """The verified configuration, and all layer names by rank."""
        settings = settings or ExportSettings()
        export(self.model, selection, "peft", settings)
        return to_lora_config(self.model, selection, settings), [layer.name for layer in self.scores.ranking()]


def _ranks(
    ranks: Ranks, scores: LayerScores, selection: Selection, rank: int, model: nn.Module
) -> dict[str, int] | None:
    """Layer name -> rank for the whole selection; None where all have the same."""
    if ranks == "equal":
        return None
    if ranks == "by-score":
        return ranks_by_score(scores, selection, rank, model)
    if isinstance(ranks, str):
        raise UnknownName("way to give ranks", ranks, RANKS)
    foreign = [name for name in ranks if name not in selection]
    if foreign:
        raise BadInput(f"ranks names {len(foreign)} layers that are not selected, first {foreign[0]}; leave them out.")
    return {name: ranks.get(name, rank) for name in selection.names}
