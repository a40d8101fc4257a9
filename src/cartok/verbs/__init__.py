"""What the verbs of the command line do with their arguments; ``__main__`` alone imports it.

Each takes the arguments after its name and prints its answer; progress goes to standard error.
"""

from cartok.verbs.benches import bench
from cartok.verbs.imports import import_
from cartok.verbs.probes import probe
from cartok.verbs.questions import doctor, guide, inspect, plan, recipes, report, sample
from cartok.verbs.scores import score
from cartok.verbs.studies import study
from cartok.verbs.trainings import demo, extract, resume, train_prior, train_tokenizer

__all__ = ["bench", "demo", "doctor", "extract", "guide", "import_", "inspect", "plan", "probe",
           "recipes", "report", "resume", "sample", "score", "study", "train_prior",
           "train_tokenizer"]  # fmt: skip
