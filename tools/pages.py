"""Turn a notebook into a page that MyST-NB renders: directives obeyed, callouts and links translated, claims set apart."""
import html
import re

from nbformat.v4 import new_markdown_cell, new_output

from tools.notebooks import CALLOUT, as_claim, bare, callout, directives, is_hidden, outside_fences, page_name

PAGE_METADATA = {
    "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
    # This lexer knows `%time` and `!ls`, which the plain Python one reports as errors.
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
NOTEBOOK_LINK = re.compile(r"(\]\((?![a-z]+://)[^)\s]*?)([^/)\s]+)\.ipynb(?=[)#\s])")
DETAILS = re.compile(r"^<details>\s*<summary>(.*?)</summary>[ \t]*\n(.*?)^</details>", re.M | re.S)
SHOW_DOC = re.compile(r"^show_doc\(\s*([\w.]+)", re.M)


def page(nb, reference):
    "The notebook as a page; `reference` knows the names that the package exports"
    nb.cells = [new for cell in nb.cells if not is_hidden(cell) for new in _cells(cell, reference)]
    nb.metadata = PAGE_METADATA
    return nb


def _cells(cell, reference):
    "What becomes of one cell: no cell, one, or two"
    if cell.cell_type == "markdown":
        cell.source = markdown(cell.source, reference)
        return [cell]
    if cell.cell_type == "code":
        return _code(cell, reference)
    return []   # raw cells hold front matter for Quarto


# --- Prose -----------------------------------------------------------------------------------------------------------


def markdown(source, reference):
    "Translate callouts, folded passages, links to notebooks and names of the package"
    source = CALLOUT.sub(_admonition, source)
    source = DETAILS.sub(lambda found: _disclosure(found[1], found[2]), source)
    return outside_fences(source, lambda text: reference.link(NOTEBOOK_LINK.sub(_page_link, text)))


def _page_link(found):
    "Pages have names without numbers, as nbdev gives them"
    return f"{found[1]}{page_name(found[2] + '.ipynb')}.ipynb"


def _admonition(found):
    "A Quarto callout as a MyST admonition; a folded one as an HTML disclosure"
    kind, name, body, folded = callout(found)
    if folded:
        return _disclosure(html.escape(name or kind.title()), body)
    if name:
        return f"::::{{admonition}} {name}\n:class: {kind}\n{body}\n::::"
    return f"::::{{{kind}}}\n{body}\n::::"


def _disclosure(summary, body):
    """A folded passage. Markdown in it is read only after an empty line, and its headings become bold text: a heading
    would begin a new section of the page, outside the fold."""
    body = outside_fences(body.strip("\n"), lambda text: re.sub(r"^#+[ \t]+(.*)$", r"**\1**", text, flags=re.M))
    return f"<details>\n<summary>{summary.strip()}</summary>\n\n{body}\n\n</details>"


# --- Code ------------------------------------------------------------------------------------------------------------


def _code(cell, reference):
    "A code cell with its directives obeyed, and before an exported one the places that the reference points to"
    found = directives(cell.source)
    cell.source = bare(cell.source)
    if documented := SHOW_DOC.search(cell.source):
        return [new_markdown_cell(reference.entry(documented[1]))]
    if not cell.source and not cell.outputs:
        return []
    cell.metadata = _metadata(cell.metadata.get("tags", []), found)
    cell.outputs = [new for output in cell.outputs for new in _output(output)]
    if found.keys() & {"export", "exports", "exporti"}:
        return [*_anchors(cell.source), cell]
    return [cell]


def _metadata(tags, found):
    "The tags that MyST-NB understands; a tag also becomes a class of the cell, for styles.css"
    tags = list(tags)
    tags += ["exported"] * bool(found.keys() & {"export", "exports", "exporti"})
    tags += ["remove-input"] * (found.get("echo") == "false" or "hide_input" in found)
    tags += ["remove-output"] * (found.get("output") == "false" or "hide_output" in found)
    if found.get("code-fold") not in ("true", "show"):
        return {"tags": tags}
    summary = found.get("code-summary", "Code").strip("\"'")
    return {"tags": [*tags, "hide-input"], "mystnb": {"code_prompt_show": summary, "code_prompt_hide": summary}}


def _anchors(source):
    "An anchor for every definition in the cell: its name"
    names = re.findall(r"^(?:def|class)\s+(\w+)", source, re.M)
    return [new_markdown_cell("".join(f'<span id="{name}"></span>' for name in names))] if names else []


def _output(output):
    "The output, with claims set apart from other printed lines"
    if output.get("name") != "stdout" or "✓ " not in output.text:
        return [output]
    blocks = []
    for line in output.text.splitlines():
        claim = as_claim(line)
        if not blocks or (claim is None) != blocks[-1][0]:
            blocks.append((claim is None, []))
        blocks[-1][1].append(line if claim is None else _claim(*claim))
    return [_printed(lines) if plain else _shown(lines) for plain, lines in blocks]


def _printed(lines):
    "Lines of standard output"
    return new_output("stream", name="stdout", text="\n".join(lines) + "\n")


def _shown(lines):
    "Claims"
    return new_output("display_data", data={"text/html": "\n".join(lines)})


def _claim(statement, evidence):
    "A claim in HTML"
    measured = f'<span class="measured">{html.escape(evidence)}</span>' if evidence else ""
    return f'<div class="claim"><span class="statement">{html.escape(statement)}</span>{measured}</div>'
