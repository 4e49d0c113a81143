"""Train a model: everything that is built, top to bottom. Settings are in configs/train.yaml.

    partseg train experiment=part_clipseg_pascal_part_116                    one GPU, or the CPU without one
    partseg train experiment=part_clipseg_pascal_part_116 launch.num_gpus=8
    partseg train -m experiment=part_clipseg_pascal_part_116 seed=1,2,3      one run after another
    torchrun --nnodes 4 --nproc-per-node 8 ... -m partseg train experiment=...         several machines

The same command continues a run that was stopped. Exit code 85: stopped by SIGTERM or SIGINT; everything is saved.
"""

from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from partseg.data.loader import build_eval_loader, build_train_loader
from partseg.engine.build import (
    build_model,
    check_start,
    compile_passes,
    evaluation_set,
    is_synthetic,
    start_weights,
    sync_batch_norm,
    training_set,
)
from partseg.engine.checkpoint import Checkpoints, init_from, restore
from partseg.engine.ema import Ema
from partseg.engine.hooks import Run
from partseg.engine.launch import device_of, exit_for_requeue, launch
from partseg.engine.prompts import PromptSampling
from partseg.engine.run import banner, farewell, open_run, outcome, plain, run_directory, stage, write_settings
from partseg.engine.scores import write_last
from partseg.engine.trainer import Trainer
from partseg.engine.writers import LOG, open_writers
from partseg.evaluation import runner
from partseg.utils import devices, distributed, env
from partseg.utils.cli import cli
from partseg.utils.config import instantiate


@cli("train", place=run_directory, needs=("experiment", "model", "dataset", "debug"))
def main(cfg: DictConfig) -> str:
    if not launch(train, cfg):
        exit_for_requeue()
    directory = run_directory(cfg)
    return outcome(directory, Checkpoints(directory / "checkpoints", config={}, metrics=cfg.best.metrics).best())


def train(cfg: DictConfig) -> bool:
    """One process of the run; True if it is complete."""
    with open_run(cfg) as (directory, state):
        return train_in(directory, cfg=cfg, state=state)


def train_in(directory: Path, *, cfg: DictConfig, state: dict[str, Any] | None) -> bool:
    """Everything that is built, from the config and the checkpoint to go on from, if any; True if complete."""
    device = device_of(cfg)
    env.seed_everything(cfg.seed)
    devices.set_tf32(cfg.train.tf32)
    devices.set_kernels(deterministic=cfg.train.deterministic)

    with stage("training set"):  # before weights are fetched: data that are missing are said at once
        train_set = training_set(cfg)
    with stage("network"):
        model = build_model(cfg).to(device)
    with stage("validation set"):
        val_set = evaluation_set(cfg, model.input)  # type: ignore[arg-type]
    if state is None:
        with stage("start weights"):
            reports = [init_from(model, source) for source in start_weights(cfg)]
        check_start(model, plain(cfg)["model"], reports, allow_random=cfg.allow_random)
    if cfg.train.sync_batch_norm:
        model = sync_batch_norm(model, device)

    criterion = instantiate(cfg.criterion)
    optimizer = instantiate(cfg.optimizer, model=model)
    schedule = instantiate(cfg.schedule)
    ema = Ema(model, decay=cfg.train.ema_decay) if cfg.train.ema_decay else None
    if cfg.train.compile:
        compile_passes(model)
    share = cfg.train.prompt_share
    sampling = None if share is None else PromptSampling(share=share, seed=cfg.seed)
    vocabulary = train_set.vocabulary
    start = restore(state, model=model, optimizer=optimizer, vocabulary=vocabulary, ema=ema) if state else 0

    shard: dict[str, Any] = {
        "rank": distributed.rank(),
        "world_size": distributed.world_size(),
        "pin_memory": device.type == "cuda",
    }
    settings = {"num_workers": cfg.train.num_workers, "accumulation": cfg.train.accumulation, "seed": cfg.seed}
    loader = build_train_loader(train_set, batch_size=cfg.train.batch_size, start_iter=start, **settings, **shard)
    val_loader = build_eval_loader(val_set, batch_size=cfg.eval.batch_size, num_workers=cfg.eval.num_workers, **shard)
    scoring: dict[str, Any] = {
        "vocabulary": val_set.vocabulary,
        "predictor": instantiate(cfg.predictor),
        "evaluators": instantiate(cfg.evaluator),
    }

    checkpoints = Checkpoints(
        directory / "checkpoints",
        config=plain(cfg),
        keep=cfg.keep,
        metrics=cfg.best.metrics,
        synthetic=is_synthetic(train_set),
    )
    distributed.from_main(lambda: checkpoints.repair(start))
    write_settings(cfg, directory)
    with open_writers(cfg.logger, directory=directory, start=start, iterations=cfg.train.iterations) as writers:
        run = Run(
            directory,
            checkpoints,
            writers,
            partial(runner.run, loader=val_loader, **scoring),
            samples=val_set,
            write_results=partial(
                write_last, config=cfg, dataset=val_set, trained=vocabulary, iteration=cfg.train.iterations
            ),
            **scoring,
        )
        trainer = Trainer(
            model,
            criterion=criterion,
            optimizer=optimizer,
            schedule=schedule,
            loader=loader,
            vocabulary=vocabulary,
            iterations=cfg.train.iterations,
            accumulation=cfg.train.accumulation,
            clip_norm=cfg.train.clip_norm,
            precision=cfg.train.precision,
            ema=ema,
            prompt_sampling=sampling,
            seed=cfg.seed,
            hooks=[instantiate(hook, run=run) for hook in cfg.hooks.values() if hook is not None],
        )
        if state and "scaler" in state:
            trainer.scaler.load_state_dict(state["scaler"])
        LOG.info("start\n%s", banner(trainer, directory, train_set=train_set, val_set=val_set, start=start))
        complete = trainer.train(start)
        end = farewell(directory, iteration=trainer.iteration, complete=complete, best=checkpoints.best())
        LOG.info("%s", end)
        return complete


command = main
