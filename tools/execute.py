"""Run notebooks and store their outputs in place: `python -m tools.execute nbs/07_*.ipynb`.

They run as the tests run them, and are cleaned by nbdev, so that the stored outputs are those that the tests expect and
a second run changes nothing. A notebook that fails is left as it was."""
import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError

from tools.notebooks import REPRODUCIBLE, directives, lessons, read
from tools.running import LessonClient, run


def fold_in_lab(nb):
    "Let JupyterLab fold the code that the site folds"
    for cell in nb.cells:
        if cell.cell_type == "code" and directives(cell.source).get("code-fold") == "true":
            cell.metadata["jupyter"] = {"source_hidden": True}
        elif cell.cell_type == "code":
            cell.metadata.pop("jupyter", None)


def execute(path, slow=False):
    "Run one notebook and store it with its outputs"
    from nbdev.clean import nbdev_clean

    nb = read(path)
    run(LessonClient(nb, path.parent, slow), REPRODUCIBLE)
    fold_in_lab(nb)
    nbformat.write(nb, path)
    nbdev_clean(str(path))


def main():
    parser = argparse.ArgumentParser(description="Run notebooks and store their outputs in place.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="the notebooks (default: all)")
    parser.add_argument("--slow", action="store_true", help="run cells marked `#| slow` too")
    options = parser.parse_args()
    for path in options.notebooks or lessons():
        start = time.monotonic()
        print(f"{path.name} ...", end=" ", flush=True)
        try:
            execute(path, options.slow)
        except CellExecutionError as error:
            sys.exit(f"failed, and was left as it was\n\n{error}")
        print(f"{time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; this notebook was left as it was")
        sys.exit(130)
