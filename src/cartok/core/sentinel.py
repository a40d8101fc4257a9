"""What follows a step that is not finite: skip the batch, go back, or stop, alike on all ranks.

The step itself has moved nothing by then, under either policy. Under ``recover`` the training goes
on with the next batch, at most ``MOST_SKIPS`` times since the last scheduled checkpoint or
rollback; the next time it goes back to the newest checkpoint, at most ``MOST_ROLLBACKS`` times in a
training, and on from there with batches not yet drawn; after that, or without a checkpoint, it
stops.
"""

from typing import NoReturn

from cartok.core.checkpoint import TrainingState, load_state
from cartok.core.fault import Fault, remove_fault, write_fault
from cartok.core.job import LoopConfig, NonFiniteError
from cartok.core.run import Run, read_log

MOST_SKIPS = 3
MOST_ROLLBACKS = 1


class Sentinel:
    """Decides, and counts; ranks that see the same faults decide alike."""

    def __init__(self, config: LoopConfig, run: Run):
        self._config, self._run = config, run
        self.counts = {"skips": 0, "rollbacks": 0}
        """Of the whole training; saved with it."""
        self.skips_since = 0
        """Since the last scheduled checkpoint or rollback; saved, too."""

    def answer(self, fault: Fault) -> TrainingState | None:
        """The state to go back to, or ``None`` if the batch is just skipped.

        Raises:
            NonFiniteError: neither is allowed; ``fault.md`` in the run's folder tells more.
        """
        recovers = self._config.on_non_finite == "recover"
        if recovers and self.skips_since < MOST_SKIPS:
            self.skips_since += 1
            self.counts["skips"] += 1
            return None
        can_go_back = recovers and self.counts["rollbacks"] < MOST_ROLLBACKS
        state = load_state(self._run.checkpoints) if can_go_back else None
        if state is None:
            self._stop(fault)
        self.skips_since = 0
        self.counts["rollbacks"] += 1
        return state

    def forgive(self) -> None:
        """A scheduled checkpoint follows: as many batches may be skipped again."""
        self.skips_since = 0

    def settle(self) -> None:
        """A checkpoint was saved: an old fault's page goes."""
        if self._run.world.is_main:
            remove_fault(self._run.folder)

    def values_of(self, fault: Fault) -> dict[str, float]:
        """What the log says of a fault that was answered; what was not finite becomes null."""
        values = fault.terms | {f"gradient/{k}": v for k, v in fault.gradient_norms.items()}
        counts = {f"fault/{name}": float(count) for name, count in self.counts.items()}
        return counts | {name: values[name] for name in fault.culprits}

    def _stop(self, fault: Fault) -> NoReturn:
        if self._run.world.is_main:
            lines = read_log(self._run.folder)
            write_fault(self._run.folder, fault, self._config, self.counts, lines)
        advice = (
            "lower the learning rate, or look at those samples"
            if fault.is_in_a_loss
            else "lower the learning rate or set a clip"
        )
        tried = ", ".join(f"{name} before: {count}" for name, count in self.counts.items())
        before = f" ({tried})" if self._config.on_non_finite == "recover" else ""
        raise NonFiniteError(
            f"{fault.words}; no weight was moved{before}; {advice}; "
            f"{self._run.folder / 'fault.md'} tells more"
        )
