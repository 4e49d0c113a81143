"""Predicted label maps survive the way through 16-bit PNGs, and foreign files are refused with their name."""

import numpy as np
import pytest
import torch
from PIL import Image

from partseg.evaluation.predictions import PredictionWriter, read_prediction


def test_round_trip(sample, tmp_path):
    one = sample([[0, 1, None]], [[0, 0, -1]], name="folder/image")
    labels = torch.tensor([[3, 300, 299]], dtype=torch.int32)
    folder = tmp_path / "predictions"
    for _ in range(2):  # a second evaluation takes the place of the first
        writer = PredictionWriter(folder, num_classes=300)
        writer.begin()
        writer(one, {"oracle_obj": labels})
        writer.finish()
    stored = np.asarray(Image.open(folder / "oracle_obj" / "folder" / "image.png"))
    assert stored.tolist() == [[3, 65535, 299]]
    assert torch.equal(read_prediction(folder / "oracle_obj", one, 300), labels)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions"]


def test_other_peoples_8_bit_files(sample, tmp_path):
    one = sample([[0, 1]], [[0, 0]])
    Image.fromarray(np.array([[7, 255]], np.uint8)).save(tmp_path / "image.png")
    assert read_prediction(tmp_path, one, 8, bits=8).tolist() == [[7, 8]]


@pytest.mark.parametrize(("ids", "message"), [([[0, 8]], r"ids \[8\]"), ([[0]], "label's size")])
def test_wrong_files_are_named(sample, tmp_path, ids, message):
    one = sample([[0, 1]], [[0, 0]])
    Image.fromarray(np.array(ids, np.uint16)).save(tmp_path / "image.png")
    with pytest.raises(ValueError, match=rf"image\.png.*{message}"):
        read_prediction(tmp_path, one, 8)


def test_a_missing_prediction_is_an_error(sample, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image\.png"):
        read_prediction(tmp_path, sample([[0]], [[0]]), 8)
