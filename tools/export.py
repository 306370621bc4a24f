"""Write what is derived from the notebooks: `python -m tools.export [--check]`.

That is the package `ftlearn/`, and `nbs/nbdev.yml` and `nbs/sidebar.yml` for the site. With `--check` nothing is written,
and the exit status tells whether all is up to date. nbdev exports into an empty copy of the project, so that a module
whose notebook is gone does not stay behind."""
import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from tools.notebooks import APART, NBS, PARTS, ROOT, lessons, number

NBDEV = """
from nbdev.doclinks import nbdev_export
from nbdev.quarto import refresh_quarto_yml
nbdev_export()
refresh_quarto_yml()
"""


def sidebar(folder=NBS):
    "The sidebar: the index, then the notebooks that exist, under the part of the course they belong to; those without a number last"
    names = {number(path): path.name for path in lessons(folder)}
    parts = {part: [names[n] for n in numbers if n in names] for part, numbers in PARTS.items()}
    sections = [{"section": part, "contents": contents} for part, contents in parts.items() if contents]
    index = [path.name for path in lessons(folder) if path.stem == "index"]
    apart = [path.name for path in lessons(folder) if number(path) is None and path.stem != "index"]
    sections += [{"section": APART, "contents": apart}] if apart else []
    text = yaml.safe_dump({"website": {"sidebar": {"contents": index + sections}}}, sort_keys=False)
    return "# Written by `make export` from the numbers of the notebooks\n" + text


def export_into(project):
    "Copy the notebooks into the empty folder `project`, and let nbdev export them there"
    (project / "nbs").mkdir()
    shutil.copy(ROOT / "settings.ini", project)
    shutil.copy(ROOT / "_quarto.yml", project / "nbs")
    for path in lessons():
        shutil.copy(path, project / "nbs")
    # nbdev exports nothing where IN_TEST is set.
    environment = {key: value for key, value in os.environ.items() if key != "IN_TEST"}
    subprocess.run([sys.executable, "-c", NBDEV], cwd=project, env=environment, check=True)
    (project / "nbs" / "sidebar.yml").write_text(sidebar(project / "nbs"), encoding="utf-8")


def derived(project):
    "The derived files of a project: their contents by their relative names"
    files = [path for path in (project / "ftlearn").rglob("*.py")
             if path.is_file() and "__pycache__" not in path.parts]
    files += [path for name in ("nbdev.yml", "sidebar.yml") if (path := project / "nbs" / name).exists()]
    return {str(path.relative_to(project)): path.read_bytes() for path in files}


def differences():
    "The derived files as they should be where they differ from what is there; `None` for one that should not be there"
    with TemporaryDirectory(prefix="ftlearn-export-") as folder:
        export_into(Path(folder))
        wanted, present = derived(Path(folder)), derived(ROOT)
    changed = {name: content for name, content in wanted.items() if present.get(name) != content}
    return changed | dict.fromkeys(present.keys() - wanted.keys())


def write(changed):
    "Write the changed files, and remove those that should not be there"
    for name, content in sorted(changed.items()):
        path = ROOT / name
        print(f"{'removed' if content is None else 'written'}: {name}")
        if content is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def main():
    parser = argparse.ArgumentParser(description="Export the package and the site's lists from the notebooks.")
    parser.add_argument("--check", action="store_true", help="only tell what is out of date")
    options = parser.parse_args()
    changed = differences()
    if not options.check:
        write(changed)
    elif changed:
        raise SystemExit(f"Out of date: {', '.join(sorted(changed))}. Run `make export`.")
    print("ftlearn/ and the site's lists are what the notebooks say.")


if __name__ == "__main__":
    main()
