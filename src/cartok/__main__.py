"""The command line: one verb per step. ``cartok --help`` answers without importing torch."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A verb and what it is for; the function of its name in ``verbs`` does it."""

    name: str
    summary: str
    on_ranks: bool = False
    """``torchrun`` may start it; of any other verb all ranks would write the same files."""

    @property
    def function(self) -> str:
        """The name of what does it in ``verbs``; Python keeps some words for itself."""
        return "import_" if self.name == "import" else self.name.replace("-", "_")


VERBS = (
    Verb("demo", "the whole way on embedded photographs, or on --data PATH, in minutes"),
    Verb("inspect", "what is in a data set of pictures or in a folder of tokens"),
    Verb("recipes", "every recipe, one line each", on_ranks=True),
    Verb("train-tokenizer", "stage 1: pictures to a tokenizer", on_ranks=True),
    Verb("extract", "a tokenizer and pictures to token shards"),
    Verb("train-prior", "stage 2: token shards to a prior", on_ranks=True),
    Verb("resume", "go on with a run that was stopped", on_ranks=True),
    Verb("import", "published weights of LlamaGen or taming-transformers to a model folder"),
    Verb("sample", "a prior and its tokenizer to new pictures"),
    Verb("guide", "the guidance with which a prior's samples come nearest to pictures"),
    Verb("score", "how far pictures are from reference pictures", on_ranks=True),
    Verb("probe", "tokenizers compared by the same small prior, before a large one is trained"),
    Verb("study", "many small trainings that answer one question of the paper"),
    Verb("plan", "what to train under a budget, by the laws of a study"),
    Verb("doctor", "what is wrong with a stage-1 run, and what to change"),
    Verb(
        "bench",
        "how fast something runs on this device, and how far that is from its limits",
        on_ranks=True,
    ),
    Verb("report", "a page for a demo, a study or runs"),
)


def main(arguments: list[str] | None = None) -> int:
    """Runs a verb; returns the exit code. A user's mistake is one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        from cartok import __version__

        print(f"cartok {__version__}")
        return 0
    verb = next((verb for verb in VERBS if verb.name == arguments[0]), None)
    if verb is None:
        import difflib

        close = difflib.get_close_matches(arguments[0], [v.name for v in VERBS], n=1, cutoff=0.4)
        hint = f"did you mean '{close[0]}'?" if close else "see cartok --help"
        return _refuse(f"there is no verb '{arguments[0]}'; {hint}")
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1" and not verb.on_ranks:
        return _refuse(
            f"{verb.name} runs in one process, but there are {size}; start it without torchrun"
        )
    return _run(verb, arguments[1:])


def _run(verb: Verb, arguments: list[str]) -> int:
    from pydantic import ValidationError

    from cartok import verbs
    from cartok.core.config import explain
    from cartok.core.errors import UserError

    action: Callable[[list[str]], int | None] = getattr(verbs, verb.function)
    try:
        return action(arguments) or 0
    except UserError as error:
        return _refuse(str(error))
    except ValidationError as error:
        return _refuse(explain(object, error))
    except KeyboardInterrupt:
        return _refuse(
            "interrupted; a run goes on with: cartok resume RUN, "
            "tokens with the same command and --resume",
            code=130,
        )
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        sys.stderr.close()
    except OSError as error:  # a full or read-only disk, a file where a folder should be
        return _refuse(
            f"files must be readable and writable, but {error}; "
            "check the path, its permissions and the free space"
        )
    return 0


def _refuse(message: str, code: int = 2) -> int:
    print(f"cartok: {' '.join(message.split())}", file=sys.stderr)
    return code


def _help() -> str:
    lines = [f"  {verb.name:<16} {verb.summary}" for verb in VERBS]
    return "\n".join(
        [
            "cartok: Causally Regularized Tokenization, from pictures to new pictures.",
            "",
            "usage: cartok VERB [OPTIONS]; cartok VERB --help lists a verb's options",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
