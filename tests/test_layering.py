"""Imports point one way only, and the core stays importable without its optional packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "partseg"

# Lower may not import higher; packages on one level may not import each other.
LEVELS = [
    {"structures"},
    {"vocabulary"},
    {"utils"},
    {"text", "data"},
    {"models", "losses", "evaluation"},
    {"engine"},
    {"api", "integrations", "reproduce"},
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
OPTIONAL = {"detectron2", "transformers", "wandb", "tensorboard", "gradio", "matplotlib"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path, *, module_level_only: bool = False) -> set[str]:
    """Dotted names that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if module_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    unit = unit_of(path)
    if unit == "__init__":
        return
    assert unit in LEVEL_OF, f"partseg/{unit} has no layer yet: add it to LEVELS in {Path(__file__).name}"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "partseg" or len(parts) == 1:
            continue
        target = parts[1]
        if target == unit or target not in LEVEL_OF:
            continue
        assert LEVEL_OF[target] < LEVEL_OF[unit], (
            f"{path.relative_to(ROOT)} imports partseg.{target}, which is not below it"
        )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_optional_packages_are_imported_lazily(path):
    if path == PACKAGE / "integrations" / "detectron2.py":
        return
    roots = {name.split(".")[0] for name in imported(path, module_level_only=True)}
    assert not roots & OPTIONAL


def test_every_module_imports_where_the_optional_packages_are_absent():
    names = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in MODULES
        if p.parent.name != "integrations" and p.name != "__main__.py"
    ]
    code = (
        "import importlib, sys\n"
        # None in sys.modules makes `import name` raise ImportError, as on a machine without the package
        f"for name in {sorted(OPTIONAL)!r}: sys.modules[name] = None\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_sub_package_inits_are_docstrings():
    for init in PACKAGE.rglob("__init__.py"):
        if init.parent == PACKAGE:
            continue
        body = ast.parse(init.read_text(encoding="utf-8")).body
        assert len(body) == 1, f"{init.relative_to(ROOT)} must hold its docstring only"
        assert isinstance(body[0], ast.Expr)


def test_no_module_is_longer_than_350_lines():
    long = {
        str(p.relative_to(ROOT)): n for p in MODULES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 350
    }
    assert not long, "split these by idea, or shorten them"
