"""`partseg convert`; partseg/commands/convert_weights.py says what it does and takes."""

from partseg.__main__ import run

if __name__ == "__main__":
    run("convert")
