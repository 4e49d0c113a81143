"""The notebook's cells, one after another, on the tiny checkpoint."""

import ast
import json


def test_every_cell_runs(root, toy_run, tmp_path, monkeypatch):
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "toy_part_clipseg").symlink_to(toy_run)
    (tmp_path / "data").symlink_to(toy_run.parent / "data")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((root / "notebooks" / "first_hour.ipynb").read_text())["cells"]
    space: dict[str, object] = {}
    shown = []
    for source in ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"):
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), space)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), space))
    shown = [value for value in shown if value is not None]  # print gives None
    assert shown[0]._repr_png_().startswith(b"\x89PNG")
    assert shown[-1] == ["README.md", "model.safetensors", "partseg.yaml"]
