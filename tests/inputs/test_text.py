"""What a user names, read: three disjoint parts, cut as asked, and what a run folder stands for."""

import pytest

from keylayers.errors import BadInput
from keylayers.inputs.text import Inputs, prepare_data, tuned_place
from keylayers.models.loading import LoadedModel
from keylayers.runs import open_run


@pytest.fixture(scope="module")
def loaded(world):
    return world.inputs().load_model()


def test_the_parts_are_disjoint_capped_and_named_in_the_identity(world, loaded):
    data = prepare_data(world.inputs(held_out=5, records=20), loaded)
    assert (len(data.train), len(data.calibration), len(data.test)) == (20, 5, 5)
    parts = [set(part.origins) for part in (data.train, data.calibration, data.test)]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert [(entry["split"], entry["records"]) for entry in data.identity] == [("train", 20), ("calibration", 5)]
    assert all(entry["id"] == str(world.data) and len(entry["sha256"]) == 64 for entry in data.identity)


def test_records_are_cut_at_the_asked_length_and_it_is_said(world, loaded, capsys):
    data = prepare_data(world.inputs(max_length=14), loaded)
    assert max(map(len, data.train.input_ids)) == 14
    assert "cut at 14 tokens" in capsys.readouterr().err


def test_no_record_is_longer_than_the_model_sees_and_it_is_said(world, loaded, capsys):
    assert prepare_data(world.inputs(max_length=1000), loaded).train.report.max_length == 64
    assert "sees at most 64 tokens" in capsys.readouterr().err
    assert prepare_data(world.inputs(max_length=None), loaded).train.report.max_length == 64
    assert "sees at most" not in capsys.readouterr().err


@pytest.mark.parametrize(("change", "said"), [({"max_length": 0}, "max_length=0"), ({"records": 0}, "records=0")])
def test_a_limit_of_nothing_is_refused_and_not_taken_for_none(world, loaded, change, said):
    with pytest.raises(BadInput, match=said):
        prepare_data(world.inputs(**change), loaded)


def test_a_model_without_tokenizer_cannot_read_text(loaded):
    with pytest.raises(BadInput, match=r"keylayers\.models\.cifar:resnet20 has no tokenizer"):
        prepare_data(Inputs(model="keylayers.models.cifar:resnet20"), LoadedModel(loaded.model, "x"))


def test_bad_records_are_counted_aloud(world, loaded, tmp_path, capsys):
    lines = world.data.read_text().splitlines() * 3
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join([*lines, '{"prompt": "What?", "completion": ""}']))
    prepare_data(world.inputs(data=str(file)), loaded)
    assert f"left out 1 bad records, first {file}:241" in capsys.readouterr().err


def test_what_a_tuned_name_stands_for(tmp_path):
    assert tuned_place("org/name") == "org/name"
    plain = tmp_path / "checkpoint"
    plain.mkdir()
    assert tuned_place(str(plain)) == str(plain)
    with open_run(tmp_path / "score", "score", {}) as run:
        (run.path / "stage1" / "adapter").mkdir(parents=True)
        with pytest.raises(BadInput, match="without a finished tuned model; run its command again"):
            tuned_place(str(run.path))  # an adapter that may be half-written
        run.part("stage1", lambda: {"losses": []})
        assert tuned_place(str(run.path)) == str(run.path / "stage1" / "adapter")
    with open_run(tmp_path / "tune", "tune", {}) as run:
        (run.path / "tuned").mkdir()
    assert tuned_place(str(run.path)) == str(run.path / "tuned")
