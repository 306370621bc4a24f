"""Build the site: `python -m tools.site [--notebooks DIR] [--output DIR]`.

Sphinx with MyST-NB renders the notebooks with the outputs that they hold; nothing is executed, no network is needed, and
everything that a page needs (mathematics and search too) is beside it. Title, order and styles come from the files that
Quarto reads: nbs/_quarto.yml and the files that it names."""
import argparse
import html
import os
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import yaml

from tools.notebooks import NBS, ROOT, claims, lessons, page_name, read, title
from tools.pages import page
from tools.reference import Reference

SITE = ROOT / "_site"

# --- Settings --------------------------------------------------------------------------------------------------------


def merged(first, second):
    "Two nested dictionaries as one; where both have a value, the second's stands"
    both_nested = {key: merged(first[key], value) for key, value in second.items()
                   if isinstance(value, dict) and isinstance(first.get(key), dict)}
    return {**first, **second, **both_nested}


def settings(folder=NBS):
    "The settings as Quarto reads them: `_quarto.yml`, and over it the files that it names"
    result = yaml.safe_load((folder / "_quarto.yml").read_text(encoding="utf-8"))
    for name in result.get("metadata-files", []):
        result = merged(result, yaml.safe_load((folder / name).read_text(encoding="utf-8")))
    return result


def order(contents, caption=None):
    "The notebooks of the sidebar in order, each with the caption it stands under"
    for item in contents:
        if isinstance(item, str):
            yield caption, item
        else:
            yield from order(item["contents"], item["section"])


def sphinx_settings(options):
    "What Sphinx calls these settings"
    website, page_format = options["website"], options["format"]["html"]
    return {
        "project": website["title"],
        "html_title": website["title"],
        "html_short_title": website["title"],
        "html_baseurl": website["site-url"],
        "extensions": ["myst_nb", "sphinx-mathjax-offline"],   # hyphens: that is the module's name
        "html_theme": "sphinx_book_theme",
        "html_theme_options": {
            "repository_url": website["repo-url"],
            "repository_branch": website["repo-branch"],
            "use_repository_button": True,
            "use_issues_button": "issue" in website["repo-actions"],
            "home_page_in_toc": True,
            "show_toc_level": 2,
            "show_navbar_depth": 1,
            "navbar_persistent": [],       # the search field is in the sidebar already
            "footer_content_items": [],
        },
        "html_static_path": ["_static"],
        "html_css_files": [page_format["css"]],
        "html_copy_source": False,
        "html_show_sphinx": False,
        "html_show_copyright": False,
        "html_last_updated_fmt": None,
        "nb_execution_mode": "off",
        "nb_ipywidgets_js": {},          # the only files that would come from a network
        "myst_enable_extensions": ["dollarmath", "amsmath", "colon_fence", "deflist"],
        "myst_heading_anchors": page_format["toc-depth"] + 1,
        "myst_html_meta": {"description": website["description"]},
        "suppress_warnings": ["myst.header"],   # a heading may skip a level
    }


# --- Pages -----------------------------------------------------------------------------------------------------------


def tree(caption, pages):
    "A table of contents that shows in the sidebar"
    head = f":caption: {caption}\n" if caption else ""
    return "```{toctree}\n:hidden:\n" + head + "\n" + "\n".join(pages) + "\n```"


def navigation(entries):
    "Tables of contents for the captions of the sidebar, and for what the site adds"
    captions = dict.fromkeys(caption for caption, _ in entries)
    trees = [tree(caption, [page_name(name) for under, name in entries if under == caption]) for caption in captions]
    return "\n\n".join([*trees, tree("Look up", ["claims", "api/index"])])


def escaped(text):
    "Text that Markdown leaves as it is, in a table too"
    return re.sub(r"([\\`*_{}\[\]|$#~])", r"\\\1", html.escape(text, quote=False))


def claims_page(notebooks):
    "All claims of the course in one place"
    text = ["# Every claim, and what was measured", "Each line below was printed by a cell that had just checked it, and "
            "that fails where it is false. `make course` proves them all again on your own machine."]
    for path in notebooks:
        nb = read(path)
        rows = [f"| {escaped(claim.statement)} | {escaped(claim.evidence)} |" for claim in claims(nb, path.stem)]
        if rows:
            text.append(f"## [{title(nb)}]({page_name(path)}.ipynb)")
            text.append("\n".join(["| claim | measured |", "|---|---|", *rows]))
    return "\n\n".join(text) + "\n"


def write_sources(notebooks, entries, folder, styles):
    "Write all that Sphinx reads into `folder`"
    reference = Reference(ROOT / "ftlearn")
    for path in notebooks:
        nb = page(read(path), reference)
        if path.stem == "index":
            nb.cells.append(nbformat.v4.new_markdown_cell(navigation(entries)))
        nbformat.write(nb, folder / f"{page_name(path)}.ipynb")
    texts = reference.pages() | {"claims": claims_page(notebooks)}
    for name, text in texts.items():
        target = folder / f"{name}.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")
    (folder / "_static").mkdir()
    shutil.copy(styles, folder / "_static")


def build(notebooks=NBS, output=SITE):
    "Build the site from the notebooks in a folder; a warning is an error"
    from sphinx.application import Sphinx   # takes a second to import, and the tests of the rest need none of it

    options = settings()
    present = {path.name: path for path in lessons(notebooks)}
    listed = list(order(options["website"]["sidebar"]["contents"]))
    if missing := present.keys() - {name for _, name in listed}:
        raise SystemExit(f"Not in nbs/sidebar.yml: {', '.join(sorted(missing))}. Run `make export`, which lists them.")
    listed = [(caption, name) for caption, name in listed if name in present]
    if "index.ipynb" not in present:
        raise SystemExit(f"There is no index.ipynb in {notebooks}.")
    with TemporaryDirectory(prefix="ftlearn-site-") as work:
        source, target = Path(work, "source"), Path(work, "site")
        source.mkdir()
        entries = [entry for entry in listed if entry[1] != "index.ipynb"]
        write_sources([present[name] for _, name in listed], entries, source, NBS / options["format"]["html"]["css"])
        app = Sphinx(source, None, target, Path(work, "doctrees"), "html", confoverrides=sphinx_settings(options),
                     status=None, warning=sys.stderr, warningiserror=True)
        app.build()
        if app.statuscode:
            raise SystemExit("The site was not built: see the warnings above.")
        (target / ".nojekyll").touch()   # GitHub Pages would leave out folders whose name begins with an underscore
        shutil.rmtree(output, ignore_errors=True)
        shutil.move(target, output)
    return Path(output) / "index.html"


def main():
    parser = argparse.ArgumentParser(description="Build the site from the notebooks and the outputs that they hold.")
    parser.add_argument("--notebooks", type=Path, default=NBS, help="the folder with the notebooks (default: nbs)")
    parser.add_argument("--output", type=Path, default=SITE, help="where the site goes (default: _site)")
    options = parser.parse_args()
    print(f"Site: {os.path.relpath(build(options.notebooks, options.output))}")


if __name__ == "__main__":
    main()
