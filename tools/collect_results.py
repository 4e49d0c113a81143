"""Print tables from finished results, in Markdown, and write them as Markdown, LaTeX and CSV. Starts nothing.

python tools/collect_results.py scripts/tables/table1.yaml scripts/tables/table5.yaml seeds=1,2,3
"""

import sys

from partseg.reproduce.command import Collect, collect_only
from partseg.utils.arguments import run

if __name__ == "__main__":
    sys.exit(run(collect_only, Collect, __doc__))
