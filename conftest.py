"""Make pytest, and nbval with it, test notebooks as nbdev stores them.

`pytest tests` runs the tests; `pytest --nbval --nbval-current-env nbs` runs the notebooks and compares their outputs."""
import os
import time
from pathlib import Path

import pytest
from nbval.kernel import RunningKernel

from tools.notebooks import REPRODUCIBLE, is_skipped

os.environ.update(REPRODUCIBLE)   # kernels inherit it
begun = set()                     # notebooks


def execute_as_jupyter_does(kernel, source, allow_stdin=None):
    "Send a cell to its kernel and keep it in the history: IPython looks there for the `;` that silences a cell"
    return kernel.kc.execute(source, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)


def pytest_configure(config):
    "Let nbval run cells as Jupyter does, and find its sanitizer from whatever folder pytest is started in"
    RunningKernel.execute_cell_input = execute_as_jupyter_does
    if not config.option.nbval_sanitize_with:
        config.option.nbval_sanitize_with = str(Path(__file__).parent / "nbval_sanitize.cfg")


def pytest_collection_modifyitems(items):
    "Mend what nbdev and nbval do not know of one another"
    for item in items:
        if type(item).__name__ != "IPyNbCell":
            continue
        # nbval does not know nbdev's directives.
        if is_skipped(item.cell):
            item.options["skip"] = True
        # nbdev removes execution counts, and nbval takes a cell without one for a cell that never ran: it would fail
        # where there are outputs, and compare nothing where there are none.
        if item.cell.execution_count is None:
            item.cell.execution_count = 0


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    "Begin no notebook after $CHECK_UNTIL (seconds since 1970): where time is limited, a part that is checked says more than a run that is cut off"
    if type(item).__name__ != "IPyNbCell" or item.path in begun:
        return
    if time.time() > float(os.environ.get("CHECK_UNTIL", "inf")):
        pytest.skip(f"the time ran out before {item.path.name}: it was not checked")
    begun.add(item.path)
