"""The bridge, against the real package where it is installed and against its documented interface otherwise."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from partseg.data import catalog
from partseg.data.loader import build_eval_loader
from partseg.data.mapper import EvalMapper, TrainMapper
from partseg.engine.checkpoint import load_model
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.protocols import OracleObj, PredAll
from partseg.evaluation.runner import run
from partseg.labels import IGNORE_LABEL
from partseg.losses.criterion import Criterion
from partseg.losses.pixel import ObjectBCE, ObjectPartBCE

NAME = "partseg_toy_pascal_part_116"
HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None


def load_fake():
    spec = importlib.util.spec_from_file_location("fake_detectron2", Path(__file__).with_name("fake_detectron2.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["documented interface", "real package"])
def bridge(request):
    if request.param == "real package":
        if not HAS_DETECTRON2:
            pytest.skip("detectron2 is not installed")
        yield importlib.import_module("partseg.integrations.detectron2")
        return
    sys.modules.pop("partseg.integrations.detectron2", None)
    with load_fake().installed():
        yield importlib.import_module("partseg.integrations.detectron2")
    sys.modules.pop("partseg.integrations.detectron2", None)


@pytest.fixture
def data_root(toy_run):
    return toy_run.parent / "data"


@pytest.fixture
def evaluation(bridge, toy_run, data_root):
    """Wrapped model, data loader of mapped lists, and the partseg data set behind them."""
    bridge.register_datasets(data_root)
    model, train_vocabulary, _ = load_model(toy_run)
    mapper = bridge.PartSegMapper.of(f"{NAME}_val", size=model.input.size[0], is_train=False)
    wrapped = bridge.Detectron2Model(model, vocabulary=mapper.vocabulary, train_vocabulary=train_vocabulary)
    items = [mapper(item) for item in bridge.DatasetCatalog.get(f"{NAME}_val")]
    return wrapped, [items[:2], items[2:]], bridge.build_dataset(f"{NAME}_val", mapper=EvalMapper(model.input))


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
    assert len(set(names)) == 2 * len(catalog.names())
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


def test_checkpoints_load_through_detection_checkpointer(bridge, evaluation, toy_run):
    wrapped, _, _ = evaluation
    before = {name: value.clone() for name, value in wrapped.state_dict().items()}
    with torch.no_grad():
        for parameter in wrapped.parameters():
            parameter.zero_()
    checkpointer = importlib.import_module("detectron2.checkpoint").DetectionCheckpointer(wrapped)
    checkpointer.load(str((toy_run / "checkpoints" / "latest.pt").resolve()))
    for name, value in wrapped.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    wrapped.load_state_dict(before)  # the wrapper's own names load as well


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
        terms={"object_part": {"weight": 1.0, "term": ObjectPartBCE()}, "object": {"weight": 1.0, "term": ObjectBCE()}}
    )
    wrapped = bridge.Detectron2Model(
        model, vocabulary=dataset.label_vocabulary, train_vocabulary=train_vocabulary, criterion=criterion
    )
    batch = [mapper(item) for item in bridge.DatasetCatalog.get(f"{NAME}_train")]
    wrapped.train()
    before = wrapped(batch)["loss"].item()
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    trainer = importlib.import_module("detectron2.engine").SimpleTrainer(wrapped, [batch], optimizer)
    trainer.run_step()
    assert wrapped(batch)["loss"].item() < before


def test_wrong_loaders_and_models_are_named(bridge, evaluation):
    wrapped, batches, dataset = evaluation
    with pytest.raises(KeyError, match="PartSegMapper"):
        wrapped([{"image": batches[0][0]["image"]}])
    with pytest.raises(KeyError, match="Detectron2Model"):
        bridge.Detectron2Evaluator(dataset.vocabulary).process(batches[0], [{}, {}])
    with pytest.raises(ValueError, match="criterion"):
        wrapped.train()(batches[0])


def test_meta_architecture_is_built_from_a_config(bridge, data_root, toy_run):
    from types import SimpleNamespace as Node

    bridge.register_datasets(data_root)
    assert bridge.register_meta_architecture() == bridge.register_meta_architecture() == "PartSeg"
    cfg = Node(MODEL=Node(WEIGHTS=str(toy_run), DEVICE="cpu"), DATASETS=Node(TEST=[f"{NAME}_val"]))
    model = bridge.META_ARCH_REGISTRY.get("PartSeg")(cfg)
    assert isinstance(model, bridge.Detectron2Model)
    assert len(model.vocabulary) == 116
