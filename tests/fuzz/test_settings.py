"""What is typed: settings, columns, shares, budgets, and YAML files of them."""

import sys
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from keylayers import criteria
from keylayers.cli import main
from keylayers.cli.league import shares
from keylayers.cli.options import pairs, share
from keylayers.cli.vision import fraction
from keylayers.recipes.score_request import settings_of
from tests.fuzz.mutations import damaged, few, mutated, odd_values, only_ours

NUMBERS = st.one_of(
    st.text(max_size=8),
    st.floats().map(str),
    st.sampled_from("75% % 0% 100% 1e400 -5% nan% 8/255 8/0 0/0 1/2/3 / inf/inf 1_0 ٣% 10%,30% ,, 10%,".split()),
)
ITEMS = st.lists(st.one_of(st.text(max_size=8), st.sampled_from("a=b a= =b a== prompt=x =".split())), max_size=3)
CONFIG: dict[str, Any] = {
    "model": "nowhere/none",
    "data": "none.jsonl",
    "set": {"steps": 3},
    "lr": 0.01,
    "column": ["a=b"],
    "fresh": True,
    "top": "75%",
    "plot": "x.png",
}


@few()
@given(text=NUMBERS)
def test_shares_and_budgets(text):
    for read in (lambda: share(text, "--top", "a share"), lambda: shares(text), lambda: fraction(text, "--eps")):
        only_ours(read)


@few()
@given(items=ITEMS)
def test_items(items):
    only_ours(lambda: pairs(items, "--set"))


@pytest.mark.parametrize("name", ["learned_mask", "path_integral", "ablation", "class_separation"])
@few()
@given(data=st.data())
def test_settings_of_criteria(name, data):
    criterion = criteria.get(name)
    keys = sorted(vars(criterion.settings()))
    values = st.one_of(odd_values(), NUMBERS)
    given_ = data.draw(st.dictionaries(st.sampled_from(keys), values, max_size=3))
    only_ours(lambda: settings_of(criterion, given_))


COMMANDS = ("compare a.json b.json", "score delta_norm", "tune", "league", "harden --model m.py:net", "export x.json")


@pytest.mark.parametrize("command", COMMANDS)
@few(2)
@given(data=st.data())
def test_configurations(tmp_path_factory, command, data):
    """Refused by the program's own words, or by typer's, which exits with status 2."""
    path = tmp_path_factory.getbasetemp() / "settings.yaml"
    sound = yaml.safe_dump(CONFIG).encode()
    changed = data.draw(mutated(CONFIG))
    try:
        other = yaml.safe_dump(changed).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, UnicodeError):
        other = sound
    path.write_bytes(data.draw(st.one_of(st.just(other), damaged(sound))))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(path.parent)
        patched.setattr(sys, "argv", ["keylayers", *command.split(), "--config", str(path)])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 2
