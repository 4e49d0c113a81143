"""Where the YAML files lie. Imports nothing, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path


def config_dir() -> Path:
    """Folder of the YAML files: `configs/` of a checkout, or the copy inside an installed package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "configs", package / "_configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configs/ beside {package} and no _configs/ inside it: reinstall partseg")


def config_dirs() -> tuple[Path, ...]:
    """`config_dir()`, and `configs/` in the working directory, whose files are choices like the package's."""
    own = Path.cwd() / "configs"
    groups = own.is_dir() and any((own / path.name).is_dir() for path in config_dir().iterdir() if path.is_dir())
    return (config_dir(), own) if groups and not own.samefile(config_dir()) else (config_dir(),)
