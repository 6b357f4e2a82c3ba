"""Score and selection files, policies, and agreement of rankings."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylayers.scores import (
    agreement,
    agreements,
    load_scores,
    load_selection,
    parse,
    save,
    save_selection,
    select,
)
from keylayers.scores.policy_text import GRAMMAR
from keylayers.scores.transfer import transferred
from tests.fuzz.mutations import damaged, few, mutated, only_ours, text_of
from tests.scores.examples import FULL, network, noise, scored

LAYERS = network(2)
SCORES = scored(
    LAYERS,
    np.linspace(-1, 1, len(LAYERS)),
    provenance=FULL,
    repeats=np.stack([np.linspace(-1, 1, len(LAYERS)), np.linspace(-1, 1, len(LAYERS)) + 0.1]),
    groups={"a": np.ones(len(LAYERS))},
)
WORDS = [
    *"top params random ends blocks above suffix not contiguous all 30% 0% 1e9 -1 nan inf = % ½ １".split(),
    *"seed=3 match=kind by=kinds keep=90% of=lora 3-1 3,4 4-8 params=10% 99999999999999999999".split(),
    *("", " ", "\x00"),
]
EXAMPLES = [one.example for one in GRAMMAR.values()]
POLICIES = st.one_of(
    st.text(max_size=12),
    st.lists(st.sampled_from(WORDS), max_size=5).map(":".join),
    st.builds("{}:{}".format, st.sampled_from(EXAMPLES), st.sampled_from(WORDS)),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("scores")


@pytest.fixture(scope="module")
def files(place) -> dict[str, bytes]:
    """A sound file of each format."""
    save(SCORES, place / "scores.json")
    save_selection(select(SCORES, "top:30%"), place / "selection.json")
    return {name: (place / f"{name}.json").read_bytes() for name in ("scores", "selection")}


def use(path) -> None:
    """Reads a score file and does with it what commands do."""
    scores = only_ours(lambda: load_scores(path))
    if scores is None:
        return
    assert np.isfinite(scores.values).all() and scores.order() is not None and scores.sha256
    only_ours(lambda: agreement(scores, noise(LAYERS), 0.75))
    only_ours(lambda: transferred(scores, LAYERS))
    only_ours(lambda: select(scores, "params:10%:of=lora"))
    only_ours(lambda: select(scores, "random:30%:match=params"))


@few()
@given(data=st.data())
def test_score_files(place, files, data):
    content = data.draw(st.one_of(mutated(json.loads(files["scores"])).map(text_of), damaged(files["scores"])))
    (place / "a.json").write_bytes(content)
    use(place / "a.json")


@few()
@given(data=st.data())
def test_selection_files(place, files, data):
    content = data.draw(st.one_of(mutated(json.loads(files["selection"])).map(text_of), damaged(files["selection"])))
    (place / "b.json").write_bytes(content)
    if (found := only_ours(lambda: load_selection(place / "b.json"))) is not None:
        assert found.names is not None and 0 <= found.share_of_parameters <= 1


@few()
@given(policy=POLICIES)
def test_policies(policy):
    spec = only_ours(lambda: parse(policy))
    if spec is not None:
        assert parse(str(spec)) == spec
        only_ours(lambda: select(SCORES, policy))


@few()
@given(
    share=st.one_of(st.floats(), st.integers()),
    acted=st.sampled_from(["top", "bottom", "", "x"]),
    labels=st.lists(st.text(max_size=3), max_size=3),
    counts=st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
def test_agreement_of_odd_questions(share, acted, labels, counts):
    first, second = (noise(network(count), count) for count in counts)
    only_ours(lambda: agreement(first, second, share, acted=acted))
    only_ours(lambda: str(agreements([first, second], share, acted=acted, labels=labels)))
