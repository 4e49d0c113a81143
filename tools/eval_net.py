"""`partseg eval`; partseg/commands/eval_net.py says what it does and takes."""

from partseg.__main__ import run

if __name__ == "__main__":
    run("eval")
