"""The bridge, against the real package where it is installed and against its documented interface otherwise."""

import importlib
import importlib.util
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from partseg.data import catalog
from partseg.data.loader import build_eval_loader
from partseg.data.mapper import EvalMapper, TrainMapper
from partseg.engine.checkpoint import Checkpoints, init_from, load, load_model, restore
from partseg.engine.ema import Ema
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.protocols import OracleObj, PredAll
from partseg.evaluation.runner import run
from partseg.geometry import to_tensor
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


def forget_ours():
    """The modules that were imported with another detectron2."""
    for name in ("detectron2", "detectron2_training"):
        sys.modules.pop(f"partseg.integrations.{name}", None)
        vars(importlib.import_module("partseg.integrations")).pop(name, None)


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
    forget_ours()
    with load_fake().installed():
        yield importlib.import_module("partseg.integrations.detectron2")
    forget_ours()


@pytest.fixture
def training(bridge):
    return importlib.import_module("partseg.integrations.detectron2_training")


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


@pytest.fixture
def averaged_run(toy_run, tmp_path):
    """A checkpoint whose averaged weights are far from the trained ones."""
    model, vocabulary, config = load_model(toy_run)
    model.train()
    ema = Ema(model, decay=0.5)
    ema.update(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    checkpoints = Checkpoints(tmp_path / "averaged" / "checkpoints", config=config)
    checkpoints.save(model, optimizer=optimizer, iteration=5, vocabulary=vocabulary, ema=ema)
    return tmp_path / "averaged", model, ema


def test_averaged_weights_are_what_its_checkpointer_loads(bridge, evaluation, averaged_run):
    wrapped, batches, dataset = evaluation
    folder, trained, ema = averaged_run
    checkpointer = importlib.import_module("detectron2.checkpoint").DetectionCheckpointer(wrapped)
    checkpointer.load(str(next((folder / "checkpoints").glob("iter_*.pt"))))
    ours, _, _ = load_model(folder)
    averages = ema.module.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.equal(wrapped.model.state_dict()[name], value) and torch.equal(averages[name], value)
    assert any(not torch.equal(p, trained.state_dict()[n]) for n, p in ours.named_parameters())
    evaluators = {"oracle_obj": PixelEvaluator(OracleObj())}
    inference = importlib.import_module("detectron2.evaluation").inference_on_dataset
    inference(wrapped, batches, bridge.Detectron2Evaluator(dataset.vocabulary, evaluators=evaluators))
    own = {"oracle_obj": PixelEvaluator(OracleObj())}
    loader = build_eval_loader(dataset, batch_size=2)
    run(ours, loader, vocabulary=dataset.vocabulary, predictor=Predictor(), evaluators=own)
    np.testing.assert_array_equal(evaluators["oracle_obj"].evaluate().confusion, own["oracle_obj"].evaluate().confusion)


def test_training_goes_on_from_the_trained_weights(averaged_run):
    folder, trained, ema = averaged_run
    state = load(folder)
    model, vocabulary, _ = load_model(folder)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    again = Ema(model, decay=0.5)
    assert restore(state, model=model, optimizer=optimizer, vocabulary=vocabulary, ema=again) == 5
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in model.state_dict().items())
    averages = again.module.state_dict()
    assert all(torch.equal(value, averages[name]) for name, value in ema.module.state_dict().items())


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


@pytest.mark.skipif(HAS_DETECTRON2, reason="the stand-in's config is smaller than the real one")
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_default_predictor_takes_a_plain_picture(bridge, training, toy_run, data_root, order):
    bridge.register_datasets(data_root)
    cfg = importlib.import_module("detectron2.config").get_cfg()
    training.add_config(cfg)
    cfg.INPUT.FORMAT, cfg.DATASETS.TEST = order, [f"{NAME}_val"]
    cfg.MODEL.WEIGHTS = training.weights_file(str(toy_run))
    picture = np.random.default_rng(0).integers(0, 256, (90, 121, 3), dtype=np.uint8)  # BGR, as OpenCV reads it
    found = importlib.import_module("detectron2.engine").DefaultPredictor(cfg)(picture)["sem_seg"]
    small = Image.fromarray(np.ascontiguousarray(picture[::2, ::2, ::-1]))
    model, _, _ = load_model(toy_run)
    image = to_tensor(model.input.geometry(small.height, small.width).image(small))
    names = bridge.build_dataset(f"{NAME}_val").vocabulary
    expected = Predictor().prepare(model, names)(image[None], [(90, 121)])[0]
    torch.testing.assert_close(found, bridge.gated_scores(expected.cropped(), names))


@pytest.fixture
def train_net(bridge, root):
    spec = importlib.util.spec_from_file_location("detectron2_train_net", root / "docs" / "detectron2_train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(HAS_DETECTRON2, reason="the stand-in's config is smaller than the real one")
def test_the_program_in_docs_trains_and_evaluates(train_net, toy_run, data_root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_root))
    model, _, _ = load_model(toy_run)
    options = ["DATASETS.TRAIN", [f"{NAME}_train"], "DATASETS.TEST", [f"{NAME}_val"], "INPUT.SIZE", model.input.size[0]]
    args = train_net.default_argument_parser().parse_args(["--eval-only"])
    args.opts = [*options, "MODEL.WEIGHTS", str(toy_run)]
    assert set(train_net.main(args)) == {"oracle_obj", "pred_all"}
    args = train_net.default_argument_parser().parse_args(["--num-gpus", "0"])
    overrides = ["model=part_clipseg_tiny", "model.image_size=64", "init_from=null"]
    experiment = ["PARTSEG.EXPERIMENT", "part_clipseg_pascal_part_116", "PARTSEG.OVERRIDES", overrides]
    args.opts = [*options, "INPUT.SIZE", 64, *experiment, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 3]
    trainer = train_net.main(args)
    terms = ("object_part", "object", "part", "separation", "enhancement")
    assert len(trainer.losses) == 3 and set(trainer.losses[0]) == {f"loss_{term}" for term in terms}
    assert trainer.losses[-1]["loss_object_part"] < trainer.losses[0]["loss_object_part"]


def test_the_optimizer_clips_the_whole_gradient(training):
    clip = SimpleNamespace(ENABLED=True, CLIP_VALUE=0.01)
    solver = SimpleNamespace(BASE_LR=1e-4, WEIGHT_DECAY=0.0, CLIP_GRADIENTS=clip)
    model = torch.nn.Linear(3, 3)
    optimizer = training.build_optimizer(SimpleNamespace(SOLVER=solver), model)
    model(torch.ones(1, 3)).square().sum().mul(100).backward()
    optimizer.step()
    assert torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_evaluator_is_built_for_our_data_sets_only(bridge, training, data_root):
    bridge.register_datasets(data_root)
    assert len(training.build_evaluator("ade_obj_part_sem_seg_val").vocabulary) == 234
    bridge.MetadataCatalog.get("theirs").evaluator_type = "coco"
    with pytest.raises(ValueError, match="'theirs' has evaluator_type 'coco'"):
        training.build_evaluator("theirs")


def test_start_weights_may_be_a_checkpoint_of_detectron2(evaluation, toy_run, tmp_path):
    wrapped, _, _ = evaluation
    with torch.no_grad():
        wrapped.model.background.fill_(0.25)
    torch.save({"model": wrapped.state_dict(), "iteration": 9}, tmp_path / "model_final.pth")
    model, _, _ = load_model(toy_run)
    init_from(model, str(tmp_path / "model_final.pth"))
    for name, value in wrapped.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.skipif(HAS_DETECTRON2, reason="reads the stand-in's parts; the real package reads the file itself")
def test_the_lazy_config_needs_no_model_zoo(bridge, root, data_root, monkeypatch):
    """`model_zoo` cannot be imported where setuptools has no pkg_resources any more; the rest is looked up by name."""
    lazy = lambda function: lambda **arguments: {"_target_": function, **arguments}  # noqa: E731
    monkeypatch.setattr(importlib.import_module("detectron2.config"), "LazyCall", lazy, raising=False)
    for name, part in {
        "detectron2.solver.build": "get_default_optimizer_params",
        "fvcore.common.param_scheduler": "PolynomialDecayParamScheduler",
    }.items():
        module = ModuleType(name)
        setattr(module, part, dict)
        for parent in (name.rpartition(".")[0], name.partition(".")[0]):
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_root))
    spec = importlib.util.spec_from_file_location("lazyconfig", root / "docs" / "detectron2_lazyconfig.py")
    config = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(config)
    assert {"output_dir", "init_checkpoint", "max_iter", "amp", "ddp", "eval_period", "device"} <= set(config.train)
    assert config.dataloader["train"]["num_workers"] == config.dataloader["test"]["num_workers"] == 4
    assert config.dataloader["train"]["dataset"]["name"] in bridge.DatasetCatalog
