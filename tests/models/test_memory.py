"""A thousand object-parts at 352 pixels fit in 4 GB; run this file as a script for the whole curve."""

import subprocess
import sys
import time

import pytest

SIZES = (50, 116, 234, 500, 1000)


def measure(num_classes):
    """(seconds per image with text at hand, peak resident GiB of this process) at paper size."""
    import torch

    from partseg.models.backbone import ClipBackbone
    from partseg.models.cost import made_up_vocabulary
    from partseg.models.part_clipseg import PartClipSeg

    model, vocabulary = PartClipSeg(ClipBackbone()), made_up_vocabulary(num_classes)
    images = torch.zeros(1, 3, 352, 352, dtype=torch.uint8)
    with torch.inference_mode():
        text = model.encode_text(vocabulary)
        start = time.perf_counter()
        model(images, vocabulary, text=text)
        seconds = time.perf_counter() - start
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return seconds, peak / 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_a_thousand_classes_fit_in_four_gigabytes():
    result = subprocess.run([sys.executable, __file__, "1000"], capture_output=True, text=True, check=True)
    assert float(result.stdout.split()[-1]) < 4e9 / 2**30


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print("%s classes: %.2f s, peak RSS in GiB %.2f" % (sys.argv[1], *measure(int(sys.argv[1]))))
    else:
        for size in SIZES:  # one process each: the peak of a process never falls
            subprocess.run([sys.executable, __file__, str(size)], check=True)
