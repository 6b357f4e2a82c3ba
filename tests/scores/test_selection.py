"""Selection: masks, set operations, weights and roles, files, and the refusal of empty and total choices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylayers.errors import BadInput, BadSelection, KeylayersError, UnknownName
from keylayers.scores import Selection, load_selection, save_selection, select
from tests.scores.examples import FULL, network, noise, scored

LAYERS = network(4)
N = len(LAYERS)


def chosen(*positions, **fields) -> Selection:
    return Selection(LAYERS, np.isin(np.arange(N), positions), "by hand", **fields)


def test_views_of_the_choice():
    some = chosen(4, 0, 28)
    assert some.names == ("layers.0.attn.q", "layers.0.mlp.gate", "lm_head")
    assert some.indices.tolist() == [0, 4, 28] and len(some) == 3
    assert some.chosen == (LAYERS[0], LAYERS[4], LAYERS[28])
    assert some.size == 16 + 45 + 131
    assert some.share_of_parameters == pytest.approx(192 / (4 * 175 + 131))
    assert some.kinds() == {
        "attn.q": 1, "attn.k": 0, "attn.v": 0, "attn.o": 0, "mlp.gate": 1, "mlp.up": 0, "mlp.down": 0, "lm_head": 1
    }  # fmt: skip
    assert "lm_head" in some and "layers.0.attn.k" not in some
    with pytest.raises(ValueError, match="read-only"):
        some.mask[1] = True


@pytest.mark.parametrize("mask", [np.zeros(3, bool), np.zeros(N), ["x"] * N, np.zeros((N, 1), bool), None])
def test_a_mask_is_one_bool_per_layer(mask):
    with pytest.raises(BadSelection, match="one true or false for each of the 29"):
        Selection(LAYERS, mask, "by hand")


def test_empty_and_total_choices_are_refused_unless_allowed():
    with pytest.raises(BadSelection, match="'by hand' chooses none of the 29"):
        chosen()
    with pytest.raises(BadSelection, match="chooses all 29"):
        chosen(*range(N))
    assert len(chosen(allow_empty=True)) == 0
    assert len(chosen(*range(N), allow_total=True)) == N


def test_the_complement_of_everything_is_refused_unless_allowed():
    with pytest.raises(BadSelection, match="chooses none"):
        ~select(LAYERS, "all")
    assert len(~select(LAYERS, "all", allow_empty=True)) == 0


MASKS = st.lists(st.booleans(), min_size=N, max_size=N).map(np.array)


@given(MASKS, MASKS)
def test_operators_are_those_of_sets(a, b):
    one, two = (Selection(LAYERS, mask, "m", allow_empty=True, allow_total=True) for mask in (a, b))
    names_one, names_two, everything = set(one.names), set(two.names), {layer.name for layer in LAYERS}
    assert set((~one).names) == everything - names_one
    assert set((one & two).names) == names_one & names_two
    assert set((one | two).names) == names_one | names_two
    assert set((one - two).names) == names_one - names_two
    assert np.array_equal((~~one).mask, one.mask) and (~~one).policy == one.policy


def test_combined_policies_say_how():
    assert (chosen(1, 2) | ~chosen(3)).policy == "(by hand | not:by hand)"


def test_only_selections_over_the_same_layers_combine():
    other = Selection.of(network(5), blocks=[1])
    for combine in (lambda: chosen(1) & other, lambda: chosen(1) | other, lambda: chosen(1) - other):
        with pytest.raises(BadSelection, match=r"only the first has none; only the second has layers\.4\.attn\.k"):
            combine()
    reordered = Selection.of(LAYERS[::-1], blocks=[1])
    with pytest.raises(BadSelection, match=r"position 0 is 'layers\.0\.attn\.q' and 'lm_head'"):
        chosen(1) & reordered


def test_of_names_and_blocks():
    assert Selection.of(LAYERS, names=["lm_head", "layers.2.attn.q"]).names == ("layers.2.attn.q", "lm_head")
    assert {layer.block for layer in Selection.of(LAYERS, blocks=[3, 1]).chosen} == {1, 3}
    assert Selection.of(LAYERS, blocks=[3, 1]).policy == "blocks:1,3"
    with pytest.raises(UnknownName, match="did you mean 'lm_head'"):
        Selection.of(LAYERS, names=["lm_heed"])
    with pytest.raises(BadSelection, match=r"block 9, 40 is not in this model: its layers lie in blocks 0\.\.3"):
        Selection.of(LAYERS, blocks=[1, 9, 40])
    with pytest.raises(BadSelection, match="either names"):
        Selection.of(LAYERS)
    with pytest.raises(BadSelection, match="chooses none"):
        Selection.of(LAYERS, names=[])


def test_weights_count_only_inside_the_choice():
    some = chosen(0, 4, weights=np.full(N, 2.5))
    assert some.weights.tolist() == [2.5 if i in (0, 4) else 0.0 for i in range(N)]
    with pytest.raises(BadSelection, match=r"weights: layer 'layers\.0\.attn\.q'"):
        chosen(0, weights=np.full(N, np.nan))
    with pytest.raises(BadSelection, match="shape"):
        chosen(0, weights=np.ones(3))


def test_weights_through_set_operations():
    one, two = chosen(0, 4, weights=np.full(N, 2.0)), chosen(4, 5, weights=np.full(N, 2.0))
    assert (one & two).weights.tolist() == [2.0 if i == 4 else 0.0 for i in range(N)]
    assert (one | two).weights.tolist() == [2.0 if i in (0, 4, 5) else 0.0 for i in range(N)]
    assert (~one).weights is None
    with pytest.raises(BadSelection, match="only one of the two"):
        one | chosen(5)
    with pytest.raises(BadSelection, match=r"different weights to the same layers: layers\.0\.mlp\.gate"):
        one | chosen(4, weights=np.ones(N))


def test_roles_join_and_narrow():
    convert = Selection.of(LAYERS, blocks=[1], roles={"conversion": [LAYERS[7].name]})
    think = Selection.of(LAYERS, blocks=[2], roles={"thinking": [LAYERS[15].name, LAYERS[14].name]})
    both = convert | think
    assert both.with_role("conversion") == (LAYERS[7],)
    assert both.with_role("thinking") == (LAYERS[14], LAYERS[15])
    assert both.with_role("other") == ()
    assert (both - convert).with_role("conversion") == ()
    assert (both - convert).with_role("thinking") == (LAYERS[14], LAYERS[15])
    with pytest.raises(BadSelection, match="not chosen: lm_head"):
        Selection.of(LAYERS, blocks=[1], roles={"conversion": ["lm_head"]})
    with pytest.raises(UnknownName):
        Selection.of(LAYERS, blocks=[1], roles={"conversion": ["layers.1.attn.z"]})


def test_a_layer_may_have_two_roles():
    both = Selection.of(LAYERS, blocks=[1], roles={"conversion": [LAYERS[7].name], "thinking": [LAYERS[7].name]})
    assert both.with_role("conversion") == both.with_role("thinking") == (LAYERS[7],)


@given(MASKS, st.booleans())
def test_files_give_back_the_same_selection(tmp_path_factory, mask, rich):
    path = tmp_path_factory.mktemp("selection") / "s.json"
    names = [layer.name for layer, is_chosen in zip(LAYERS, mask, strict=True) if is_chosen]
    fields = {"weights": np.linspace(-1, 1 / 3, N), "roles": {"r": tuple(names[:2])}} if rich else {}
    one = Selection(LAYERS, mask, "top:30%", {"a": [1, {"b": None}]}, allow_empty=True, allow_total=True, **fields)
    save_selection(one, path)
    assert load_selection(path) == one
    assert (load_selection(path).allow_empty, load_selection(path).allow_total) == (True, True)


def test_a_file_knows_where_the_selection_came_from(tmp_path):
    scores = scored(LAYERS, noise(LAYERS).values, provenance=FULL)
    save_selection(select(scores, "top:30%"), tmp_path / "s.json")
    back = load_selection(tmp_path / "s.json")
    assert back.provenance["model"]["id"] == "some/model"
    assert back.provenance["scores"] == {"criterion": "by_hand", "granularity": "linear", "sha256": scores.sha256}
    lines = [line for line in (tmp_path / "s.json").read_text().splitlines() if '"name"' in line]
    assert len(lines) == N and sum('"chosen": true' in line for line in lines) == len(back)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"keylayers/selection/1"', '"keylayers/scores/1"', "expected 'keylayers/selection/1'"),
        ('"chosen": true', '"chosen": 1', "field 'chosen' is 1; expected true or false"),
        ('"chosen": true', '"chosen": false', "chooses none"),
        ('"weight": null}', '"weight": 1}', "expected a number, as other layers have one"),
        ('"policy"', '"polici"', "did you mean 'policy'"),
        ('"roles": null', '"roles": {"r": ["lm_heed"]}', "did you mean 'lm_head'"),
        ('"roles": null', '"roles": {"r": [3]}', "a list of texts"),
        ('"name": "lm_head"', '"name": "layers.0.attn.q"', "repeated"),
    ],
)
def test_unsound_files_are_refused_by_name(tmp_path, old, new, words):
    path = tmp_path / "s.json"
    save_selection(chosen(3), path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(KeylayersError, match=words) as refusal:
        load_selection(path)
    assert "s.json" in str(refusal.value)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "s.json"
    save_selection(chosen(3), path)
    path.write_text(path.read_text()[:-200])
    with pytest.raises(BadInput, match="not whole, strict JSON"):
        load_selection(path)


def test_equality_and_unfit_policies():
    assert chosen(1) == chosen(1) and chosen(1) != chosen(2) and chosen(1) != chosen(1, weights=np.ones(N))
    assert chosen(1) != "x"
    with pytest.raises(BadSelection, match="how it was chosen"):
        Selection(LAYERS, np.arange(N) < 2, "")
