"""The process and its machine: seeds, and the report that goes into env.txt of every run."""

from __future__ import annotations

import os
import platform
import random
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

PACKAGES = ("torch", "torchvision", "open_clip_torch", "hydra-core", "numpy", "pillow", "partseg-openvocab")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch. For weight initialisation only: data and augmentation never read global state."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  libraries that still draw from the global generator
    torch.manual_seed(seed)


def seconds_since_start(*pids: int) -> float | None:
    """Since the first of these processes of this machine began; None where there is no /proc, as on macOS."""
    try:
        stats = [Path(f"/proc/{pid}/stat").read_text(encoding="utf-8") for pid in pids]
    except OSError:
        return None
    ticks = min(int(stat.rpartition(")")[2].split()[19]) for stat in stats)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def git_commit(folder: Path | None = None) -> str:
    """Commit of the source tree, with "-dirty" when files differ from it; "unknown" outside a git checkout."""
    folder = folder or Path(__file__).resolve().parents[2]
    if shutil.which("git") is None or not (folder / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def report() -> str:
    """Command, commit, versions and hardware as lines of text. Environment variables are left out on purpose."""
    lines = [
        f"command: {' '.join(sys.argv)}",
        f"commit: {git_commit()}",
        f"python: {platform.python_version()} on {platform.platform()}",
        *(f"{name}: {_version(name)}" for name in PACKAGES),
        f"cpu: {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
        f"cuda: {torch.version.cuda or 'not built in'}, cudnn: {torch.backends.cudnn.version()}",
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines.append(f"gpu {index}: {properties.name}, {properties.total_memory / 2**30:.1f} GiB")
    return "\n".join(lines) + "\n"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
