"""The one direction of the course, checked: a notebook imports only from notebooks with a lower number."""
import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

from tools.notebooks import code_cells, directives, lessons, number, read

EXPORTING = ("export", "exports", "exporti")


def exported_by(nb):
    "The modules that a notebook exports to, without the package's name: `{'data', 'transfer.model'}`"
    found = [directives(cell.source) for _, cell in code_cells(nb)]
    default = next((cell["default_exp"] for cell in found if "default_exp" in cell), None)
    targets = {cell[word] or default for cell in found for word in EXPORTING if word in cell}
    return targets - {None}


def imports(tree, base):
    """The full names that some code imports; `from ftlearn import data` counts as `ftlearn` and as `ftlearn.data`.

    `base` holds the parts of the package that a relative import starts from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = base[:len(base) - node.level + 1] if node.level else []
            source = ".".join([*start, *filter(None, [node.module])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def violations(folder, package="ftlearn"):
    "What is wrong with the direction of the imports in a folder of notebooks, one sentence each"
    notebooks = {path: read(path) for path in lessons(folder)}
    owner = {module: path for path, nb in notebooks.items() for module in exported_by(nb)}
    found = []
    for path, nb in notebooks.items():
        if number(path) is None:
            continue   # the index looks at everything
        for cell_number, cell in code_cells(nb):
            exporting = any(word in directives(cell.source) for word in EXPORTING)
            tree = ast.parse(TransformerManager().transform_cell(cell.source))
            names = {name.removeprefix(f"{package}.") for name in imports(tree, [package])}
            sources = {owner[name] for name in names & owner.keys()}
            for source in sorted(sources):
                if number(source) is None or number(source) > number(path) or (source == path and exporting):
                    found.append(f"{path.name}, code cell {cell_number}, imports from {source.name}")
    return found


def cycle(package):
    "The modules of an exported package that import one another in a circle, or `None`"
    package = Path(package)
    graph = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        names = set(imports(ast.parse(path.read_text(encoding="utf-8")), list(parts[:-1])))
        # Importing a submodule imports its packages too; that is no circle.
        graph[module] = {name for name in names if not module.startswith(f"{name}.")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None
