"""Settings are typed and bounded: a mistake is one line before anything starts, in every tool."""

import re

import pytest

from partseg.utils import config, settings, targets
from partseg.utils.cli import Sweep
from partseg.utils.config import compose, instantiate

BAD = {
    "train.iterations": ["2.5", "0", "-3", "true", "many", "null"],
    "train.batch_size": ["0", "2.0"],
    "train.accumulation": ["0"],
    "train.clip_norm": ["-1", "0", "nan", "inf", "small"],
    "train.precision": ["half", "null"],
    "train.tf32": ["1", "maybe"],
    "train.compile": ["maybe", "0"],
    "train.deterministic": ["maybe", "0"],
    "train.ema_decay": ["0", "1", "1.5"],
    "train.prompt_share": ["-0.1", "1.5"],
    "train.num_workers": ["-1", "null"],
    "train.limit_images": ["0"],
    "eval.split": ["''", "3"],
    "eval.batch_size": ["0", "-2"],
    "eval.num_workers": ["0.5"],
    "eval.limit_images": ["-1"],
    "launch.num_gpus": ["-1", "all"],
    "launch.num_processes": ["0", "null"],
    "keep": ["0", "null"],
    "best.metrics": ["null", "oracle_obj/mIoU", "[mIoU]", "[1]"],
    "best": ["null"],
    "seed": ["-1", "one", "1.5"],
    "name": ["''", "'.'", "../x", "/tmp/x", "2024"],
    "data_root": ["''", "null"],
    "output_root": ["''", "null"],
    "init_from": ["''", "3"],
    "resume": ["''", "null", "true"],
    "plugins": ["null"],
    "allow_random": ["1", "null"],
    "train.sync_batch_norm": ["1", "null"],
    "eval.objects": ["''", "true"],
    "eval.instances": ["all", "true"],
    "eval.phrases": ["null", "1"],
}
BAD_ELSEWHERE = {
    "eval": {
        "ckpt": ["null", "''"],
        "names": ["''"],
        "output": ["''"],
        "cross_dataset": ["maybe"],
        "plots": ["1"],
        "save_predictions": ["no_"],
    },
    "export": {
        "export.protocol": ["strict"],
        "export.min_score": ["1.5", "-0.1"],
        "export.shard_size": ["0"],
    },
    "score": {"bits": ["12"], "all_seen": ["1"], "predictions": ["null"]},
    "benchmark": {
        "json": ["''"],
        "bench.mode": ["fast"],
        "bench.batch_sizes": ["1", "[0]"],
        "bench.classes": ["[a]"],
        "bench.label_size": ["[375]", "[375,0]"],
        "bench.repeats": ["0"],
        "bench.warmup": ["-1"],
        "bench.clock": ["sun"],
        "bench.threads": ["0"],
        "bench.trace": ["''"],
        "bench.compare": ["[one]"],
        "bench.draw_texts": ["yes please"],
        "bench.layers": ["5"],
    },
}
CASES = [("train", key, value) for key, values in BAD.items() for value in values]
CASES += [(n, key, value) for n, keys in BAD_ELSEWHERE.items() for key, values in keys.items() for value in values]


@pytest.mark.parametrize(("name", "key", "value"), CASES)
def test_a_value_that_is_not_allowed_is_one_line(name, key, value):
    with pytest.raises(ValueError) as error:
        compose(name, [f"{key}={value}"])
    assert re.fullmatch(rf"{key}=.*: it must be .+", str(error.value))


@pytest.mark.parametrize("name", ["train", "eval", "score", "export", "benchmark"])
def test_every_plain_key_has_a_rule_that_refuses_something(name):
    """A rule that no case above violates would be a rule that nobody has seen work."""
    values = config._plain(compose(name))
    tried = {*BAD, *(key for keys in BAD_ELSEWHERE.values() for key in keys)}
    built = tuple(f"{key}." for key, _ in targets.targets(values))  # of what is built, the signature is the schema
    leaves = [key for key, value in targets.walk(values) if not isinstance(value, dict) and "[" not in key]
    plain = {key for key in leaves if not key.startswith(built)}
    assert len(plain) >= 25 and plain <= tried
    assert not plain & set(settings.without_rule(values))


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.batch_size=${eval.batch_size}", "seed=${train.iterations}", "name='run_${seed}'"],
        ["train.clip_norm=1", "train.clip_norm=null", "train.limit_images=5", "launch.num_gpus=8", "name=a/b.c-1"],
        [
            "best.metrics=[]",
            "init_from=some/file.pt",
            "resume=output/x",
            "train.prompt_share=0",
            "train.ema_decay=0.999",
        ],
    ],
)
def test_what_is_allowed_passes(overrides):
    compose("train", overrides)


@pytest.mark.parametrize(
    ("override", "nearest"), [("+train.clipnorm=1", "train.clip_norm"), ("+seeds=3", "seed"), ("+a.b=1", "there is no")]
)
def test_a_key_that_nothing_reads_is_refused(override, nearest):
    with pytest.raises(ValueError, match=rf"there is no config key.*{nearest}|{nearest}"):
        compose("train", [override])


def test_a_value_that_leads_nowhere_is_one_line():
    with pytest.raises(ValueError, match="config key 'train.batch_size' has no value: .*'nothing' not found$"):
        compose("train", ["train.batch_size=${nothing}"])


@pytest.mark.parametrize("hook", ["log", "checkpoint", "evaluate", "visualize"])
def test_hooks_that_never_come_are_refused(hook):
    node = compose("train", [f"hooks.{hook}.every=0"]).hooks[hook]
    with pytest.raises(ValueError, match=r"every=0 .* must be 1 or more"):
        instantiate(node, run=None)


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("train_net", ["train.clip_norm=-1"], "train.clip_norm=-1: it must be a number greater than 0 or null"),
        ("eval_net", ["ckpt=x", "eval.batch_size=0"], "eval.batch_size=0: it must be a whole number of 1 or more"),
        ("score_predictions", ["predictions=x", "bits=12"], "bits=12: it must be 8 or 16"),
        ("benchmark", ["bench.mode=fast"], 'bench.mode="fast": it must be all or train or eval or memory or'),
        ("toy_baselines", ["seed=-1"], "seed=-1: it must be a whole number from 0"),
        ("eval_net", [], "missing arguments: ckpt=..."),
        ("train_net", ["-m", "name=x", "seed=1,2"], "several of the 2 jobs of this sweep would share output/x"),
        ("train_net", ["-m", "launch.num_gpus=0,1"], "would share output/train"),
        ("train_net", ["-m", "seed=1,2", "model=part_clipseg_tiny,part_clipsg"], "has no 'part_clipsg'"),
    ],
)  # fmt: skip
def test_every_tool_refuses_in_one_line_before_anything_starts(
    tools, start, tmp_path, monkeypatch, tool, arguments, message
):
    monkeypatch.chdir(tmp_path)
    program = start(tools(tool).main, arguments)
    assert program.wait() == 1
    assert program.output.startswith("error: ") and message in program.output and program.output.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["terminal_0.txt"]


def test_jobs_of_a_sweep_with_places_of_their_own_are_started(train_net, start, tmp_path):
    program = start(
        train_net.main,
        ["-m", "debug=smoke", "name='x_${seed}'", "seed=1,2", f"output_root={tmp_path}", "data_root=nowhere"],
    )
    assert program.wait() == 1 and "several" not in program.output and "Traceback" not in program.output
    lines = program.output.strip().splitlines()[-3:]
    assert lines[0] == "2 jobs, 2 failed:"
    assert re.fullmatch(r"  job 2 of 2, seed=2: error: .*nowhere.*", lines[2])
    assert {path.name for path in tmp_path.iterdir()} >= {"x_1", "x_2"}


def test_a_sweep_repeats_what_became_of_its_jobs(capsys):
    sweep = Sweep([["x=1", "seed=1"], ["x=1", "seed=2"]])
    sweep.ended(0, "best a/mIoU 1.00 at 5", failed=False)
    sweep.ended(1, "error: no\n  data", failed=True)
    assert sweep.failed()
    told = capsys.readouterr()
    lines = ["job 1 of 2, seed=1: best a/mIoU 1.00 at 5", "job 2 of 2, seed=2: error: no data"]
    assert told.err == f"{lines[1]}\n"
    assert told.out == f"{lines[0]}\n2 jobs, 1 failed:\n  {lines[0]}\n  {lines[1]}\n"
