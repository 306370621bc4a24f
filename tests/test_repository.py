"""The promises of the repository: one source, one direction, outputs that are compared, and nothing left over."""
import json
import os
import re
import subprocess
import sys
from configparser import ConfigParser

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from packaging.requirements import Requirement

from tools import export, order, pages, readme, site
from tools.notebooks import CALLOUT, NBS, ROOT, as_claim, callout, code_cells, directives, is_skipped, lessons, number, read

NOTEBOOKS = lessons()
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
every_lesson = pytest.mark.parametrize("path", [path for path in NOTEBOOKS if number(path) is not None],
                                       ids=lambda path: path.stem)


def run(*arguments, **options):
    "Run a Python command at the top of the repository; returns its status and all that it printed"
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, text=True, encoding="utf-8",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    return done.returncode, done.stdout


def write_notebook(path, *cells):
    "Write a notebook with the given cells; a string is a code cell"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [new_code_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def headings(nb):
    "The second-level headings of a notebook; those in callouts are titles"
    prose = "\n\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    return re.findall(r"^## (.+?)\s*$", CALLOUT.sub("", prose), re.M)


# --- One source ------------------------------------------------------------------------------------------------------


def test_package_is_what_the_notebooks_export():
    assert export.differences() == {}


def test_readme_is_what_the_index_says():
    assert readme.stale() == []


def test_quarto_and_sphinx_read_the_same_settings():
    link = NBS / "_quarto.yml"
    assert link.is_symlink() and link.resolve() == ROOT / "_quarto.yml"
    quarto = yaml.safe_load(link.read_text(encoding="utf-8"))
    assert quarto["metadata-files"] == ["nbdev.yml", "sidebar.yml"]
    assert (NBS / quarto["format"]["html"]["css"]).exists()
    options = site.settings()
    assert options["website"]["title"] == site.sphinx_settings(options)["html_title"] == "ftlearn"
    # What is nested is merged, so that no file hides what another one says.
    assert {"navbar", "repo-url", "sidebar"} <= options["website"].keys()
    assert {"style", "contents"} <= options["website"]["sidebar"].keys()


def test_sidebar_lists_every_notebook_once_in_order():
    listed = [name for _, name in site.order(site.settings()["website"]["sidebar"]["contents"])]
    apart = [path.name for path in NOTEBOOKS if number(path) is None and path.stem != "index"]
    assert listed == ["index.ipynb", *(path.name for path in NOTEBOOKS if number(path) is not None), *apart]


def test_constraints_pin_every_requirement():
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    texts = [settings["DEFAULT"][key] for key in ("requirements", "dev_requirements")]
    wanted = [Requirement(text) for text in " ".join(texts).split()]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(re.match(r"([\w.-]+)==(\S+)$", line).groups() for line in lines if line and not line.startswith("#"))
    versions = {_normal(name): version for name, version in pins.items()}
    assert {r.name for r in wanted if _normal(r.name) not in versions} == set()
    assert {r.name for r in wanted if not r.specifier.contains(versions[_normal(r.name)])} == set()


def _normal(name):
    "The name of a package as all its spellings have it in common"
    return re.sub(r"[-_.]+", "-", name).lower()


# --- One direction ---------------------------------------------------------------------------------------------------


def test_notebooks_import_only_from_lower_numbers():
    assert order.violations(NBS) == []


def test_no_circular_imports():
    assert order.cycle(ROOT / "ftlearn") is None


def test_direction_is_really_checked(tmp_path):
    write_notebook(tmp_path / "00_low.ipynb", "#| default_exp low", "from ftlearn.high.model import late", "#| export\nX = 1")
    write_notebook(tmp_path / "01_high.ipynb", "#| default_exp high.model", "#| export\nfrom ftlearn.high import model",
                   "%time\nfrom ftlearn.low import X", "from ftlearn.high.model import *", "#| export\nlate = 1")
    write_notebook(tmp_path / "index.ipynb", "from ftlearn.high.model import late")
    assert order.violations(tmp_path) == ["00_low.ipynb, code cell 2, imports from 01_high.ipynb",
                                          "01_high.ipynb, code cell 2, imports from 01_high.ipynb"]


@pytest.mark.parametrize("source, circular", [("from .b import X", True), ("from ftlearn import b", True), ("X = 1", False)])
def test_circles_are_really_found(tmp_path, source, circular):
    package = tmp_path / "ftlearn"
    package.mkdir()
    (package / "__init__.py").write_text("from .a import *")
    (package / "a.py").write_text(source)
    (package / "b.py").write_text("from ftlearn.a import X")
    assert bool(order.cycle(package)) == circular


# --- Every notebook --------------------------------------------------------------------------------------------------


@every_notebook
def test_outputs_are_stored_and_sound(path):
    outputs = [output for _, cell in code_cells(read(path)) for output in cell.outputs]
    assert outputs, "run `make outputs`"
    assert [o.evalue for o in outputs if o.output_type == "error"] == []
    assert [o.text for o in outputs if o.get("name") == "stderr"] == []
    assert path.stat().st_size < 1_000_000


@every_lesson
def test_lessons_have_the_same_shape(path):
    nb = read(path)
    assert re.match(r"# \S.*\n\n> \S", nb.cells[0].source), "the first cell is `# Title` and `> promise`"
    assert headings(nb)[-3:] == ["Summary", "Exercises", "References"]


@every_lesson
def test_each_exercise_waits_for_an_answer_and_folds_its_solution(path):
    "Guards against a solution in plain sight, and against one that is not run."
    cells = [cell for cell in read(path).cells if cell.cell_type == "code" and "check_answer(" in cell.source]
    exercises = [i for i, cell in enumerate(cells) if ("check_answer(...," in cell.source or "answer = ..." in cell.source)
                 and "ClaimFailed" not in cell.source]                                    # lesson 0 shows what the check says
    assert len(exercises) >= 2
    for i in exercises:
        assert directives(cells[i + 1].source).get("code-fold") == "true" and "..." not in cells[i + 1].source
        assert "check_answer(" in cells[i + 1].source


def test_no_path_of_one_machine():
    private = re.compile(r"(?<![\w.:/])/(?:work|root|home|Users)/\w+")
    folders = [ROOT / name for name in ("ftlearn", "tools", "tests")]
    files = [*NOTEBOOKS, *ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    found = {str(path.relative_to(ROOT)): private.findall(path.read_text(encoding="utf-8")) for path in files}
    assert {name: paths for name, paths in found.items() if paths} == {}


# --- The cells' meaning ----------------------------------------------------------------------------------------------


def test_directives_and_claims_are_understood():
    assert directives("#| export\n#| code-summary: \"A b\"\nx = 1") == {"export": "", "code-summary": '"A b"'}
    assert is_skipped(new_code_cell("#| eval: false\n1/0")) and not is_skipped(new_code_cell("1"))
    assert is_skipped(new_code_cell("#| slow\n1")) and not is_skipped(new_code_cell("#| slow\n1"), slow=True)
    assert as_claim("✓ a beats b  [measured: 3 [2, 4]]") == ("a beats b", "3 [2, 4]")
    assert as_claim("✓ a beats b") == ("a beats b", "")
    assert as_claim("a beats b") is None


def test_callouts_are_understood():
    source = '::: {.callout-tip collapse="true"}\n## A title\nText\n:::\n'
    assert callout(CALLOUT.search(source)) == ("tip", "A title", "Text", True)
    assert callout(CALLOUT.search(':::{.callout-note title="T"}\nText\n:::')) == ("note", "T", "Text", False)


@pytest.mark.parametrize("source", ['::: {.callout-tip collapse="true"}\n## Solution\n### Why\n`x`\n:::',
                                    "<details><summary>Solution</summary>\n### Why\n`x`\n</details>"])
def test_solutions_are_folded(source):
    folded = "<details>\n<summary>Solution</summary>\n\n**Why**\n`x`\n\n</details>"
    assert pages.markdown(source, NoReference) == folded


class NoReference:
    "Stands in for the reference of a package"
    link = staticmethod(lambda text: text)


def test_pages_show_what_a_reader_should_see():
    claim = new_output("stream", name="stdout", text="before\n✓ a < b  [measured: 1]\n")
    nb = new_notebook(cells=[
        new_markdown_cell("See [the next](08_transfer.ipynb#idea), not `[x](08_transfer.ipynb)`"),
        new_code_cell("#| default_exp core"),
        new_code_cell("#| hide\nsecret = 1"),
        new_code_cell("#| export\n# NBVAL_IGNORE_OUTPUT\nclass Thing: pass"),
        new_code_cell("#| echo: false\nplot()", outputs=[claim]),
        new_code_cell("#| code-fold: true\n#| code-summary: \"Solution\"\nanswer = 42"),
    ])
    prose, anchor, exported, plot, solution = pages.page(nb, NoReference).cells
    assert "(transfer.ipynb#idea)" in prose.source
    assert anchor.source == '<span id="Thing"></span>'
    assert exported.source == "class Thing: pass" and exported.metadata.tags == ["exported"]
    assert plot.metadata.tags == ["remove-input"]
    assert [o.output_type for o in plot.outputs] == ["stream", "display_data"]
    assert "a &lt; b" in plot.outputs[1].data["text/html"]
    assert solution.metadata.tags == ["hide-input"] and solution.metadata.mystnb["code_prompt_show"] == "Solution"


# --- nbval -----------------------------------------------------------------------------------------------------------


def nbval(path, **environment):
    "Run nbval with this repository's settings on a notebook that lies elsewhere"
    return run("-m", "pytest", "-c", ROOT / "pytest.ini", "-p", "conftest", "--nbval", "--nbval-current-env", path,
               env={**os.environ, "PYTHONPATH": str(ROOT), **environment})


@pytest.mark.parametrize("printed, passes", [
    ("✓ holds  [measured: 7 s at 0x12]", True),     # evidence may differ
    ("✓ holds  [measured: 1]", True),
    ("✓ does not hold  [measured: 1]", False),      # a claim may not
    ("", False),
])
def test_nbval_compares_outputs_of_cleaned_notebooks(tmp_path, printed, passes):
    outputs = [new_output("stream", name="stdout", text=printed + "\n")] if printed else []
    # A cell without outputs and without a count is how nbdev stores a cell; nbval would skip its comparison.
    cells = [new_code_cell("#| eval: false\n1/0"),
             new_code_cell("'a value that the semicolon silences';"),
             new_code_cell("print('✓ holds  [measured: 1]')", outputs=outputs, execution_count=None)]
    status, text = nbval(write_notebook(tmp_path / "two_cells.ipynb", *cells))
    assert (status == 0) == passes, text
    assert "1 skipped" in text


def test_no_notebook_is_begun_when_the_time_is_over(tmp_path):
    path = write_notebook(tmp_path / "late.ipynb", new_code_cell("1/0", execution_count=None), new_code_cell("2/0", execution_count=None))
    status, text = nbval(path, CHECK_UNTIL="1", PYTEST_ADDOPTS="-rs")
    assert status == 0 and "2 skipped" in text and "ran out before late.ipynb" in text, text
    assert nbval(path, CHECK_UNTIL="inf")[0] == 1


# --- The course ------------------------------------------------------------------------------------------------------

CLAIMING = "class ClaimFailed(AssertionError): pass\nprint('✓ one is one  [measured: 1 == 1]')"


def run_course(folder, *arguments):
    "Run the course on the notebooks in a folder"
    return run("-m", "tools.course", "--notebooks", folder / "nbs", "--output", folder / "out", "--no-site", *arguments)


def test_course_lists_what_was_proved(tmp_path):
    source = write_notebook(tmp_path / "nbs" / "00_one.ipynb", CLAIMING, "#| eval: false\n1/0")
    before = source.read_bytes()
    status, text = run_course(tmp_path)
    assert status == 0, text
    assert "✓ one is one" in text and "1 == 1" in text
    proved = {"notebook": "00_one", "cell": 1, "statement": "one is one", "evidence": "1 == 1"}
    assert json.loads((tmp_path / "out" / "claims.json").read_text(encoding="utf-8")) == [proved]
    assert read(tmp_path / "out" / "notebooks" / "00_one.ipynb").cells[0].outputs
    assert source.read_bytes() == before


def test_course_names_the_claim_that_fails(tmp_path):
    write_notebook(tmp_path / "nbs" / "00_one.ipynb", CLAIMING)
    write_notebook(tmp_path / "nbs" / "01_two.ipynb", CLAIMING, "raise ClaimFailed('two is one')")
    write_notebook(tmp_path / "nbs" / "02_three.ipynb", CLAIMING)
    status, text = run_course(tmp_path)
    assert status == 1
    assert "01_two.ipynb, code cell 2: raise ClaimFailed('two is one')" in text
    assert "This claim does not hold: two is one" in text
    assert "02_three" not in text
    assert (tmp_path / "out" / "notebooks" / "01_two.ipynb").exists()


def test_course_runs_chosen_lessons_only(tmp_path):
    for name in ("07_seven", "08_eight"):
        write_notebook(tmp_path / "nbs" / f"{name}.ipynb", CLAIMING)
    status, text = run_course(tmp_path, "--only", "8")
    assert status == 0 and "08_eight" in text and "07_seven" not in text
    assert (tmp_path / "out" / "notebooks" / "07_seven.ipynb").exists(), "the site is to have every page"
