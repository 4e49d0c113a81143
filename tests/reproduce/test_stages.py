"""Trainings in stages: what a recipe file may hold, what is run, what is left alone, and the whole way once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from partseg.evaluation.export import COMPLETE
from partseg.reproduce.plan import Options
from partseg.reproduce.stages import jobs, load_recipe
from partseg.utils.config import compose
from toy_world.writer import ToyOptions, write_toy

FILES = sorted((Path(__file__).parents[2] / "scripts" / "stages").glob("*.yaml"))
TEACHER = "teacher: {kind: train, experiment: part_clipseg_pascal_part_116}"
LABELS = "labels: {kind: export, of: teacher, overrides: [dataset=folder, dataset.root=photos]}"
STUDENT = (
    "student: {kind: train, experiment: clipseg_pascal_part_116, from: teacher, checkpoint: best_pred_all, "
    'overrides: [dataset=coco_style, "dataset.annotations={labels}/shard-*.json"]}'
)
SCORE = "score: {kind: evaluate, of: student, checkpoint: best_pred_all}"


@pytest.fixture
def recipe(tmp_path):
    """Function: stages, one per line of YAML -> the recipe read from a file."""

    def written(*stages):
        path = tmp_path / "study.yaml"
        path.write_text("stages:\n" + "".join(f"  {stage}\n" for stage in stages))
        return load_recipe(path)

    return written


def test_stages_become_commands_in_folders_of_their_own(recipe, tmp_path):
    todo = jobs(recipe(TEACHER, LABELS, STUDENT, SCORE), Options(output=tmp_path / "out", seeds=(7,)))
    folder = tmp_path / "out" / "study"
    assert [(job.kind, job.directory) for job in todo] == [
        ("train", folder / "teacher"),
        ("export", folder / "labels"),
        ("train", folder / "student"),
        ("evaluate", folder / "score"),
    ]
    commands = ["train", "export", "train", "eval"]
    assert [job.command[1:4] for job in todo] == [("-m", "partseg", name) for name in commands]
    teacher, labels, student, score = (job.command for job in todo)
    assert {"experiment=part_clipseg_pascal_part_116", "name=teacher", "seed=7"} <= set(teacher)
    assert {f"ckpt={folder}/teacher/checkpoints/latest.pt", "dataset.root=photos"} <= set(labels)
    assert f"init_from={folder}/teacher/checkpoints/best_pred_all.pt" in student
    assert any(f"{folder}/labels/shard-*.json" in word for word in student)
    assert {"experiment=clipseg_pascal_part_116", f"ckpt={folder}/student/checkpoints/best_pred_all.pt"} <= set(score)
    after = "--dependency=afterok:$job_1 scripts/slurm.sh -m partseg export experiment="
    assert todo[1].slurm(2, after=1).startswith(f"job_2=$(sbatch --parsable {after}")
    assert not any(job.finished for job in todo)


def test_labels_of_an_earlier_teacher_are_made_again(recipe, tmp_path):
    """A training that was repeated has another checkpoint of the same name."""
    teacher, labels = jobs(recipe(TEACHER, LABELS), Options(output=tmp_path, seeds=(1,)))
    checkpoints = teacher.directory / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "iter_0020000.pt").write_bytes(b"x")
    (checkpoints / "latest.pt").symlink_to("iter_0020000.pt")
    (teacher.directory / "metrics.jsonl").write_text('{"iteration": 20000, "oracle_obj/mIoU": 1.0}\n')
    sha256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    labels.directory.mkdir(parents=True)
    (labels.directory / COMPLETE).write_text(json.dumps({"checkpoint": sha256}))
    assert teacher.finished and labels.finished
    (checkpoints / "iter_0020000.pt").write_bytes(b"y")
    assert teacher.finished and not labels.finished


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["a: {kind: teach}"], r"stages\.a\.kind is 'teach'; it must be one of train, export, evaluate"),
        (["a: train"], r"stages\.a\.kind is 'train'"),
        (["a: {kind: train}"], r"stages\.a of kind train takes .*experiment.*; it lacks \['experiment'\] and has \[\]"),
        (
            [TEACHER, "b: {kind: export, of: teacher, epochs: 3}"],
            r"stages\.b of kind export takes .*; it lacks \[\] and has \['epochs'\]",
        ),
        ([TEACHER, "b: {kind: evaluate, of: techer}"], r"stages\.b uses stage 'techer', .*did you mean 'teacher'"),
        ([SCORE, TEACHER], r"stages\.score uses stage 'student', which no earlier stage is called"),
        (
            [TEACHER, LABELS.replace("dataset.root=photos", "'dataset.root={photos}'")],
            r"stages\.labels uses stage 'photos', which no earlier stage is called",
        ),
        (
            [TEACHER, LABELS, "c: {kind: evaluate, of: labels}"],
            r"stages\.c: 'labels' is of kind export, which has no checkpoint",
        ),
    ],
)
def test_wrong_stages_are_named_with_their_file(recipe, stages, message):
    with pytest.raises(ValueError, match=rf"study\.yaml: {message}"):
        recipe(*stages)


@pytest.mark.parametrize(("text", "message"), [("", "`stages` must map"), ("stages: {}\n", "`stages` must map")])
def test_files_without_stages_are_refused(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)
    with pytest.raises(FileNotFoundError, match="no recipe"):
        load_recipe(tmp_path / "absent.yaml")


def test_a_typo_in_a_later_training_stops_before_anything_runs(recipe, tmp_path):
    stages = recipe(TEACHER, STUDENT.replace("dataset=coco_style", "dataset=coco_stile").replace("{labels}", "x"))
    with pytest.raises(ValueError, match=r"dataset.* has no 'coco_stile'; did you mean 'coco_style'"):
        jobs(stages, Options(output=tmp_path, seeds=(1,)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_self_training_from_nothing_to_its_score(root, tmp_path):
    data = tmp_path / "data" / "ToyPascalPart116"
    write_toy(data, ToyOptions(num_train=6, num_val=3, size=80))
    common = f"model=part_clipseg_tiny, debug=smoke, init_from=null, train.iterations=2, eval_dataset.root={data}"
    (tmp_path / "study.yaml").write_text(f"""
stages:
  teacher:
    kind: train
    experiment: part_clipseg_toy_pascal_part_116
    overrides: [{common}, dataset.root={data}]
  labels:
    kind: export
    of: teacher
    overrides: [dataset=folder, dataset.root={data}/images/train, export.shard_size=4, eval.num_workers=0]
  student:
    kind: train
    experiment: part_clipseg_toy_pascal_part_116
    from: teacher
    overrides:
      - dataset=coco_style
      - dataset.root=.
      - dataset.name=toy_pascal_part_116
      - dataset.vocabulary=pascal_part_116
      - "dataset.annotations={{labels}}/shard-*.json"
      - eval_dataset=toy_pascal_part_116
      - eval_dataset.root={data}
      - model=part_clipseg_tiny
      - debug=smoke
      - train.iterations=2
  score: {{kind: evaluate, of: student, overrides: [{common}, dataset.root={data}]}}
""")
    command = [sys.executable, "tools/run_stages.py", f"{tmp_path}/study.yaml", f"output={tmp_path}/out"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    folder = tmp_path / "out" / "study"
    assert len(list((folder / "labels").glob("shard-*.json"))) == 2
    result = json.loads((folder / "score" / "results.json").read_text())
    assert result["synthetic"] and result["dataset"]["num_images"] == 3
    again = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "4/4" not in again.stdout


@pytest.mark.parametrize("smoke", [False, True], ids=["full", "smoke"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_stage_composes(path, smoke, tmp_path):
    planned = jobs(load_recipe(path), Options(tmp_path, (1,), smoke=smoke))
    tops = {"train": "train", "export": "export", "evaluate": "eval"}
    for job in planned:
        if job.kind == "tool":
            continue
        config = compose(tops[job.kind], list(job.command[4:]))
        if smoke:
            assert config.train.iterations == 2, job.directory
        if job.kind == "train":
            assert config.train.batch_size % config.train.accumulation == 0


def test_open_parts_has_both_ablations(root, tmp_path):
    """Pseudo labels alone, the two losses alone, and both; half of the pictures of the last two have no labels."""
    planned = jobs(load_recipe(root / "scripts" / "stages" / "open_parts.yaml"), Options(tmp_path, (1,)))
    trained = {job.directory.name: compose("train", list(job.command[4:])) for job in planned if job.kind == "train"}
    assert list(trained) == ["base", "self_training", "self_supervision", "both"]
    for name, config in trained.items():
        if name == "base":
            continue
        weights = {key: source.weight for key, source in config.dataset.sources.items()}
        assert config.train.accumulation == sum(weights.values()), "every step sees all sources"
        assert ("pseudo" in weights) == (name != "self_supervision")
        assert weights.get("unlabelled", 0) == (0 if name == "self_training" else sum(weights.values()) / 2)
        active = {key for key, term in config.criterion.terms.items() if term.weight > 0}
        assert ({"centroid", "affinity"} <= active) == (name != "self_training")
        assert config.dataset.name == "pascal_part_116" and "PascalPart116" in config.eval_dataset.root


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("processes_with_extras")
def test_open_parts_runs_to_its_end(root, tmp_path):
    command = [sys.executable, "tools/run_stages.py", "scripts/stages/open_parts.yaml", "--smoke", "--output"]
    done = subprocess.run([*command, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = {name: tmp_path / "open_parts" / f"score_{name}" / "results.json" for name in ("base", "both")}
    adapted = {name: json.loads(path.read_text())["adaptation"] for name, path in found.items()}
    assert adapted == {"base": None, "both": "transductive"}
