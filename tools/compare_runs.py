"""`partseg compare`; partseg/commands/compare_runs.py says what it does and takes."""

from partseg.__main__ import run

if __name__ == "__main__":
    run("compare")
