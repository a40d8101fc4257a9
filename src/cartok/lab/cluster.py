"""Calls on other machines that share the study's folder: through Slurm, or on a Ray cluster.

What is called is a function with arguments that can be pickled. Neither library is needed for
anything else: ``pip install cartok[slurm]`` or ``cartok[ray]``.
"""

import importlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from cartok.core.errors import UserError

Where = Literal["here", "slurm", "ray"]

Options = dict[str, str | int]
"""For Slurm what submitit's ``update_parameters`` takes: ``timeout_min``, ``gpus_per_node``,
``slurm_partition``. For Ray what ``ray.remote`` takes, such as ``num_gpus``; and ``address``."""

Call = tuple[Callable[..., None], tuple[Any, ...]]

_SECONDS_BETWEEN_LOOKS = 5.0
_SCHEDULER = "slurm"  # of those that submitit knows


def options_of(given: tuple[str, ...]) -> Options:
    """Options written as ``NAME=VALUE``; whole numbers are numbers.

    Raises:
        UserError: one is written otherwise.
    """
    options: Options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UserError(f"--with takes NAME=VALUE, such as timeout_min=240, but got '{text}'")
        options[name] = int(value) if value.lstrip("-").isdigit() else value
    return options


def call_elsewhere(
    where: Where, calls: list[Call], options: Options, folder: Path,
    ended: Callable[[int], None] = lambda index: None,
) -> None:  # fmt: skip
    """Makes every call in a job of its own and waits; ``ended`` is told which, as each ends.

    ``folder`` takes the jobs' own output. When this process ends early, jobs are cancelled.

    Raises:
        UserError: the library is missing, an option is unknown to it, or jobs died; the others
            have ended by then.
    """
    if not calls:
        return
    start = {"slurm": _submitted, "ray": _given_to_ray}[where]
    jobs = start(calls, options, folder)
    waiting, died = list(range(len(jobs))), []
    try:
        while waiting:
            for index in [i for i in waiting if jobs[i].is_over()]:
                waiting.remove(index)
                if reason := jobs[index].reason():
                    died.append(reason)
                ended(index)
            if waiting:
                time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        for index in waiting:
            jobs[index].cancel()
    if died:
        raise UserError(
            f"jobs must end by themselves, but {len(died)} of {len(jobs)} died ({died[0]}); see "
            f"{folder}, and give the same command again: it goes on"
        )


class _Submitted:
    """A job of submitit's."""

    def __init__(self, job: Any):
        self._job = job

    def is_over(self) -> bool:
        return self._job.done()

    def reason(self) -> str:
        error = self._job.exception()
        return "" if error is None else _reason_of(error)

    def cancel(self) -> None:
        self._job.cancel()


def _submitted(calls: list[Call], options: Options, folder: Path) -> list[_Submitted]:
    library = _library("submitit", "slurm")
    try:
        executor = library.AutoExecutor(folder=folder / "jobs", cluster=_SCHEDULER)
        executor.update_parameters(**{"name": "cartok", **options})
    except (RuntimeError, NameError, AssertionError, TypeError, ValueError) as error:
        raise UserError(
            f"jobs go to Slurm by submitit, which says: {str(error).splitlines()[0]}"
        ) from None
    with executor.batch():
        jobs = [executor.submit(function, *arguments) for function, arguments in calls]
    return [_Submitted(job) for job in jobs]


class _OnRay:
    """A call of a Ray cluster's."""

    def __init__(self, ray: Any, reference: Any):
        self._ray, self._reference = ray, reference

    def is_over(self) -> bool:
        return bool(self._ray.wait([self._reference], timeout=0)[0])

    def reason(self) -> str:
        try:
            self._ray.get(self._reference)
        except Exception as error:
            return _reason_of(error)
        return ""

    def cancel(self) -> None:
        self._ray.cancel(self._reference)


def _given_to_ray(calls: list[Call], options: Options, folder: Path) -> list[_OnRay]:
    ray = _library("ray", "ray")
    options = dict(options)
    address = options.pop("address", None)
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        remote = {function: ray.remote(**options)(function) if options else ray.remote(function)
                  for function, _ in calls}  # fmt: skip
    except (ConnectionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"runs go to Ray, which says: {str(error).splitlines()[0]}") from None
    return [_OnRay(ray, remote[function].remote(*arguments)) for function, arguments in calls]


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"--on {extra} needs {name}, which is not installed; pip install 'cartok[{extra}]'"
        ) from None


def _reason_of(error: BaseException) -> str:
    """The line of a trace that names what was raised; the last one, if none does."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit|Interrupt)\b", line)]
    return (named or lines or [type(error).__name__])[-1]
