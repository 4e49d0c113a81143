"""A thousand object-parts at 352 pixels fit in 4 GB; run this file as a script for the whole curve."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

SIZES = (50, 116, 234, 500, 1000)


def measure(num_classes):
    """(seconds and CPU seconds for one image with text at hand, peak resident GiB of this process) at paper size."""
    import torch

    from partseg.backbones.clip_vit import ClipBackbone
    from partseg.engine.benchmark.cost import made_up_vocabulary
    from partseg.systems.part_clipseg.network import PartClipSeg

    model, vocabulary = PartClipSeg(ClipBackbone()), made_up_vocabulary(num_classes)
    images = torch.zeros(1, 3, 352, 352, dtype=torch.uint8)
    with torch.inference_mode():
        prompts = model.encode_text(vocabulary)
        start, cpu = time.perf_counter(), time.process_time()
        model.predict(images, prompts, sizes=[(352, 352)])
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return seconds, cpu, peak / 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_a_thousand_classes_fit_in_four_gigabytes():
    result = subprocess.run([sys.executable, __file__, "1000"], capture_output=True, text=True, check=True)
    assert float(result.stdout.split()[-1]) < 4e9 / 2**30


if __name__ == "__main__":
    if len(sys.argv) == 2:
        seconds, cpu, gibibytes = measure(int(sys.argv[1]))
        print(f"{sys.argv[1]} classes: {seconds:.2f} s ({cpu:.2f} CPU seconds), peak RSS in GiB {gibibytes:.2f}")
    else:
        for size in SIZES:  # one process each: the peak of a process never falls
            subprocess.run([sys.executable, __file__, str(size)], check=True)
