"""Messages: what Python users read, what a command makes of them, and errors that cross from a worker."""

import pickle

import pytest

from keylayers.errors import BadInput, KeylayersError, UnknownName, spelled, worded


def flags(name, value):
    """Of a command with --batch-size and --set, and without others."""
    if name == "batch_size":
        return "--batch-size" + (f" {value}" if value else "")
    return f"--set {name.removeprefix('settings.')}={value}" if name.startswith("settings.") else None


def test_python_users_read_settings_as_python_names_them():
    error = BadInput("only one batch", "give more records (`records`)", "take a smaller `batch_size`")
    assert str(error) == "only one batch; give more records (`records`), or take a smaller `batch_size`."
    assert str(BadInput("a text of its own.")) == "a text of its own." and str(KeylayersError()) == ""


def test_a_command_spells_its_own_flags_and_leaves_out_what_it_lacks():
    with pytest.raises(BadInput) as refusal, spelled(flags):
        raise BadInput("`batch_size=9` is `much`", "give `records`", "use `batch_size=4`", "set `settings.window=3`")
    assert str(refusal.value) == "--batch-size 9 is `much`; use --batch-size 4, or set --set window=3."
    with spelled(flags):
        assert str(BadInput("too few", "give `records`")) == "too few."
        assert worded("see `batch_size`, `else`") == "see --batch-size, `else`"
        assert str(BadInput(f"inside: {BadInput('a', 'use `batch_size=1`')}")) == "inside: a; use --batch-size 1."
    assert worded("see `batch_size`") == "see `batch_size`"


@pytest.mark.parametrize("error", [BadInput("what", "do `this`"), UnknownName("thing", "abc", ["abd", "x"])])
def test_errors_come_back_from_a_worker_as_they_were(error):
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error) and str(back) == str(error) and back.args == error.args
