import json
from pathlib import Path

import pytest

from partseg.evaluation import results
from partseg.reproduce.command import Collect, Reproduce, options_from, plan, print_commands
from partseg.reproduce.plan import Job, Options, jobs, result_directory
from partseg.reproduce.table import load_table
from partseg.utils.arguments import parse
from partseg.utils.config import compose
from partseg.utils.files import sha256_of


def options(tmp_path, **kwargs):
    return Options(output=tmp_path, seeds=(1, 2), **kwargs)


def make_checkpoint(directory: Path, iteration: int, *, evaluated: bool = True) -> None:
    folder = directory / "checkpoints"
    folder.mkdir(parents=True)
    (folder / f"iter_{iteration:07d}.pt").write_bytes(b"x")
    for name in ("latest", "best_pred_all", "best_oracle_obj"):
        (folder / f"{name}.pt").symlink_to(f"iter_{iteration:07d}.pt")
    records = [{"iteration": iteration, "train/loss": 1.0}, {"iteration": iteration, "oracle_obj/mIoU": 1.0}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records[: 1 + evaluated]))


def test_each_run_is_trained_once_and_evaluated_per_protocol(root, tmp_path):
    table = load_table(root / "scripts/tables/table1.yaml")
    todo = plan(table, options(tmp_path))
    built = [row for row in table.rows if row.experiment is not None]
    assert [j.kind for j in todo].count("train") == 2 * len(built)  # two seeds
    assert [j.kind for j in todo].count("evaluate") == 4 * len(built)
    assert len({j.directory for j in todo}) == len(todo)
    assert not any(j.finished for j in todo)
    lengths = {f"experiment={r.experiment}": compose("train", [f"experiment={r.experiment}"]) for r in built}
    for job in todo:
        if job.kind == "train":
            assert job.iterations == lengths[next(w for w in job.command if w in lengths)].train.iterations


def test_a_table_of_instances_is_scored_by_its_own_evaluator(root, tmp_path):
    """VLPart's: average precision, on the checkpoint that was best under it."""
    todo = plan(load_table(root / "scripts/tables/vlpart_table4.yaml"), options(tmp_path))
    evaluations = [job for job in todo if job.kind == "evaluate"]
    assert len(evaluations) == 6  # base, with VOC, and all objects, two seeds
    for job in evaluations:
        assert "evaluator=parts_and_pixels" in job.command and job.checkpoint.name == "best_instances.pt"


def test_vlparts_tables_score_equal_runs_in_folders_of_their_own(root, tmp_path):
    tables = [load_table(root / f"scripts/tables/vlpart_table{name}.yaml") for name in (1, 2, 3, 4)]
    todo = {job.command: job for table in tables for job in plan(table, Options(tmp_path, (1,)))}
    assert sum(job.kind == "train" for job in todo.values()) == 6  # base, all objects, with VOC; VOC, COCO and LVIS
    evaluations = [job for job in todo.values() if job.kind == "evaluate"]
    # five runs for table 2, three for 1 and 4 together, all objects on PartImageNet for 3
    assert len(evaluations) == len({job.directory for job in evaluations}) == 9
    assert {job.checkpoint.name for job in evaluations} == {"best_instances.pt"}


def test_only_what_is_missing_is_left(root, tmp_path):
    table = load_table(root / "scripts/tables/table1.yaml")
    make_checkpoint(tmp_path / "clipseg_pascal_part_116" / "seed1", 20000)
    make_checkpoint(tmp_path / "clipseg_pascal_part_116" / "seed2", 19000)  # was killed before the end
    make_checkpoint(tmp_path / "part_clipseg_pascal_part_116" / "seed1", 20000, evaluated=False)  # while it scored
    finished = [j.directory for j in plan(table, options(tmp_path)) if j.finished]
    assert finished == [tmp_path / "clipseg_pascal_part_116" / "seed1"]


def test_a_result_counts_for_the_checkpoint_that_it_was_measured_on(root, tmp_path):
    table = load_table(root / "scripts/tables/table1.yaml")
    run = tmp_path / "clipseg_pascal_part_116" / "seed1"
    make_checkpoint(run, 20000)
    job = next(j for j in plan(table, options(tmp_path)) if j.kind == "evaluate" and j.training.directory == run)
    results.write(job.directory, {"checkpoint": {"sha256": sha256_of(b"x")}})
    assert job.finished
    # an evaluation of another best checkpoint was interrupted, or a copy made a file of the link
    job.checkpoint.unlink()
    job.checkpoint.write_bytes(b"x")
    assert job.finished
    job.checkpoint.write_bytes(b"y")
    assert not job.finished
    job.checkpoint.write_bytes(b"x")
    (run / "metrics.jsonl").unlink()  # trained again: the best may change
    assert not job.finished
    (job.directory / "results.json").write_text("half")
    assert not job.finished


@pytest.mark.parametrize(("name", "smoke"), [("table4", False), ("tableA8", False), ("table5", True)])
def test_commands_compose_and_lead_to_their_folders(root, tmp_path, name, smoke):
    table = load_table(root / f"scripts/tables/{name}.yaml")
    lengths = {row.experiment: 20000 for row in table.rows}
    odd_folder = Options(output=tmp_path / "a folder=1, x", seeds=(1,), smoke=smoke)
    todo = list(jobs(table, odd_folder, iterations_of=lengths))
    for job in todo[:2] + todo[-1:]:
        config = compose("train" if job.kind == "train" else "eval", job.command[4:])
        folder = Path(config.output_root) / config.name if job.kind == "train" else Path(config.output)
        assert folder == job.directory
        assert ("Toy" in config.dataset.root) == ("Toy" in config.eval_dataset.root) == smoke


def test_no_folder_has_a_name_that_file_systems_refuse(root, tmp_path):
    tables = [load_table(path) for path in sorted((root / "scripts/tables").glob("*table*.yaml"))]
    lengths = {row.experiment: 20000 for table in tables for row in table.rows}
    folders = {job.directory for table in tables for job in jobs(table, options(tmp_path), iterations_of=lengths)}
    names = [part for folder in folders for part in folder.relative_to(tmp_path).parts]
    assert 200 <= max(map(len, names)) <= 255
    rows = {(row.experiment, row.overrides): row.run_name for table in tables for row in table.rows if row.experiment}
    different = {(experiment, tuple(sorted(overrides))) for experiment, overrides in rows}
    assert len(set(rows.values())) == len(different), "a long name still tells runs apart"


def test_rows_that_differ_in_their_evaluation_share_a_training(root, tmp_path):
    """Object first is an evaluation: the network is trained once, its results lie beside the plain ones."""
    table = load_table(root / "scripts/tables/successors_pascal_part_116.yaml")
    todo = plan(table, Options(output=tmp_path, seeds=(1,)))
    kinds = [j.kind for j in todo]
    assert (kinds.count("train"), kinds.count("evaluate")) == (4, 16)
    assert len({j.directory for j in todo}) == len(todo)
    first = [j for j in todo if "predictor.object_first=true" in j.command]
    assert len(first) == 8 and all("pascal_part_116__predictor.object_first=true" in str(j.directory) for j in first)
    for job in first[:1]:
        config = compose("eval", job.command[4:])
        assert config.predictor.object_first and Path(config.output) == job.directory
    assert not any("object_first" in word for j in todo if j.kind == "train" for word in j.command)


def test_cross_dataset_rows_are_scored_on_the_other_data_set(root, tmp_path):
    table = load_table(root / "scripts/tables/table4.yaml")
    todo = list(jobs(table, options(tmp_path), iterations_of={row.experiment: 20000 for row in table.rows}))
    evaluations = [j for j in todo if j.kind == "evaluate"]
    assert all("cross_dataset=true" in j.command and "dataset=pascal_part_116" in j.command for j in evaluations)
    assert all("results/cross_pascal_part_116/" in str(j.directory) for j in evaluations)


def test_dry_run_lines_are_slurm_commands(root, tmp_path):
    job = next(jobs(load_table(root / "scripts/tables/table3.yaml"), options(tmp_path), iterations_of={
        "clipseg_partimagenet_40": 3, "part_clipseg_partimagenet_40": 3,
    }))  # fmt: skip
    line = job.slurm(1)
    assert line.startswith("job_1=$(sbatch --parsable scripts/slurm.sh -m partseg train experiment=clipseg_partim")


def test_evaluations_wait_for_their_training_and_stages_for_each_other(tmp_path, capsys):
    training = Job("train", tmp_path / "a", ("python", "train"), 3)
    scoring = [Job("evaluate", tmp_path / n, ("python", "eval"), training=training) for n in "bc"]
    print_commands([training, *scoring])
    assert [line.split(" scripts/")[0] for line in capsys.readouterr().out.splitlines()] == [
        "job_1=$(sbatch --parsable",
        *(f"job_{n}=$(sbatch --parsable --dependency=afterok:$job_1" for n in (2, 3)),
    ]
    print_commands(scoring)  # the training is finished
    assert "--dependency" not in capsys.readouterr().out
    print_commands([training, *scoring], in_order=True)
    assert "afterok:$job_2" in capsys.readouterr().out.splitlines()[2]


def test_seeds_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="whole numbers"):
        options_from(parse(Collect, ["t.yaml", "--seeds", "1,two"]))
    for kind in (Collect, Reproduce):
        assert options_from(parse(kind, ["t.yaml"])).seeds == (1, 2, 3, 4, 5)
        assert options_from(parse(kind, ["t.yaml", "--smoke"])).seeds == (1,)
        assert options_from(parse(kind, ["t.yaml", "seeds=3,1"])).seeds == (3, 1)


def test_the_official_recipe_is_that_of_each_row(root, tmp_path):
    table = load_table(root / "scripts" / "tables" / "table1.yaml")
    todo = plan(table, Options(output=tmp_path, seeds=(1,), overrides=("recipe=official",)))
    trained = [job.command for job in todo if job.kind == "train"]
    systems = []
    for command in trained:
        experiment = next(word for word in command if word.startswith("experiment="))
        systems.append(experiment.split("=")[1].split("_pascal")[0])
        found = compose("train", [word for word in command[4:] if not word.startswith("launch.")])
        expected = compose("train", [experiment, f"recipe=official_{systems[-1]}"])
        for group in ("criterion", "augmentation", "model", "optimizer"):
            assert found[group] == expected[group]
    assert systems == [row.experiment.split("_pascal")[0] for row in table.rows if row.experiment is not None]


@pytest.mark.parametrize("smoke", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["full", "smoke"])
def test_rows_may_be_stages_of_a_recipe_or_what_a_tool_measures(root, tmp_path, smoke, monkeypatch):
    """OPS' tables: every stage has a seed's folder, one start of the tool measures the whole grid."""
    monkeypatch.chdir(root)
    given = Options(tmp_path, seeds=(2,), smoke=smoke)
    table = load_table(root / "scripts/tables/ops_table5.yaml")
    todo = plan(table, given)
    measured = [job for job in todo if job.command[1] == "tools/superpixels.py"]
    assert len(measured) == 11 and len({job.command for job in measured}) == 1
    config = compose("train", measured[0].command[2:])
    assert (config.eval_dataset.get("name") == "toy_pascal_part_116") == smoke
    assert config.eval.instances == ("classes" if smoke else "annotated")
    folders = {job.directory for job in todo}
    for row in table.rows:
        assert result_directory(table, row, seed=2, protocol="segments", options=given) in folders, row.system
    last = next(job for job in todo if job.directory == tmp_path / "stages/seed2/open_parts_partimagenet/both_test")
    config = compose("eval", last.command[4:])
    assert config.eval.split == ("val" if smoke else "test") and str(tmp_path / "data") in config.data_root or not smoke


def test_ops_tables_say_why_a_row_has_no_number(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    trained = {}
    for number in range(1, 6):
        table = load_table(root / f"scripts/tables/ops_table{number}.yaml")
        published = [table.published_value(row, column) for row in table.rows for column in table.columns[:2]]
        assert None not in published and len(set(published)) > 4
        if number < 5:  # the fifth has the recipe of the third
            trained[number] = [j.directory.name for j in plan(table, Options(tmp_path, (1,))) if j.kind == "train"]
    assert [len(trained[number]) for number in range(1, 5)] == [6, 0, 4, 0]
