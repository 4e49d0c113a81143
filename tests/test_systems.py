"""The System contract: over every file of configs/model/, and a stub of each kind through the real tools, untouched."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf, open_dict
from PIL import Image

import partseg
from partseg.data import catalog
from partseg.data.mapper import EvalMapper
from partseg.engine.benchmark.inputs import random_batch
from partseg.engine.build import build_model
from partseg.evaluation import results
from partseg.evaluation.predictor import Predictor
from partseg.geometry import InputSpec
from partseg.labels import IGNORE_LABEL
from partseg.losses.criterion import loss_of
from partseg.photo_prediction import coco_document, segment_of_mask
from partseg.prediction import DenseScores, PhraseScores, Segments
from partseg.system import System, check_system
from partseg.utils.config import compose, config_dir, instantiate
from partseg.vocabulary.names import Vocabulary
from partseg.vocabulary.phrases import Phrases
from partseg.vocabulary.shipped import shipped
from partseg.weights.load import export_weights, layouts_of
from toy_world.writer import ToyOptions, write_toy

MODELS = sorted(path.stem for path in (config_dir() / "model").glob("*.yaml"))
TINY = [name for name in MODELS if name.endswith("_tiny")]
WORDS = Vocabulary.from_mapping({"dog": ["head", "tail"], "car": ["wheel"]})


# Every YAML -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_a_system(name):
    """Built without memory, so the full-size ones too; each has a tiny one, and an experiment that composes."""
    assert name.endswith("_tiny") or f"{name}_tiny" in MODELS
    config = compose("train", [f"experiment={name.removesuffix('_tiny')}_pascal_part_116", f"model={name}"])
    with torch.device("meta"):
        model = build_model(config)
    assert isinstance(model, System) and isinstance(model.input, InputSpec)
    assert all(layout.name for layout in layouts_of(model))
    assert any(p.requires_grad for p in model.parameters()), "nothing trains"


@pytest.fixture(params=TINY)
def tiny(request):
    """A tiny model with its criterion, and a batch that it can train on."""
    name = request.param
    config = compose("train", [f"experiment={name.removesuffix('_tiny')}_pascal_part_116", f"model={name}"])
    torch.manual_seed(0)
    return build_model(config), instantiate(config.criterion), config


def test_a_step_changes_the_weights(tiny):
    model, criterion, config = tiny
    optimizer = instantiate(config.optimizer, model=model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = random_batch(WORDS, batch_size=2, input=model.input)
    model.train()
    losses = []
    for _ in range(3):
        loss, terms, _ = loss_of(model, criterion, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert np.isfinite(losses).all() and losses[-1] < losses[0] and set(terms) == set(criterion.terms)
    for name, p in model.named_parameters():
        assert p.requires_grad or torch.equal(p, before[name]), f"{name} is frozen and changed"
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_predictions_are_for_the_words_that_are_asked(tiny):
    """Sizes of their own per photo, regions, and another vocabulary, its subset or phrases without a new model."""
    model = tiny[0].eval()
    sizes = [(40, 30), (17, 65)]
    given = [torch.zeros(size, dtype=torch.int32) for size in sizes]
    views = [model.input.geometry(*size) for size in sizes]
    noise = np.random.default_rng(0)
    photos = [Image.fromarray(noise.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]
    if len({view.size for view in views}) > 1:
        views = [views[0]] * 2
        sizes, photos, given = [sizes[0]] * 2, [photos[0]] * 2, [given[0]] * 2
    images = torch.stack(
        [torch.from_numpy(np.asarray(v.image(p)).copy()).permute(2, 0, 1) for v, p in zip(views, photos)]
    )
    for words in (WORDS, Vocabulary.from_mapping({"cat": ["ear", "paw", "nose", "tail"]})):
        prepared = Predictor().prepare(model, words)
        found = prepared(images, sizes, regions=[view.region for view in views], given=given)
        assert [prediction.size for prediction in found] == sizes
        for prediction in found:
            check_prediction(prediction, words)
    kept = np.array([True, False, True])
    prompts = Predictor().prepare(model, WORDS).encoded.subset(kept)
    with torch.inference_mode():
        direct = model.predict(images, model.encode_text(WORDS.subset(kept)), sizes=sizes, given=given)
        subset = model.predict(images, prompts, sizes=sizes, given=given)
    for one, other in zip(direct, subset):
        assert_same(one, other)


def check_prediction(prediction, words):
    """Of the declared kind, finite, within its vocabulary."""
    if isinstance(prediction, DenseScores):
        assert len(prediction.object_part) == len(words) + 1 and prediction.object_part.isfinite().all()
        assert prediction.object is None or len(prediction.object) == words.num_objects + 1
    else:
        assert isinstance(prediction, Segments) and np.isfinite(prediction.scores).all()
        assert (np.diff(prediction.scores) <= 0).all(), "segments come best first"
        assert (prediction.parent < len(prediction)).all() and (
            prediction.label[prediction.level == 0] < len(words)
        ).all()


def assert_same(one, other):
    if isinstance(one, DenseScores):
        torch.testing.assert_close(one.object_part, other.object_part, atol=1e-4, rtol=1e-4)
    else:
        assert one.rles == other.rles and np.allclose(one.scores, other.scores, atol=1e-4)


def test_phrases_are_answered_or_refused(tiny):
    model = tiny[0].eval()
    try:
        prompts = model.encode_text(Phrases.of(["the left ear", "a wheel"]))
    except ValueError as error:
        assert "phrase" in str(error)
        return
    size = model.input.geometry(30, 40).size
    with torch.inference_mode():
        (found,) = model.predict(torch.zeros(1, 3, *size, dtype=torch.uint8), prompts, sizes=[(30, 40)])
    assert isinstance(found, PhraseScores) and found.masks().shape == (2, 30, 40)


def test_weights_come_back_from_every_layout(tiny, tmp_path):
    """What the model writes in a layout it reads again, tensor for tensor, into a model of other weights."""
    model, _, config = tiny
    torch.manual_seed(1)
    other = instantiate(config.model)
    for layout in layouts_of(model):
        try:
            state = export_weights(model, layout.name)
        except ValueError as error:
            assert "read only" in str(error)
            continue
        path = tmp_path / f"{layout.name}.pt"
        torch.save(state, path)
        report = partseg.weights.load.load_weights(other, str(path), require=())
        own, theirs = model.state_dict(), other.state_dict()
        assert report.loaded and all(torch.equal(own[name], theirs[name]) for name in report.loaded)


# A stub of each kind through the tools --------------------------------------------------------------------------------
TERM = {"_target_": "stub_systems.MapLoss"}
DENSE_TERM = {"_target_": "partseg.losses.pixel.ObjectPartBCE", "background_weight": 0.05}
KINDS = {
    "DenseStub": (DENSE_TERM, {}, "default", {}, "oracle_obj/mIoU"),
    "InstanceStub": (TERM, {"instances": "annotated"}, "instances", {"instances": "annotated"}, "instances/AP"),
    "ProposalStub": (TERM, {"about": "object"}, "segments", {"instances": "classes"}, "segments/AP"),
    "PhraseStub": (TERM, {"about": "phrase"}, "referring", {"phrases": True}, "referring/mean_IoU"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The toy set, and the same as COCO-style JSON with instances, parents and phrases."""
    folder = tmp_path_factory.mktemp("world")
    root = folder / "ToyPascalPart116"
    write_toy(root, ToyOptions(num_train=6, num_val=6, size=48))
    for split in ("train", "val"):
        dataset = catalog.get("toy_pascal_part_116", split=split, root=root, mapper=EvalMapper(instances="classes"))
        (folder / f"annotations_{split}.json").write_text(json.dumps(as_coco(dataset)))
    return folder


def as_coco(dataset):
    """Every instance as an annotation; parts also carry a phrase."""
    vocabulary = shipped("pascal_part_116")
    content = {**coco_document([], vocabulary), "images": [], "annotations": []}
    names = {category["name"]: category["id"] for category in content["categories"]}
    for number, record in enumerate(dataset.records):
        sample = dataset[number]
        height, width = sample.size
        content["images"].append(
            {"id": number, "file_name": str(Path(record.file_name)), "height": height, "width": width}
        )
        first = len(content["annotations"])
        own = dataset.vocabulary
        for i in range(len(sample.instances)):
            level, label = int(sample.instances.level[i]), int(sample.instances.label[i])
            name = own.object_parts[label] if level == 0 else own.label_objects[label]
            segment = segment_of_mask(sample.instances.masks[i].numpy(), name=name, label=label)
            parent = int(sample.instances.parent[i])
            content["annotations"].append(
                {
                    "id": first + i,
                    "image_id": number,
                    "category_id": names[name],
                    "segmentation": segment.rle,
                    "bbox": list(segment.box),
                    **({"parent_id": first + parent} if parent >= 0 else {}),
                    **({"phrases": [f"the {name}", name]} if level == 0 else {}),
                }
            )
    return content


def config_of(kind, world, tmp_path, *, top="train", **extra):
    """Settings of a run of a stub, as a user's own YAML would say them."""
    term, augmentation, evaluator, evaluation, _ = KINDS[kind]
    config = compose(
        top,
        [
            "dataset=coco_style",
            f"dataset.root={world}",
            "eval_dataset=coco_style",
            f"eval_dataset.root={world}",
            f"evaluator={evaluator}",
            "plugins=[stub_systems]",
            "launch.num_gpus=0",
            f"output_root={tmp_path}",
            f"name={kind}",
            "train.iterations=3",
            "train.batch_size=2",
            "train.num_workers=0",
            "eval.num_workers=0",
            "eval.batch_size=2",
            "hooks.evaluate.every=3",
            "hooks.checkpoint.every=3",
            "hooks.visualize.every=3",
            "hooks.log.every=1",
            "best.metrics=[]",
        ],
    )
    with open_dict(config):
        config.model = OmegaConf.create({"_target_": f"stub_systems.{kind}"})
        config.criterion.terms = {"own": {"weight": 1.0, "term": term}}
        config.augmentation = {"_target_": "partseg.data.mapper.TrainMapper", "size": 32, **augmentation}
        config.eval = {**config.eval, **evaluation}
        if kind == "ProposalStub":
            config.evaluator.segments.objects = "truth"
        for key, value in extra.items():
            config[key] = value
    return config


@pytest.mark.parametrize("kind", KINDS)
def test_a_stub_trains_evaluates_and_predicts(kind, world, tmp_path, load):
    train_net, eval_net, predict = load("train_net"), load("eval_net"), load("predict")
    assert train_net.train(config_of(kind, world, tmp_path))
    run = tmp_path / kind
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    score = KINDS[kind][-1]
    assert np.isfinite([line["train/loss"] for line in lines if "train/loss" in line]).all()
    assert any(score in line for line in lines), "the evaluation hook left no score"
    assert list((run / "pictures").glob("*.png")) or kind != "DenseStub"

    eval_net.evaluate(config_of(kind, world, tmp_path, top="eval", ckpt=str(run), output=str(tmp_path / "eval")))
    content = results.read(tmp_path / "eval")
    name, key = score.split("/")
    assert content["protocols"][name]["metrics"][key] is not None
    assert eval_net.table(content).row_count >= 1
    if kind in ("InstanceStub", "ProposalStub"):
        assert content["protocols"][name]["num_predictions"] > 0 < content["protocols"][name]["num_instances"]

    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(photos / "a.png")
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(np.repeat(np.uint8([[255, 0]]), 25, axis=1).repeat(40, axis=0)).save(masks / "a.png")
    options = predict.Options(run, (str(photos),), output=tmp_path / "out", plugins=("stub_systems",), device="cpu")
    if kind == "ProposalStub":
        options = replace(options, protocol="oracle_obj", masks=masks)
    if kind == "PhraseStub":
        options = replace(options, phrases=("the dog's tail", "a wheel"))
    assert predict.main(options) == 0
    written = json.loads((tmp_path / "out" / "segments.json").read_text())
    assert len(written["images"]) == 1 and (tmp_path / "out" / "a.png").is_file()
    if kind == "InstanceStub":
        parts = [a for a in written["annotations"] if "parent_id" in a]
        ids = {a["id"]: a for a in written["annotations"]}
        names = {c["id"]: c["name"] for c in written["categories"]}
        assert parts and all(
            names[a["category_id"]].startswith(names[ids[a["parent_id"]]["category_id"]]) for a in parts
        )
    if kind == "ProposalStub":
        assert {a["category_id"] for a in written["annotations"]} == {0}


def test_the_contract_is_checked_with_names(world, tmp_path, load):
    config = config_of("DenseStub", world, tmp_path)
    config.model._target_ = "stub_systems.NotASystem"
    with pytest.raises(
        TypeError, match=r"model.*stub_systems.NotASystem.*lacks input, weight_layouts, encode_text, predict"
    ):
        load("train_net").train(config)
    with pytest.raises(TypeError, match="being a torch.nn.Module"):
        check_system(object(), source="my.yaml: model")


@pytest.mark.parametrize(
    ("kind", "evaluator", "message"),
    [
        ("ProposalStub", "default", "segments have no names, which pixel protocols score"),
        ("DenseStub", "segments", "scores instances, the system gave DenseScores"),
        ("PhraseStub", "segments", "scores instances, the system gave DenseScores"),
        ("ProposalStub", "instances", "have no names"),
        ("DenseStub", "referring", "no use for phrases"),
    ],
)
def test_an_evaluator_that_does_not_fit_is_refused(kind, evaluator, message, world, tmp_path, load):
    config = config_of(kind, world, tmp_path)
    with open_dict(config):
        config.evaluator = compose("train", [f"evaluator={evaluator}"]).evaluator
        config.eval = {**config.eval, "instances": "classes", "phrases": True}
        if evaluator == "instances":
            config.evaluator.instances.objects = "truth"
    with pytest.raises((ValueError, TypeError), match=message):
        load("train_net").train(config)


def test_dense_labels_of_instances_are_the_best_segment_per_pixel():
    """The pixel protocols read instances too: the best part whose class the pixel's object may have."""
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :, :2], masks[1, :2], masks[2, 3:] = True, True, True
    found = Segments.from_masks(masks, scores=[0.9, 0.8, 0.7], level=[0, 0, 0], label=[0, 2, 1])
    reader = partseg.evaluation.labels.reader_of(found, WORDS)
    expected = np.full((4, 4), len(WORDS))
    expected[3:], expected[:2], expected[:, :2] = 1, 2, 0
    assert np.array_equal(reader.object_parts.numpy(), expected)
    dogs = torch.zeros(4, 4, dtype=torch.int32)
    choice = partseg.evaluation.labels.Choice(dogs, partseg.evaluation.labels.own_parts(WORDS))
    expected[:2, 2:] = len(WORDS)  # the wheel's segment: a dog has none
    assert np.array_equal(reader.choose(choice).numpy(), expected)
    assert IGNORE_LABEL not in expected
