"""What every tool knows about the notebooks: where they are, what their cells mean, and what they claim."""
import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"

# The parts of the course, and the numbers of their lessons.
PARTS = {
    "Foundations": range(0, 3),
    "Pretraining objectives": range(3, 8),
    "Transfer": range(8, 12),
    "How much to change": range(12, 15),
    "Practice": range(15, 19),
}
APART = "Measured on public data"   # what has no number stands beside the course: it is no lesson

# Kernels that a tool starts print no progress bars, do not say that they have no widgets to draw them with, and a closing
# `nbdev_export()` cell does nothing in them.
KERNEL = {"IN_TEST": "1", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}

# Stored outputs, and the runs that are compared with them, are made under the same conditions: no network and two threads.
REPRODUCIBLE = KERNEL | {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "2",
    "MKL_NUM_THREADS": "2",
    "OPENBLAS_NUM_THREADS": "2",
}

# --- Files -----------------------------------------------------------------------------------------------------------


def number(path):
    "The number of a lesson, `8` for `08_transfer.ipynb`; `None` for a notebook that has none, like the index"
    found = re.match(r"(\d+)", Path(path).stem)
    return int(found[1]) if found else None


def page_name(path):
    "The name of a notebook's page, as nbdev gives it: `transfer` for `08_transfer.ipynb`"
    return re.sub(r"^\d+[a-zA-Z0-9]*_", "", Path(path).stem)


def lessons(folder=NBS):
    "The notebooks in a folder in the order of the course: by number, then those without one"
    found = [path for path in Path(folder).glob("*.ipynb") if not path.name.startswith(("_", "."))]
    return sorted(found, key=lambda path: (number(path) is None, path.name))


def read(path):
    "Read a notebook"
    return nbformat.read(path, as_version=4)


def title(nb, default="Untitled"):
    "The text of the first level-one heading"
    found = re.search(r"^# +(.+)$", "\n".join(c.source for c in nb.cells if c.cell_type == "markdown"), re.M)
    return found[1].strip() if found else default


def code_cells(nb):
    "The code cells with their numbers, from 1: the numbers JupyterLab shows after running all cells"
    return enumerate((cell for cell in nb.cells if cell.cell_type == "code"), start=1)


# --- Cells -----------------------------------------------------------------------------------------------------------

DIRECTIVE = re.compile(r"^\s*#\s*\|\s*([\w-]+):?[ \t]*(.*?)\s*$")
NBVAL_COMMENT = re.compile(r"^\s*#\s*NBVAL_\w+\s*$")
HIDE_LINE = re.compile(r"#\s*\|\s*hide_line\s*$")
CALLOUT = re.compile(r"^:::+[ \t]*\{\.callout-(?P<kind>\w+)(?P<options>[^}]*)\}[ \t]*\n(?P<body>.*?)^:::+[ \t]*$",
                     re.M | re.S)


def directives(source):
    "The `#|` directives of a cell as a dictionary: `{'eval': 'false'}`"
    return dict(found.groups() for line in source.splitlines() if (found := DIRECTIVE.match(line)))


def bare(source):
    "The source as a reader sees it: without directives and without nbval's comments"
    ours = (DIRECTIVE, NBVAL_COMMENT)
    lines = [line for line in source.splitlines() if not any(p.match(line) for p in ours) and not HIDE_LINE.search(line)]
    return "\n".join(lines).strip("\n")


def first_line(cell):
    "The first line of code in a cell, to name it by"
    return bare(cell.source).strip().partition("\n")[0]


def is_hidden(cell):
    "Is this cell left out of the pages?"
    found = directives(cell.source)
    return "hide" in found or found.get("include") == "false"


def is_skipped(cell, slow=False):
    "Is this code cell left out when a notebook is run?"
    found = directives(cell.source)
    return found.get("eval") == "false" or ("slow" in found and not slow)


def callout(found):
    "The kind, the title (or `None`), the body of a callout, and whether it is folded"
    heading = re.match(r"\s*#+[ \t]+(.*)\n", found["body"])
    option = re.search(r'title="([^"]*)"', found["options"])
    name = heading[1].strip() if heading else option[1] if option else None
    body = found["body"][heading.end():] if heading else found["body"]
    return found["kind"], name, body.strip("\n"), 'collapse="true"' in found["options"]


def outside_fences(source, change):
    "Apply `change` to the parts of a Markdown text that are not fenced code"
    parts = re.split(r"(^[ \t]*(```+|~~~+).*?^[ \t]*\2[ \t]*$)", source, flags=re.M | re.S)
    # Each split gives the text before a fence, the fence, and the fence's marker.
    return "".join(change(part) if place % 3 == 0 else part for place, part in enumerate(parts) if place % 3 < 2)


# --- Claims ----------------------------------------------------------------------------------------------------------

CLAIM = re.compile(r"^✓ (?P<statement>.+?)(?:\s+\[measured: (?P<evidence>.*)\])?\s*$")


@dataclass(frozen=True)
class Claim:
    "A statement that a cell has just proved"
    notebook: str   # the stem of the notebook's file name
    cell: int       # the number of the code cell
    statement: str  # what is claimed
    evidence: str   # what was measured


def as_claim(line):
    "The statement and the evidence of a line of output, or `None` when it claims nothing"
    found = CLAIM.match(line)
    return found and (found["statement"], found["evidence"] or "")


def claims(nb, name):
    "The claims that the outputs of a notebook prove"
    lines = [(cell_number, line) for cell_number, cell in code_cells(nb) for output in cell.outputs
             if output.get("name") == "stdout" for line in output.text.splitlines()]
    return [Claim(name, cell_number, *claim) for cell_number, line in lines if (claim := as_claim(line))]
