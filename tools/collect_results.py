"""Print tables from finished results, in Markdown, and write them as Markdown, LaTeX and CSV. Starts nothing.

python tools/collect_results.py scripts/tables/table1.yaml scripts/tables/table5.yaml --seeds 1,2,3
"""

from partseg.reproduce.command import collect_only

if __name__ == "__main__":
    collect_only()
