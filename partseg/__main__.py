"""partseg: open-vocabulary part segmentation.

    partseg predict   parts in your own photos, with your own words
    partseg demo      the same as a page in the browser
    partseg train     train a system from configs
    partseg eval      score a checkpoint under every protocol
    partseg report    a page of an evaluation, in one HTML file
    partseg compare   the same images under several systems, side by side
    partseg inspect   look at a data set and name what is wrong with it
    partseg export    predictions as labels that another training reads
    partseg convert   public weights into one file of ours
    partseg recipe    trainings in stages: train, export, train on that, evaluate

`partseg <command> --help` says more. In a checkout `python tools/<file>.py` does the same.
"""

from __future__ import annotations

import ast
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import partseg
from partseg.utils.places import config_dir, config_dirs

COMMANDS = {
    "predict": "predict",
    "demo": "demo",
    "train": "train_net",
    "eval": "eval_net",
    "report": "visualize_results",
    "compare": "compare_runs",
    "inspect": "inspect_data",
    "export": "export_predictions",
    "convert": "convert_weights",
    "recipe": "run_stages",
}
UNUSED = ("timm", "transformers", "wandb")
"""What open_clip imports where it is there, for towers that are not ours: 1.5 s. Who needs one imports it later."""
HELP = ("-h", "--help", "help")


def main() -> NoReturn:
    """The program `partseg`."""
    first = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if first in HELP:
        print((__doc__ or "").strip())
        sys.exit(0 if len(sys.argv) > 1 else 2)
    if first == "--version":
        print(f"partseg {partseg.__version__}")
        sys.exit(0)
    if first not in COMMANDS:
        sys.exit(f"error: there is no command {first!r}; there are {', '.join(COMMANDS)}")
    sys.argv = [f"partseg {first}", *sys.argv[2:]]
    run(first)


def run(name: str) -> NoReturn:
    """One command on the rest of the command line. Help is shown without importing what the command needs."""
    if len(sys.argv) > 1 and sys.argv[1] in HELP:
        try:
            print(usage(name), flush=True)
        except BrokenPipeError:  # `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(_module(name).command())


def _module(name: str) -> ModuleType:
    """The command's module, imported as if UNUSED were not installed."""
    hidden = [each for each in UNUSED if each not in sys.modules]
    for each in hidden:
        sys.modules[each] = None  # type: ignore[assignment]
    try:
        return import_module(f"partseg.commands.{COMMANDS[name]}")
    finally:
        for each in hidden:
            del sys.modules[each]


def usage(name: str) -> str:
    """The command's docstring, and the groups of those that read a config."""
    source = (Path(__file__).parent / "commands" / f"{COMMANDS[name]}.py").read_text(encoding="utf-8")
    text = (ast.get_docstring(ast.parse(source), clean=False) or "").strip()
    if "@cli(" not in source:
        return text
    lines = [text, "", "Choices, as group=name; experiment=<system>_<data set> joins any two:"]
    for group in sorted(path.name for path in config_dir().iterdir() if path.is_dir() and path.name != "local"):
        files = {path.stem for folder in config_dirs() for path in (folder / group).glob("*.yaml")}
        lines.append(f"  {group}: {', '.join(sorted(files))}")
    lines += ["", "--cfg job prints every key with its value; key=value sets one; -m key=a,b runs one after another."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
