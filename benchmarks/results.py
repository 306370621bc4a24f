"""Every method on Rotten Tomatoes, Fashion-MNIST and WNUT-17, at several label budgets, on five draws: the numbers of the results page.

    FTLEARN_DATA=... python -m benchmarks.results [rotten_tomatoes] [fashion_mnist/full] ... [--minutes 4]

All of it takes about five hours on two cores, estimated from parts. The learning rate of each method is chosen from three by the
validation split of a practice draw, which is not measured. Numbers go to nbs/results/ a few at a time, and what is there is not
measured again, so the work can be done in parts. SetFit takes part where it is installed (`pip install setfit`)."""
import importlib.metadata
import importlib.util
import json
from pathlib import Path

from benchmarks.methods import METHODS, STUDIES, score
from benchmarks.parts import SEEDS, measure, wanted, write_table

RESULTS = Path(__file__).parents[1]/"nbs"/"results"


def stored(study) -> dict:
    "What has been measured of a study: method → budget → learning rates tried, and test scores of each draw."
    file = RESULTS/f"{study.task}.json"
    return json.loads(file.read_text())["scores"] if file.exists() else {}


def store(study, scores: dict) -> None:
    "Write a study with what one must know to repeat it."
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "scikit-learn", "setfit") if importlib.util.find_spec(name.replace("scikit-learn", "sklearn"))}
    about = {"command": f"python -m benchmarks.results {study.task}", "unit": f"{study.metric} in %", "backbone": study.backbone, "test rows": study.test_rows,
             "steps": study.steps, "batch size": study.batch_size, "versions": versions}
    write_table(RESULTS/f"{study.task}.json", about | {"scores": scores})


def main() -> None:
    chosen, minutes = wanted("Measure what is missing on the results page.", STUDIES)
    found = {name: stored(study) for name, study in STUDIES.items()}
    points = [((name, method, shots), METHODS[method].rates(STUDIES[name]), SEEDS) for name, budget, beginning in chosen for shots in STUDIES[name].steps
              for method in METHODS if name in METHODS[method].studies and shots <= METHODS[method].most and budget in ("", str(shots)) and method.startswith(beginning)]
    def save(names):
        for name in names: store(STUDIES[name], found[name])
    measure(score, points, found, save, minutes)


if __name__ == "__main__": main()
