# `make` lists what there is to do. The first target to need it makes a virtual environment in .venv.
#
#   PYTHON=python3.12 make course    makes the environment with another Python
#   FTLEARN_VENV=path make course    uses a complete environment of yours, and installs nothing
#   ONLY="07 09" make course         runs these lessons only

PYTHON ?= python3
VENV ?= .venv
NB ?=
ONLY ?=

ifdef FTLEARN_VENV
PY = "$(FTLEARN_VENV)/bin/python"
READY =
else
PY = "$(VENV)/bin/python"
READY = $(VENV)/.installed
endif

PIP = $(PY) -m pip --disable-pip-version-check install -qq -c constraints.txt

.PHONY: help course test lab site quarto export outputs readme clean
.DEFAULT_GOAL := help

help:
	@echo "make course    run every lesson, build the site, and list what was proved"
	@echo "make test      check the package, the tests, and the outputs of every notebook"
	@echo "make lab       work through the notebooks in JupyterLab"
	@echo "make site      build the site from the stored outputs"
	@echo
	@echo "After editing notebooks:"
	@echo "make export    write ftlearn/ and the sidebar"
	@echo "make outputs   run notebooks and store their outputs: make outputs NB=\"nbs/07_*.ipynb\""
	@echo "make readme    write README.md from nbs/index.ipynb"
	@echo "make quarto    build the site with Quarto instead, into _docs/"
	@echo "make clean     remove what was built (not the environment)"

course: $(READY)
	@$(PY) -m tools.course $(if $(ONLY),--only $(ONLY))

test: $(READY)
	@$(PY) -m tools.check

lab: $(READY)
	@$(PY) -m jupyter lab --notebook-dir=nbs

site: $(READY)
	@$(PY) -m tools.site

export: $(READY)
	@$(PY) -m tools.export

outputs: $(READY)
	@$(PY) -m tools.execute $(NB)

readme: $(READY)
	@$(PY) -m tools.readme

# nbdev would render README.md anew if it were older than the index.
quarto: $(READY)
	@command -v quarto >/dev/null || { echo "Quarto is not installed. \`make site\` builds the same site without it."; exit 1; }
	@touch README.md
	@PATH="$$(dirname $(PY)):$$PATH" $(PY) -c "from nbdev.quarto import nbdev_docs; nbdev_docs.__wrapped__()"

clean:
	@rm -rf _course _docs _proc _site build dist .pytest_cache .hypothesis
	@find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +

# --- The environment -------------------------------------------------------------------------------------------------
# Each step leaves a stamp: an install that was interrupted goes on from there, and a complete one costs nothing.

$(VENV)/.created:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || { \
	    echo "ftlearn needs Python 3.11 or later; \"$(PYTHON)\" is $$($(PYTHON) --version 2>&1)."; \
	    echo "Name another one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || { \
	    echo "\"$(PYTHON)\" cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@echo "Making a virtual environment in $(VENV) ..."
	@$(PYTHON) -m venv "$(VENV)"
	@touch "$@"

# torch comes first and by its exact version, so that nothing else can ask for another build of it.
$(VENV)/.installed: $(VENV)/.created constraints.txt settings.ini setup.py pyproject.toml
	@echo "Installing PyTorch (about a minute) ..."
	@$(PIP) torch==$$(sed -n 's/^torch==//p' constraints.txt)
	@echo "Installing ftlearn and the tools of the course (about 2 minutes) ..."
	@$(PIP) -e ".[dev,models]"
	@touch "$@"
