"""What the verbs of the command line do with their arguments; ``__main__`` alone imports it.

Each takes the arguments after its name and prints its answer; progress goes to standard error.
"""

from cartok.verbs.questions import inspect, recipes, report, sample, score
from cartok.verbs.trainings import demo, extract, resume, train_prior, train_tokenizer

__all__ = ["demo", "extract", "inspect", "recipes", "report", "resume", "sample", "score",
           "train_prior", "train_tokenizer"]  # fmt: skip
