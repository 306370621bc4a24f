"""Write README.md from nbs/index.ipynb: `python -m tools.readme [--check]`.

Pictures in the outputs go to README_files/. With `--check` nothing is written, and the exit status tells whether the
files are up to date."""
import argparse
import base64
import re

from tools.notebooks import CALLOUT, NBS, ROOT, bare, callout, directives, is_hidden, outside_fences, read

PICTURES = {"image/png": ("png", base64.b64decode), "image/svg+xml": ("svg", str.encode)}
LOCAL_LINK = re.compile(r"(\]\()(?![a-z]+:|[#/.])(?=[^)\s]+\.ipynb)")
ALERTS = {"note": "NOTE", "tip": "TIP", "warning": "WARNING", "important": "IMPORTANT", "caution": "CAUTION"}


def readme(path=NBS / "index.ipynb"):
    "All files of the README by their names: the text, and the pictures in the outputs"
    files, blocks = {}, []
    for cell in read(path).cells:
        if cell.cell_type == "markdown" and not is_hidden(cell):
            blocks.append(_prose(cell.source))
        elif cell.cell_type == "code" and not is_hidden(cell):
            blocks += _code(cell, files)
    note = "<!-- Written by `make readme` from nbs/index.ipynb: edit that notebook. -->"
    files["README.md"] = ("\n\n".join(filter(None, [note, *blocks])) + "\n").encode()
    return files


def _prose(source):
    "Markdown as GitHub reads it"
    source = CALLOUT.sub(_alert, source.strip())
    return outside_fences(source, lambda text: LOCAL_LINK.sub(r"\1nbs/", text))


def _alert(found):
    "A callout as GitHub's alert, a folded one as a disclosure"
    kind, name, body, folded = callout(found)
    if folded:
        return f"<details>\n<summary>{name or kind.title()}</summary>\n\n{body}\n\n</details>"
    lines = [f"[!{ALERTS.get(kind, 'NOTE')}]", *([f"**{name}**", ""] if name else []), *body.splitlines()]
    return "\n".join(f"> {line}".rstrip() for line in lines)


def _code(cell, files):
    "A cell's code and outputs, as its directives say; pictures are added to `files`"
    found, source = directives(cell.source), bare(cell.source)
    blocks = [f"```python\n{source}\n```"] if source and found.get("echo") != "false" else []
    if found.get("output") != "false":
        blocks += [_output(output, files) for output in cell.outputs]
    return blocks


def _output(output, files):
    "One output in Markdown; what is printed to stderr is left out"
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```" if output.name == "stdout" else ""
    data = output.get("data", {})
    for kind, (suffix, decoded) in PICTURES.items():
        if kind in data:
            name = f"README_files/picture-{len(files) + 1}.{suffix}"
            files[name] = decoded(data[kind])
            return f"![]({name})"
    if "text/markdown" in data:
        return data["text/markdown"].strip()
    return f"```text\n{data['text/plain'].rstrip()}\n```" if "text/plain" in data else ""


def stale():
    "The names of the files that are not what the notebook says"
    wanted = readme()
    left_over = {f"README_files/{path.name}" for path in (ROOT / "README_files").glob("*")} - wanted.keys()
    differing = {name for name, content in wanted.items()
                 if not (ROOT / name).exists() or (ROOT / name).read_bytes() != content}
    return sorted(differing | left_over)


def write():
    "Write the files that have changed, and remove pictures that are no longer used"
    wanted = readme()
    for name in stale():
        path = ROOT / name
        if name in wanted:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(wanted[name])
        else:
            path.unlink()
        print(f"{'written' if name in wanted else 'removed'}: {name}")


def main():
    parser = argparse.ArgumentParser(description="Write README.md from nbs/index.ipynb.")
    parser.add_argument("--check", action="store_true", help="only tell whether it is up to date")
    options = parser.parse_args()
    if not options.check:
        write()
    elif names := stale():
        raise SystemExit(f"Out of date: {', '.join(names)}. Run `make readme`.")
    print("README.md is what nbs/index.ipynb says.")


if __name__ == "__main__":
    main()
