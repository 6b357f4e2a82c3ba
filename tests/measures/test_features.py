"""Features and classes of batches: what images and texts give, and what is refused."""

import pytest
import torch

from keylayers.errors import BadInput
from keylayers.measures.features import classes_of, features_of, last_places, predicted_classes, rows_at
from tests import tiny_models


def test_images_are_flattened_or_averaged_over_their_pixels() -> None:
    batch, maps = {"x": torch.zeros(3, 1, 4, 4)}, torch.rand(3, 5, 4, 4)
    torch.testing.assert_close(rows_at(maps, batch, "auto", "it"), maps.reshape(3, 80))
    torch.testing.assert_close(rows_at(maps, batch, "mean", "it"), maps.mean((2, 3)))
    patches = torch.rand(3, 7, 5)  # of a ViT: (batch, patches, width)
    torch.testing.assert_close(rows_at(patches, batch, "mean", "it"), patches.mean(1))
    assert rows_at(maps.half(), batch, "flat", "it").dtype == torch.float32
    assert rows_at(maps.double(), batch, "flat", "it").dtype == torch.float64


def test_what_has_no_row_per_record_is_refused() -> None:
    batch = {"x": torch.zeros(3, 1, 4, 4)}
    for hidden in (torch.rand(12, 5), torch.rand(3)):
        with pytest.raises(BadInput, match=r"layer it returns shape .* for 3 records; expected a row for each"):
            rows_at(hidden, batch, "auto", "it")
    text = {"input_ids": torch.ones(3, 6, dtype=torch.long)}
    with pytest.raises(BadInput, match="layer it has 5 positions where the texts have 6 tokens"):
        rows_at(torch.rand(3, 5, 8), text, "auto", "it")
    nothing = {**text, "attention_mask": torch.tensor([[1] * 6, [0] * 6, [1] * 6])}
    with pytest.raises(BadInput, match="text 1 of a batch is all padding"):
        rows_at(torch.rand(3, 6, 8), nothing, "mean", "it")


def test_classes_come_from_their_own_key_before_labels() -> None:
    x = torch.zeros(3, 1, 4, 4)
    assert classes_of({"x": x, "labels": torch.tensor([2, 0, 1])}).tolist() == [2, 0, 1]
    assert classes_of({"x": x, "labels": torch.tensor([2, 0, 1]), "classes": [1, 1, 0]}).tolist() == [1, 1, 0]
    with pytest.raises(BadInput, match=r"batch\['labels'\] has class 2 for record 0 \(1 such\).* 0 to 1"):
        classes_of({"x": x, "labels": torch.tensor([2, 0, 1])}, 2)
    with pytest.raises(BadInput, match="a batch holds nothing"):
        classes_of({"labels": torch.tensor([2, 0, 1])})


def test_the_predicted_class_of_a_text_is_read_at_the_end_of_its_prompt() -> None:
    logits = torch.zeros(2, 5, 9)
    logits[0, 2, 7], logits[0, 4, 3] = 1.0, 1.0  # the prompt of the first ends at place 2
    logits[1, 3, 3], logits[1, 3, 8] = 1.0, 2.0  # the second ends at place 3; token 8 is no class
    batch = {
        "input_ids": torch.ones(2, 5, dtype=torch.long),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
        "labels": torch.tensor([[-100, -100, -100, 1, 1], [-100] * 5]),
    }
    assert last_places(batch, prompt=True).tolist() == [2, 3] and last_places(batch, prompt=False).tolist() == [4, 3]
    assert predicted_classes(batch, logits, (3, 7)).tolist() == [1, 0]
    assert predicted_classes({"x": torch.zeros(2, 1, 1, 1)}, torch.eye(3)[:2]).tolist() == [0, 1]


def test_an_encoder_decoder_model_is_read_at_its_first_answer() -> None:
    model = tiny_models.build("t5")
    batch = {
        "input_ids": tiny_models.inputs("t5")["input_ids"],
        "decoder_input_ids": torch.zeros(2, 1, dtype=torch.long),
    }
    names = ["encoder.block.0", "decoder.block.1"]
    with torch.no_grad():
        rows, logits = features_of(model, batch, names)
        truth = model(**batch, output_hidden_states=True)
    torch.testing.assert_close(rows["encoder.block.0"], truth.encoder_hidden_states[1][:, -1])
    assert rows["decoder.block.1"].shape == (2, 32)
    expected = truth.logits[:, 0, [5, 6]].argmax(1)
    assert predicted_classes(batch, logits, (5, 6)).tolist() == expected.tolist()
