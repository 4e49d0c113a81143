import pytest
import yaml

from partseg.evaluation import results
from partseg.reproduce.collect import collect
from partseg.reproduce.plan import Options, result_directory
from partseg.reproduce.table import Column, Row, Table, load_table


def table_files(root):
    return sorted((root / "scripts" / "tables").glob("table*.yaml"))


def test_every_table_of_the_paper_has_a_file_and_a_script(root):
    names = [f"table{n}" for n in (*range(1, 8), "A4", "A5", "A6", "A7", "A8")]
    assert [p.stem for p in table_files(root)] == sorted(names)
    for name in names:
        script = (root / "scripts" / f"reproduce_{name}.sh").read_text()
        assert f"scripts/tables/{name}.yaml" in script


def test_every_cell_of_a_published_column_has_its_number(root):
    """But the rows of systems that the paper of tables 1 to A8 does not have."""
    others = [path for name in ("ops", "vlpart") for path in (root / "scripts" / "tables").glob(f"{name}_table*.yaml")]
    assert len(others) == 14
    for path in [*table_files(root), *others]:
        table = load_table(path)
        for row in table.rows:
            for column in table.columns:
                if column.published is not None:
                    published = table.published_value(row, column) is not None
                    assert published == (path in others or row.path != "none"), (path.name, row.system, column)


def test_cat_seg_and_part_cat_seg_stand_in_the_tables_of_zero_shot_systems(root):
    for number in (1, 2, 4, 6, 7):
        experiments = [row.experiment or "" for row in load_table(root / f"scripts/tables/table{number}.yaml").rows]
        for name in ("cat_seg_", "part_cat_seg_"):
            assert any(each.startswith(name) for each in experiments), (number, name)


def test_known_cells_are_the_papers(root):
    table = load_table(root / "scripts/tables/table1.yaml")
    row = next(r for r in table.rows if r.system == "PartCLIPSeg")
    values = [table.published_value(row, c) for c in table.columns]
    assert values == [43.91, 23.56, 30.67, 50.02, 31.67, 38.79]
    ablation = load_table(root / "scripts/tables/tableA8.yaml")
    assert [ablation.published_value(r, ablation.columns[2]) for r in ablation.rows] == [
        38.35,
        38.37,
        38.79,
        38.73,
        38.01,
    ]


def test_equal_runs_of_different_tables_share_a_name(root):
    tables = {p.stem: load_table(p) for p in table_files(root)}
    best = {n: t.rows[-1].run_name for n, t in tables.items() if n in {"table1", "table6", "tableA5", "tableA7"}}
    assert set(best.values()) == {"part_clipseg_pascal_part_116"}
    names = [row.run_name for row in tables["tableA7"].rows]
    assert len(set(names)) == len(names)


def test_override_order_does_not_change_the_run():
    rows = [Row("x", "x", "d", "e", overrides) for overrides in (("a.b.c=1", "d.e=2"), ("d.e=2", "a.b.c=1"))]
    assert rows[0].run_name == rows[1].run_name == "e__b.c=1__d.e=2"


def test_successors_have_published_numbers_under_both_rules(root):
    """What is published under one averaging rule stands in the columns of that rule and in no other."""
    for path in sorted((root / "scripts" / "tables").glob("successors_*.yaml")):
        table = load_table(path)
        assert [row.experiment for row in table.rows[::2]] == [row.experiment for row in table.rows[1::2]]
        by_rule = {rule: [c for c in table.columns if ("nonzero" in c.key) == rule] for rule in (False, True)}
        assert all(f".{'b' if rule else 'a'}." in c.published for rule, some in by_rule.items() for c in some)
        found = {row.system: [table.published_value(row, c) for c in table.columns] for row in table.rows}
        assert any(found["PartCLIPSeg"]) and any(found["PartCATSeg"]) and any(found["CAT-Seg + DINOv2, object first"])
        assert not any(found["PartCATSeg, object first"]), "nobody has published it"
    table = load_table(root / "scripts/tables/successors_pascal_part_116.yaml")
    row = next(row for row in table.rows if row.system == "PartCATSeg")
    above = [table.published_value(row, c) for c in table.columns if "nonzero" in c.key]
    assert above == [52.62, 40.51, 45.77, 57.49, 44.9, 50.41]


def test_a_column_may_read_another_averaging_rule(tmp_path):
    key = "averages.iou.nonzero.harmonic"
    row, column = (
        Row("s", "s", "d", "e", evaluation=("predictor.object_first=true",)),
        Column("g", "h", "pred_all", key, None),
    )
    table, options = Table("t", "t", (column,), (row,), {}), Options(tmp_path, (1,), smoke=True)
    folder = result_directory(table, row, seed=1, protocol="pred_all", options=options)
    assert folder.parent.name.endswith("__predictor.object_first=true")
    averages = {"iou": {"nonzero": {"harmonic": 12.5}}}
    entry = {"averaging": "present", "metrics": {"mIoU_harmonic": 1.0}, "averages": averages}
    results.write(folder, {"protocols": {"pred_all": entry}, "synthetic": True})
    assert collect(table, options).cells[0][0].mean == 12.5
    del averages["iou"]["nonzero"]["harmonic"]
    results.write(folder, {"protocols": {"pred_all": entry}, "synthetic": True})
    with pytest.raises(ValueError, match=r"has no 'averages.iou.nonzero.harmonic'"):
        collect(table, options)


def test_a_column_may_read_one_class_of_instances(tmp_path):
    column = Column("dog", "head", "instances", "classes/dog's head/box_AP", None)
    table = Table("t", "t", (column,), (Row("s", "s", "d", "e"),), {}, best="instances")
    options = Options(tmp_path, (1,), smoke=True)
    folder = result_directory(table, table.rows[0], seed=1, protocol="instances", options=options)
    classes = [{"object": "dog", "part": "head", "box_AP": 7.5}]
    results.write(folder, {"protocols": {"instances": {"metrics": {}, "classes": classes}}, "synthetic": True})
    assert collect(table, options).cells[0][0].mean == 7.5
    classes[0]["object"] = "cat"
    results.write(folder, {"protocols": {"instances": {"metrics": {}, "classes": classes}}, "synthetic": True})
    assert collect(table, options).cells[0][0].reason == "not defined on this data"


def test_bad_table_files_name_the_mistake(tmp_path):
    with pytest.raises(FileNotFoundError, match="no table file"):
        load_table(tmp_path / "table9.yaml")
    (tmp_path / "published.yaml").write_text("{}")
    path = tmp_path / "table1.yaml"
    path.write_text(yaml.safe_dump({"title": "t", "dataset": "d", "columns": [], "rows": [], "colour": 1}))
    with pytest.raises(ValueError, match="colour"):
        load_table(path)
    path.write_text(yaml.safe_dump({"title": "t", "dataset": "d", "columns": [], "rows": [{"system": "s"}]}))
    with pytest.raises(ValueError, match="needs one of experiment, stage, tool, missing; it has"):
        load_table(path)


def test_unpublished_cells_are_none():
    table = Table("t", "t", (), (), {"a": [{"b": 1.5}]})
    row = Row("s", "a.0", "d", "e")
    assert table.published_value(row, Column("g", "n", "p", "k", "{row}.b")) == 1.5
    assert table.published_value(row, Column("g", "n", "p", "k", "{row}.c")) is None
    assert table.published_value(row, Column("g", "n", "p", "k", None)) is None
