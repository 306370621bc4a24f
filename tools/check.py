"""All checks in order, with a summary at the end: `python -m tools.check`. Every check runs, even after one has failed."""
import subprocess
import sys
import time

from tools.notebooks import ROOT

CHECKS = {
    "The package is what the notebooks export": ["-m", "tools.export", "--check"],
    "Tests of the package and the repository": ["-m", "pytest", "tests"],
    "Every notebook still gives its stored outputs": ["-m", "pytest", "-rs", "--nbval", "--nbval-current-env", "nbs"],
}


def check(name, arguments):
    "Run one check and say how it went"
    print(f"\n=== {name}\n", flush=True)
    start = time.monotonic()
    failed = subprocess.run([sys.executable, *arguments], cwd=ROOT).returncode != 0
    return failed, f"{'FAILED' if failed else 'passed'}  {time.monotonic() - start:5.0f} s  {name}"


def main():
    results = [check(name, arguments) for name, arguments in CHECKS.items()]
    print("\n" + "\n".join(line for _, line in results))
    return int(any(failed for failed, _ in results))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
