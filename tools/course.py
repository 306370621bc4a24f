"""Run the whole course, build the site from it, and list what it proved: `python -m tools.course`.

Each notebook runs in a kernel of its own, on a copy: nbs/ stays as it is. Executed copies go to _course/notebooks/, the
claims to _course/claims.json, and the site to _site/. The first cell that fails ends the run with status 1."""
import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import nbformat
from nbclient.exceptions import CellExecutionError, DeadKernelError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tools.notebooks import KERNEL, NBS, ROOT, claims, code_cells, first_line, lessons, number, read
from tools.running import LessonClient, run

TICK = 10   # seconds between lines of progress where there is no terminal
LONG = 240  # seconds after which a lesson tries a learner's patience
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)

# --- Progress --------------------------------------------------------------------------------------------------------


class Position:
    "Where a run is: which notebook, which cell, since when"

    def __init__(self, path, nb):
        self.name, self.start, self.cell = path.stem, time.monotonic(), None
        self.numbers = {id(cell): (cell_number, cell) for cell_number, cell in code_cells(nb)}

    def enter(self, cell):
        "Note that a code cell is about to run"
        self.cell = self.numbers[id(cell)]

    @property
    def seconds(self):
        "The time since the start of the notebook"
        return time.monotonic() - self.start

    def __str__(self):
        cell_number, cell = self.cell or (0, None)
        return f"cell {cell_number}/{len(self.numbers)}  {first_line(cell)[:60] if cell else 'starting a kernel'}"


class PlainProgress:
    "A line for every notebook, and one every few seconds: for logs"

    def begin(self, position):
        self.position = position
        print(f"{position.name}: {len(position.numbers)} cells", flush=True)

    def enter(self):
        pass

    def tick(self):
        print(f"{self.position.name}: {self.position.seconds:4.0f} s  {self.position}", flush=True)

    def end(self):
        print(f"{self.position.name}: done in {self.position.seconds:.0f} s", flush=True)


class LiveProgress:
    "A bar for every notebook: for terminals"

    def __init__(self):
        self.bars = Progress(SpinnerColumn(finished_text="✓"), TextColumn("{task.description:24}"), BarColumn(20),
                             MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("[dim]{task.fields[doing]}"),
                             console=console)
        self.bars.start()

    def begin(self, position):
        self.position = position
        self.bar = self.bars.add_task(position.name, total=len(position.numbers), doing="starting a kernel")

    def enter(self):
        cell_number, cell = self.position.cell
        # Square brackets would be read as markup.
        self.bars.update(self.bar, completed=cell_number - 1, doing=first_line(cell)[:40].replace("[", r"\["))

    def tick(self):
        pass

    def end(self):
        self.bars.update(self.bar, completed=len(self.position.numbers), doing="")

    def stop(self):
        self.bars.stop()


# --- The run ---------------------------------------------------------------------------------------------------------


class Failed(Exception):
    "A notebook did not run to its end; the message says where and why"


def selected(folder, only):
    "The notebooks to run: all, or those whose number or name is given"
    def wanted(path):
        return any(path.stem == name or (name.isdigit() and number(path) == int(name)) for name in only)
    return [path for path in lessons(folder) if not only or wanted(path)]


def execute(path, target, progress, slow):
    "Run a copy of one notebook and store it; returns the claims it proved and the seconds it took"
    nb = read(path)
    position = Position(path, nb)

    def on_cell_execute(cell, cell_index):
        position.enter(cell)
        progress.enter()

    progress.begin(position)
    client = LessonClient(nb, path.parent, slow, on_cell_execute=on_cell_execute)
    try:
        run(client, KERNEL, progress.tick, TICK)
    except (CellExecutionError, DeadKernelError) as error:
        kept = f"The notebook as far as it ran: {os.path.relpath(target / path.name)}"
        raise Failed(f"{explain(path, position, error)}\n{kept}") from error
    finally:
        nbformat.write(nb, target / path.name)   # what ran before a failure or an interrupt is kept too
    progress.end()
    return claims(nb, path.stem), position.seconds


def explain(path, position, error):
    "Which cell failed, and why"
    cell_number, cell = position.cell or (0, None)
    place = f"{path.name}, code cell {cell_number}: {first_line(cell) if cell else ''}"
    if isinstance(error, DeadKernelError):
        return f"{place}\nThe kernel died. Most often the machine had no memory left."
    if error.ename == "ClaimFailed":
        return f"{place}\nThis claim does not hold: {error.evalue}"
    return f"{place}\n{error.ename}: {error.evalue}"


# --- The report ------------------------------------------------------------------------------------------------------


def report(proved, seconds):
    "Print the claims by notebook, and the time that each took"
    table = Table(title="What this run proved", title_justify="left", show_lines=False, expand=False)
    table.add_column("Lesson", no_wrap=True)
    table.add_column("Claim", ratio=3)
    table.add_column("Measured", ratio=2, style="dim")
    for name in seconds:
        shown = name
        for claim in (c for c in proved if c.notebook == name):
            table.add_row(shown, f"✓ {_plain(claim.statement)}", _plain(claim.evidence))
            shown = ""
        if not shown:
            table.add_section()
    if proved:
        console.print(table)
    times = Table(title="Time", title_justify="left", box=None, show_header=False)
    for name, spent in seconds.items():
        times.add_row(name, f"{spent:6.0f} s", "longer than a lesson should take, unless it pretrained a model" if spent > LONG else "")
    times.add_row("together", f"{sum(seconds.values()):6.0f} s", "", style="bold")
    console.print(times)
    console.print(f"Claims proved: {len(proved)}. Notebooks run: {len(seconds)}.")


def _plain(text):
    "Text that rich shows as it is"
    return text.replace("[", r"\[")


def prepare(folder, output, keep):
    "A fresh folder for the executed copies. It starts with the notebooks as they are stored, so that the site is complete"
    target = output / "notebooks"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in lessons(folder) if keep else []:
        shutil.copy(path, target)
    return target


def course(options):
    "Run the notebooks; returns the exit status"
    chosen = selected(options.notebooks, options.only)
    if not chosen:
        raise SystemExit(f"No such notebook in {options.notebooks}: {' '.join(options.only) or 'it is empty'}")
    target = prepare(options.notebooks, options.output, keep=bool(options.only))
    progress = LiveProgress() if sys.stdout.isatty() else PlainProgress()
    proved, seconds, failure = [], {}, None
    try:
        for path in chosen:
            found, seconds[path.stem] = execute(path, target, progress, options.slow)
            proved += found
    except Failed as error:
        failure = str(error)
    finally:
        if isinstance(progress, LiveProgress):
            progress.stop()
        listed = json.dumps([asdict(claim) for claim in proved], indent=1, ensure_ascii=False)
        (options.output / "claims.json").write_text(listed + "\n", encoding="utf-8")
    report(proved, seconds)
    if failure:
        console.print(f"\n[bold red]FAILED[/] {_plain(failure)}")
        return 1
    if not options.no_site:
        from tools.site import build
        console.print("Building the site ...")
        console.print(f"Open [bold]{os.path.relpath(build(target))}[/] in a browser.")
    return 0


def main():
    parser = argparse.ArgumentParser(description="Run the course, build its site, and list what it proved.")
    parser.add_argument("--only", nargs="+", default=[], metavar="LESSON", help="lessons to run, by number or name")
    parser.add_argument("--no-site", action="store_true", help="do not build the site")
    parser.add_argument("--slow", action="store_true", help="run cells marked `#| slow` too")
    parser.add_argument("--notebooks", type=Path, default=NBS, help="the folder with the notebooks (default: nbs)")
    parser.add_argument("--output", type=Path, default=ROOT / "_course", help="for the results (default: _course)")
    try:
        return course(parser.parse_args())
    except KeyboardInterrupt:
        console.print("\nInterrupted. What ran until then is kept.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
