"""Training, checkpoints and programs of detectron2 with the bridge, against the real package where it is installed."""

import importlib
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from partseg.data.loader import build_eval_loader
from partseg.engine.checkpoint import Checkpoints, init_from, load, load_model, restore
from partseg.engine.ema import Ema
from partseg.evaluation import results
from partseg.evaluation.pixels import PixelEvaluator
from partseg.evaluation.predictor import Predictor
from partseg.evaluation.protocols import OracleObj
from partseg.evaluation.runner import run
from partseg.geometry import to_tensor
from partseg.integrations.detectron2_results import gated_scores
from partseg.utils.config import compose

# what the real package and fvcore warn about is theirs
pytestmark = pytest.mark.filterwarnings("default")
NAME = "partseg_toy_pascal_part_116"
HAS_DETECTRON2 = importlib.util.find_spec("detectron2") is not None


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
    torch.testing.assert_close(found, gated_scores(expected.cropped(), names))


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


@pytest.mark.skipif(HAS_DETECTRON2, reason="the stand-in's config is smaller than the real one")
def test_our_tools_read_its_checkpoints(train_net, load, data_root, tmp_path, monkeypatch):
    """The file says what it is of; a folder, which of its files is the last."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_root))
    toy = [
        "dataset=toy_pascal_part_116",
        "model=part_clipseg_tiny",
        f"data_root={data_root}",
        "model.image_size=64",
        "init_from=null",
    ]
    args = train_net.default_argument_parser().parse_args([])
    args.opts = ["DATASETS.TRAIN", [f"{NAME}_train"], "DATASETS.TEST", [f"{NAME}_val"], "INPUT.SIZE", 64]
    args.opts += ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "PARTSEG.EXPERIMENT", "part_clipseg_pascal_part_116"]
    trainer = train_net.main(SimpleNamespace(**{**vars(args), "opts": [*args.opts, "PARTSEG.OVERRIDES", toy]}))
    saved = importlib.import_module("detectron2.checkpoint").DetectionCheckpointer(trainer.model, str(tmp_path))
    saved.save("model_final", iteration=1)
    network, vocabulary, _ = load_model(tmp_path / "model_final.pth")
    assert vocabulary.key == trainer.model.train_vocabulary.key
    for name, value in trainer.model.model.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    tool = load("eval_net")
    tool.evaluate(compose("eval", [*toy, "launch.num_gpus=0", f"ckpt={tmp_path}", f"output={tmp_path / 'out'}"]))
    content, theirs = results.read(tmp_path / "out"), train_net.Trainer.test(trainer.cfg, trainer.model)
    assert content["checkpoint"]["iteration"] == 2
    for protocol, scores in theirs.items():
        found = content["protocols"][protocol]["metrics"]
        assert {key: found[key] for key in scores} == pytest.approx(scores)
    saved.load(str(tmp_path / "model_final.pth"))
    torch.save({"model": {"model.x": torch.zeros(1)}}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match="is not a checkpoint of partseg"):
        load_model(tmp_path / "foreign.pth")


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
