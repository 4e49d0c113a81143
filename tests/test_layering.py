"""Imports point one way only, and the core stays importable without its optional packages."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "partseg"

# Lower may not import higher; packages on one level may not import each other.
LEVELS = [
    {"labels", "utils"},
    {"geometry", "vocabulary"},
    {"structures"},
    {"prediction", "text", "weights"},
    {"system", "losses", "backbones"},
    {"photo_prediction", "data"},
    {"requests", "evaluation", "systems"},
    {"engine"},
    {"api", "integrations", "reproduce"},
    {"commands"},
    {"__main__"},
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
EXTENDS = {"part_clipseg": {"clipseg"}, "part_cat_seg": {"cat_seg"}}
"""A system is built on another where its paper is; otherwise two systems share blocks, not each other's code."""

OPTIONAL = {"detectron2", "transformers", "skimage", "wandb", "tensorboard", "gradio", "matplotlib"}
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


SYSTEMS = sorted(p.name for p in (PACKAGE / "systems").iterdir() if (p / "__init__.py").is_file())


def words_of(path: Path) -> set[str]:
    """Names and texts of a file that do something: all but comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    left_out = [part for node in ast.walk(tree) if is_foreign(node) for part in ast.walk(node)]
    foreign = set(map(id, left_out))
    theirs = {part.asname or part.name for part in left_out if isinstance(part, ast.alias)}
    words: set[str] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for each in body:
                if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant):
                    each.value.value = ""  # a docstring, or the text below a constant
    for node in ast.walk(tree):
        values = (getattr(node, field, None) for field in ("id", "attr", "name", "module", "arg", "value"))
        words |= {value for value in values if isinstance(value, str) and id(node) not in foreign}
    return words - theirs


def is_foreign(node: ast.AST) -> bool:
    """An import from another package, or one of torchvision's operations: their names are not ours."""
    if isinstance(node, ast.ImportFrom):
        return not (node.module or "").startswith("partseg")
    if isinstance(node, ast.Import):
        return not any(alias.name.startswith("partseg") for alias in node.names)
    return isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("torch.ops", "torchvision.ops", "ops."))


def is_named(system: str, text: str) -> bool:
    """Whether words of a name or text, one or several together, are the system's; `stops` does not name `ops`."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", text)]
    target = system.replace("_", "")
    return any("".join(words[i:j]) == target for i in range(len(words)) for j in range(i + 1, i + 6))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_system_is_named_in_its_own_folder_only(path):
    """Otherwise the next system needs an edit there."""
    parts = path.relative_to(PACKAGE).parts
    own = parts[1] if parts[0] == "systems" and len(parts) > 2 else None
    allowed = {own, *EXTENDS.get(own, ())}
    for system in SYSTEMS:
        if system in allowed or any(system in str(other) for other in allowed):
            continue
        named = {word for word in words_of(path) if is_named(system, word)}
        assert not named, f"{path.relative_to(ROOT)} knows of {system}: {sorted(named)[:3]}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_optional_packages_are_imported_lazily(path):
    if path.parent == PACKAGE / "integrations" and path.stem.startswith("detectron2"):
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
