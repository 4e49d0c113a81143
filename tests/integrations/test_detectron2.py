"""The bridge, against the real package where it is installed and against its documented interface otherwise."""

import importlib
import importlib.util
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from partseg.data import catalog
from partseg.data.loader import build_eval_loader
from partseg.data.mapper import TrainMapper
from partseg.engine.checkpoint import load_model
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.protocols import OracleObj, PredAll
from partseg.evaluation.runner import run
from partseg.labels import IGNORE_LABEL
from partseg.losses.criterion import Criterion, loss_of
from partseg.losses.pixel import ObjectBCE, ObjectPartBCE
from partseg.structures import collate

# what the real package and fvcore warn about is theirs
pytestmark = pytest.mark.filterwarnings("default")
NAME = "partseg_toy_pascal_part_116"
HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None


def event_storage():
    """What a step of the real package writes into."""
    if not HAS_DETECTRON2:
        return nullcontext()
    return importlib.import_module("detectron2.utils.events").EventStorage()


@pytest.mark.skipif(HAS_DETECTRON2, reason="detectron2 is installed")
def test_without_detectron2_the_import_says_how_to_install_it(root):
    code = "import sys; sys.modules['detectron2'] = None; import partseg.integrations.detectron2"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode
    assert "--no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'" in last


def test_registering_is_stable_and_harmless_twice(bridge, data_root):
    names = bridge.register_datasets(data_root)
    assert names == bridge.register_datasets(data_root)
    assert all(name.startswith("partseg_") for name in names)
    assert len(set(names)) == 2 * len(catalog.single_names())
    metadata = bridge.MetadataCatalog.get("partseg_pascal_part_116_train")
    assert len(metadata.stuff_classes) == len(metadata.stuff_colors) == 116
    assert (len(metadata.seen_classes), len(metadata.unseen_classes)) == (74, 42)
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "partseg")
    assert bridge.MetadataCatalog.get("partseg_ade20k_part_234_val").ignore_label == IGNORE_LABEL


def test_registering_leaves_other_entries_alone(bridge, data_root):
    bridge.DatasetCatalog.register("my_own", list)
    try:
        bridge.register_datasets(data_root, names=["toy_pascal_part_116"])
        assert bridge.DatasetCatalog["my_own"] is list
    finally:
        bridge.DatasetCatalog.remove("my_own")


def test_dictionaries_have_the_keys_of_detectron2(bridge, data_root):
    bridge.register_datasets(data_root)
    items = bridge.DatasetCatalog.get(f"{NAME}_val")
    assert len(items) == 5
    assert {"file_name", "height", "width", "image_id", "sem_seg_file_name"} <= set(items[0])
    assert Path(items[0]["sem_seg_file_name"]).is_file()


def test_mapper_gives_image_and_labels_of_the_train_vocabulary(bridge, data_root):
    bridge.register_datasets(data_root)
    mapper = bridge.PartSegMapper.of(f"{NAME}_train", size=64, is_train=True)
    mapped = mapper(bridge.DatasetCatalog.get(f"{NAME}_train")[0])
    assert mapped["image"].shape == (3, 64, 64)
    assert mapped["image"].dtype == torch.uint8
    labels = mapped["sem_seg"]
    assert labels.shape == (64, 64)
    assert ((labels < 74) | (labels == IGNORE_LABEL)).all()


def test_inference_on_dataset_counts_the_integers_of_our_own_runner(bridge, evaluation):
    wrapped, batches, dataset = evaluation
    evaluators = {p.name: PixelEvaluator(p) for p in (OracleObj(), PredAll())}
    own = {p.name: PixelEvaluator(p) for p in (OracleObj(), PredAll())}
    inference = importlib.import_module("detectron2.evaluation").inference_on_dataset
    results = inference(wrapped, batches, bridge.Detectron2Evaluator(dataset.vocabulary, evaluators=evaluators))
    expected = run(
        wrapped.model,
        build_eval_loader(dataset, batch_size=2),
        vocabulary=dataset.vocabulary,
        predictor=Predictor(),
        evaluators=own,
    )
    assert set(results) == {"oracle_obj", "pred_all"}
    for name, evaluator in evaluators.items():
        counts = evaluator.evaluate()
        assert counts.confusion.sum() > 0
        np.testing.assert_array_equal(counts.confusion, expected.results[name].confusion)


def test_sem_seg_has_the_label_map_of_pred_all(evaluation):
    wrapped, batches, dataset = evaluation
    maps = {}
    evaluators = {"pred_all": PixelEvaluator(PredAll())}
    loader = build_eval_loader(dataset, batch_size=1)
    keep = lambda sample, labels: maps.update({sample.name: labels["pred_all"]})  # noqa: E731
    run(
        wrapped.model,
        loader,
        vocabulary=dataset.vocabulary,
        predictor=Predictor(),
        evaluators=evaluators,
        on_labels=keep,
    )
    wrapped.eval()
    for batch in batches:
        for item, output in zip(batch, wrapped(batch), strict=True):
            assert output["sem_seg"].shape[1:] == (item["height"], item["width"])
            same = output["sem_seg"].argmax(0) == maps[item["partseg_sample"].name]
            # the sigmoid rounds scores that differ by less than its precision to a tie
            assert same.float().mean() > 0.999


def test_its_trainer_takes_the_step_of_our_loss(bridge, toy_run, data_root):
    bridge.register_datasets(data_root)
    model, train_vocabulary, _ = load_model(toy_run)
    dataset = bridge.build_dataset(f"{NAME}_train")
    mapper = bridge.PartSegMapper(
        TrainMapper(model.input.size, flip_probability=0),
        label_vocabulary=dataset.label_vocabulary,
        vocabulary=train_vocabulary,
    )
    criterion = Criterion(
        terms={"object_part": {"weight": 1.0, "term": ObjectPartBCE()}, "object": {"weight": 0.5, "term": ObjectBCE()}}
    )
    wrapped = bridge.Detectron2Model(
        model, vocabulary=dataset.label_vocabulary, train_vocabulary=train_vocabulary, criterion=criterion
    )
    batch = [mapper(item) for item in bridge.DatasetCatalog.get(f"{NAME}_train")]
    wrapped.train()
    losses = wrapped(batch)
    assert set(losses) == {"loss_object_part", "loss_object"}
    samples = [item["partseg_sample"] for item in batch]
    ours, terms, _ = loss_of(model, criterion, collate(samples, vocabulary=train_vocabulary))
    for name, value in terms.items():
        assert losses[f"loss_{name}"].item() == pytest.approx(criterion.weights[name] * value.item(), rel=1e-6)
    gradients = []
    for loss in (sum(losses.values()), ours):
        model.zero_grad()
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(map(torch.equal, *gradients))
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    trainer = importlib.import_module("detectron2.engine").SimpleTrainer(wrapped, [batch], optimizer)
    with event_storage():
        trainer.run_step()
    assert sum(wrapped(batch).values()).item() < ours.item()


def test_wrong_loaders_and_models_are_named(bridge, evaluation):
    wrapped, batches, dataset = evaluation
    with pytest.raises(KeyError, match="PartSegMapper"):
        wrapped.train()([{"image": batches[0][0]["image"]}])
    with pytest.raises(KeyError, match="Detectron2Model"):
        bridge.Detectron2Evaluator(dataset.vocabulary).process(batches[0], [{}, {}])
    with pytest.raises(ValueError, match="criterion"):
        wrapped.train()(batches[0])


def test_meta_architecture_is_built_from_a_config(bridge, training, data_root, toy_run):
    Node = SimpleNamespace
    bridge.register_datasets(data_root)
    assert training.register_meta_architecture() == training.register_meta_architecture() == "PartSeg"
    model = Node(WEIGHTS=str(toy_run), DEVICE="cpu")
    cfg = Node(MODEL=model, DATASETS=Node(TEST=[f"{NAME}_val"]), INPUT=Node(FORMAT="RGB"))
    model = training.META_ARCH_REGISTRY.get("PartSeg")(cfg)
    assert isinstance(model, bridge.Detectron2Model)
    assert len(model.vocabulary) == 116 and {"object_part", "separation"} <= set(model.criterion.terms)


def test_words_are_encoded_again_after_loading_other_weights(evaluation):
    wrapped, batches, _ = evaluation
    wrapped.eval()
    before = wrapped(batches[0])[0]["partseg_prediction"].object_part
    state = {name: value * 2 if "positional" in name else value for name, value in wrapped.state_dict().items()}
    wrapped.load_state_dict(state)
    after = wrapped(batches[0])[0]["partseg_prediction"].object_part
    wrapped.train().eval()
    assert torch.equal(after, wrapped(batches[0])[0]["partseg_prediction"].object_part)
    assert not torch.equal(after, before)


def test_sem_seg_is_made_when_it_is_read(evaluation):
    wrapped, batches, _ = evaluation
    output = wrapped.eval()(batches[0])[0]
    assert list(output) == ["partseg_prediction"] and "sem_seg" in output and "boxes" not in output
    assert output["sem_seg"] is output["sem_seg"] and "sem_seg" in list(output)
    with pytest.raises(KeyError, match="boxes"):
        output["boxes"]


def test_its_names_in_ov_parts_are_aliases(bridge, data_root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_root))
    bridge.register_datasets()
    bridge.register_datasets()
    assert bridge.MetadataCatalog.get(f"{NAME}_val").partseg_root == str(data_root)
    assert len(bridge.DatasetCatalog.get(f"{NAME}_val")) == 5
    few = bridge.MetadataCatalog.get("voc_obj_part_sem_seg_few_shot")
    assert (few.partseg_dataset, few.partseg_split) == ("pascal_part_116_16shot", "train")
    for split in ("train", "val"):
        for ending in ("", "_obj_condition"):
            metadata = bridge.MetadataCatalog.get(f"voc_obj_part_sem_seg_{split}{ending}")
            assert (metadata.partseg_dataset, metadata.partseg_split) == ("pascal_part_116", split)
            names = metadata.base_classes, metadata.obj_classes, metadata.obj_base_classes
            assert tuple(map(len, names)) == (74, 16, 11)
    own = bridge.MetadataCatalog.get("partseg_ade20k_part_234_val")
    assert bridge.MetadataCatalog.get("ade_obj_part_sem_seg_val").stuff_classes == own.stuff_classes


def test_an_alias_that_is_taken_stays_with_its_owner(bridge, data_root):
    name = "voc_obj_part_sem_seg_train"
    if name in bridge.DatasetCatalog:
        bridge.DatasetCatalog.remove(name)
        bridge.MetadataCatalog.remove(name)
    bridge.DatasetCatalog.register(name, list)
    try:
        bridge.register_datasets(data_root)
        assert bridge.DatasetCatalog[name] is list
    finally:
        bridge.DatasetCatalog.remove(name)
