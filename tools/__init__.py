"""The tools behind the Makefile. Run one from the top of the repository: `python -m tools.course --help`."""
