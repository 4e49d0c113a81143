"""Seconds, units and memory of a training step and of an evaluated image. Settings are in configs/benchmark.yaml.

python tools/benchmark.py experiment=part_clipseg_pascal_part_116 json=before.json
python tools/benchmark.py bench.mode=train bench.batch_sizes=[1,2] model.decoder_checkpoint=true
python tools/benchmark.py bench.mode=memory bench.batch_sizes=[8] train.precision=bf16
python tools/benchmark.py bench.mode=eval bench.classes=[50,500] predictor.prompts=present evaluator=oracle_obj
python tools/benchmark.py bench.mode=data dataset=pascal_part_116 bench.batch_sizes=[8]
python tools/benchmark.py bench.compare=[before.json,after.json]

One unit is a forward pass of open_clip's ViT-B/16 image tower (352 x 352, batch 1, fp32) in the same process.
"""

from pathlib import Path

from omegaconf import DictConfig

from partseg.engine.benchmark.measure import measure
from partseg.engine.benchmark.report import compare, lines
from partseg.utils.cli import cli
from partseg.utils.files import json_bytes, write_atomic


@cli("benchmark")
def main(cfg: DictConfig) -> None:
    if cfg.bench.compare is not None:
        before, after = cfg.bench.compare
        print("\n".join(compare(before, after)))
        return
    result = measure(cfg)
    print("\n".join(lines(result)))
    if cfg.json is not None:
        write_atomic(Path(cfg.json), json_bytes(result, indent=1))


if __name__ == "__main__":
    main()
