"""tools/compare_recipe.py: its choices are those of recipe=official, and what it prints."""

from pathlib import Path

import pytest

from partseg.engine.run import plain
from partseg.utils.config import compose
from toy_world.writer import ToyOptions, write_toy

OWN_ROWS = ("ours", "recipe=official", "train_text_embeddings", "renormalise")  # not among the authors' choices


@pytest.fixture
def tool(load):
    return load("compare_recipe")


def test_all_choices_together_are_the_official_recipe_of_an_experiment(tool):
    experiment = "experiment=part_clipseg_pascal_part_116"
    one_by_one = [o for name, overrides in tool.CHOICES.items() if name not in OWN_ROWS for o in overrides]
    official, chosen = (plain(compose("train", [experiment, *o])) for o in (["recipe=official"], one_by_one))
    official.pop("name"), chosen.pop("name")
    assert official == chosen


@pytest.mark.slow
def test_rows_start_from_the_same_weights_and_photos(tool, toy_run, tmp_path, capsys):
    write_toy(tmp_path / "ToyPascalPart116", ToyOptions(num_train=4, num_val=2, size=80))
    rows = "ours,normalise,surrogate,recipe=official"
    tool.main(tool.Options(ckpt=toy_run, data_root=Path(tmp_path), batch_size=2, steps=1, val_images=2, rows=rows))
    cells = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].removeprefix("| ") for row in cells] == rows.split(",")
    assert cells[0][1:5] == cells[1][1:5]  # one process: its own mean is the global mean
    assert cells[2][1] == cells[0][1] and cells[2][4] != "0.0°"  # same value, other gradient
    assert cells[3][1] != cells[0][1]
    with pytest.raises(ValueError, match="are not known"):
        tool.main(tool.Options(ckpt=toy_run, rows="nothing"))
