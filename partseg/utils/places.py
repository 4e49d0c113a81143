"""Where the YAML files and scripts lie. Imports nothing, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def config_dir() -> Path:
    """Folder of the YAML files: `configs/` of a checkout, or the copy inside an installed package."""
    for folder in (_PACKAGE.parent / "configs", _PACKAGE / "_configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no configs/ beside {_PACKAGE} and no _configs/ inside it: reinstall partseg")


def checkout_file(name: str) -> Path:
    """A file of the checkout that the installed package lacks; FileNotFoundError there."""
    path = _PACKAGE.parent / name
    if not path.is_file():
        raise FileNotFoundError(f"{name} is a file of partseg's checkout, and this is an installed package: clone it")
    return _as_typed(path)


def slurm_script() -> Path:
    """scripts/slurm.sh of a checkout, or the copy inside an installed package."""
    found = [path for path in (_PACKAGE.parent / "scripts", _PACKAGE / "_scripts") if (path / "slurm.sh").is_file()]
    if not found:
        raise FileNotFoundError(f"no scripts/slurm.sh beside {_PACKAGE} and none inside it: reinstall partseg")
    return _as_typed(found[0] / "slurm.sh")


def _as_typed(path: Path) -> Path:
    """Relative where the working directory holds it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def config_dirs() -> tuple[Path, ...]:
    """`config_dir()`, and `configs/` in the working directory, whose files are choices like the package's."""
    own = Path.cwd() / "configs"
    groups = own.is_dir() and any((own / path.name).is_dir() for path in config_dir().iterdir() if path.is_dir())
    return (config_dir(), own) if groups and not own.samefile(config_dir()) else (config_dir(),)
