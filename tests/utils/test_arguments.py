"""Command lines of the tools: three spellings, words without a key, and what is refused."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from partseg.utils.arguments import parse, run


@dataclass(frozen=True)
class Options:
    run: Path
    photos: tuple[str, ...] = ()
    side: int = 400
    quiet: bool = False
    device: str | None = "cpu"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run=a", "photos=x", "photos=y", "side=9", "quiet=true", "device=null"],
        ["--run", "a", "--photos", "x", "--photos=y", "--side", "9", "--quiet", "--device", "none"],
        ["a", "photos=x", "--photos", "y", "side=9", "--quiet", "device="],
    ],
)
def test_three_spellings(arguments):
    assert parse(Options, arguments) == Options(Path("a"), ("x", "y"), 9, True, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"missing arguments: run=\.\.\."),
        (["a", "sides=3"], r"there is no argument 'sides'; did you mean 'side'\?"),
        (["a", "side=wide"], "side=wide: "),
        (["run=a", "b"], r"cannot place 'b': run= is given \(a value with spaces needs quotes\)"),
        (["a", "b"], "cannot place 'b'"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse(Options, arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], ["a", "--help"]])
def test_help_wherever_it_is_asked(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tool.py", *arguments])
    assert run(lambda options: pytest.fail("ran"), Options, "how to use it") == 0
    assert capsys.readouterr().out == "how to use it\n"
