"""The page of an evaluation, opened from the disk as a reader does."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from partseg.utils.config import compose

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]


OVERLAPPING = """() => [...document.querySelectorAll('.stage')].filter(stage => {
  const boxes = [...stage.querySelectorAll('.written')].filter(n => n.style.visibility !== 'hidden')
    .map(n => n.getBoundingClientRect());
  return boxes.some((a, i) => boxes.slice(i + 1).some(b =>
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom));
}).length"""
"""How many pictures have names that cover each other."""


def load_tool(name: str):
    command = ROOT / "partseg" / "commands" / f"{name}.py"
    path = command if command.is_file() else ROOT / "tools" / command.name
    spec = importlib.util.spec_from_file_location(f"tool_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def report(toy_run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report")
    overrides = [f"data_root={toy_run.parent / 'data'}", f"ckpt={toy_run}", f"output={out}", "save_predictions=true"]
    toy = ["dataset=toy_pascal_part_116", "model=part_clipseg_tiny", "launch.num_gpus=0", "eval.num_workers=0"]
    load_tool("eval_net").evaluate(compose("eval", [*toy, *overrides]))
    tool = load_tool("visualize_results")
    assert tool.main(tool.Options(run=out, images=2)) == 0
    return out / "report.html"


def test_opens_without_a_server(browser_page, report, screenshots):
    browser_page.goto(report.as_uri())
    browser_page.wait_for_function(
        "() => [...document.querySelectorAll('.partseg-viewer')].every(v => v.dataset.painted) "
        "&& document.querySelectorAll('.partseg-viewer').length > 0"
    )
    browser_page.screenshot(path=screenshots / "report_top.png")
    card = browser_page.query_selector(".card")
    card.scroll_into_view_if_needed()
    stage = card.query_selector(".stage")
    stage.hover()
    assert stage.query_selector(".tip").is_visible()
    browser_page.screenshot(path=screenshots / "report_cards.png")
    assert browser_page.query_selector_all(".bar")
    assert browser_page.query_selector_all(".matrix td[title]")
    assert browser_page.query_selector_all(".written")


@pytest.fixture(scope="module")
def comparison(report, tmp_path_factory) -> Path:
    """The page of four runs, three of them copies with long names."""
    folder = tmp_path_factory.mktemp("compare")
    runs = [report.parent, *(folder / f"part_clipseg_pascal_part_116__seed-{i}" for i in range(3))]
    for run in runs[1:]:
        shutil.copytree(report.parent, run)
    tool = load_tool("compare_runs")
    assert tool.main(tool.Options(",".join(map(str, runs)), images=2, output=folder / "compare.html")) == 0
    return folder / "compare.html"


@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("page", ["report", "comparison"])
def test_nothing_is_wider_than_the_screen(browser_page, request, screenshots, page, width):
    path = request.getfixturevalue(page)
    browser_page.set_viewport_size({"width": width, "height": 900})
    browser_page.goto(path.as_uri())
    browser_page.wait_for_selector(".partseg-viewer[data-painted]")
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= width
    assert browser_page.eval_on_selector_all(".panel", "all => all.every(p => p.scrollWidth <= p.clientWidth)")
    assert not browser_page.evaluate(OVERLAPPING)
    browser_page.screenshot(path=screenshots / f"{page}_{width}.png", full_page=True)
