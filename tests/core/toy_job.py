"""A small job of two phases and three movers, and a process that trains it apart from the tests.

Run as a script it is a nursery: it imports torch once, and for each line of JSON it reads it forks
the children that the line describes and answers with how they ended. So a test can kill a training
for a tenth of a second instead of the seconds that a new interpreter takes.
"""

import errno
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cartok.core import checkpoint, files
from cartok.core.checkpoint import TrainingState, put_optimizer, save_state, tensors_of_optimizer
from cartok.core.config import config
from cartok.core.errors import UserError
from cartok.core.job import Evaluation, LoopConfig, Mover, NonFiniteError, Phase, Terms
from cartok.core.loop import Outcome, fit
from cartok.core.optim import OptimConfig, adamw_of, rate_of
from cartok.core.parallel import World, backward, clip_gradients, whole
from cartok.core.run import Run

WIDTH = 4

LOOP = {"steps": 12, "batch": 4, "log_every": 2, "save_every": 3, "ema": 0.75, "best": "held/loss",
        "trackers": ()}  # fmt: skip
"""Of a toy that is evaluated; ``best`` is '' where it is not."""


@config
class ToyConfig:
    """What decides a toy training."""

    loop: LoopConfig
    optim: OptimConfig = OptimConfig(lr=1e-2, warmup_from=1e-3, warmup_steps=4, schedule="cosine")
    dropout: float = 0.25
    critic_from: int = 0
    spoilt: tuple[int, ...] = ()
    """Samples for which something is not finite."""
    fault: str = "nan"
    """What that is: 'nan' or 'inf', of the loss 'please'; or 'gradient', of the codec alone."""
    double: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Samples:
    """The samples of one part of a batch, each a function of its place in the order."""

    indices: Tensor
    values: Tensor


@dataclass(frozen=True)
class Forward:
    """What both phases share."""

    is_spoilt: bool
    values: Tensor
    hidden: Tensor
    back: Tensor


class Codec(nn.Module):
    """There and back, with noise in between and a count of its steps."""

    def __init__(self, dropout: float):
        super().__init__()
        self.there, self.back = nn.Linear(WIDTH, 6), nn.Linear(6, WIDTH)
        self.noise = nn.Dropout(dropout)
        self.register_buffer("steps", torch.tensor(0))


class ToyJob:
    """A codec with a predictor of its latents, and a critic: the shape of the tokenizer's job."""

    averaged = ("codec",)

    def __init__(self, config: ToyConfig, world: World | None = None):
        self.config, self.world = config, world or World()
        torch.manual_seed(config.seed)
        dtype = torch.float64 if config.double else torch.float32
        made = {"codec": Codec(config.dropout), "predictor": nn.Linear(6, 6),
                "critic": nn.Linear(WIDTH, 1)}  # fmt: skip
        self.modules = {k: self.world.shard(module.to(dtype)) for k, module in made.items()}
        self.codec, self.predictor, self.critic = self.modules.values()
        self.phases = (
            Phase("codec", (self._mover("codec"), self._mover("predictor")), self.codec_terms),
            Phase("critic", (self._mover("critic"),), self.critic_terms,
                  lambda step: step >= config.critic_from),
        )  # fmt: skip
        self.seen: list[int] = []
        self.trace: list[dict[str, Tensor]] = [weights_of(self)]
        self.in_prepare: Callable[[int], None] = lambda step: None
        torch.manual_seed(config.seed + 1 + self.world.rank)

    def batches(self, start: int) -> Iterator[Samples]:
        """This rank's share of every part, in order."""
        loop, world = self.config.loop, self.world
        share = loop.batch // loop.accumulate // world.size
        for first in itertools.count(start + world.rank * share, share * world.size):
            indices = torch.arange(first, first + share)
            self.seen += indices.tolist()
            yield Samples(indices, sample_values(indices).to(self.codec.there.weight.dtype))

    def prepare(self, batch: Samples, step: int) -> Forward:
        """There and back."""
        self.in_prepare(step)
        hidden = self.codec.noise(self.codec.there(batch.values).tanh())
        is_spoilt = not set(self.config.spoilt).isdisjoint(batch.indices.tolist())
        return Forward(is_spoilt, batch.values, hidden, self.codec.back(hidden))

    def fixed_at(self, step: int) -> int:
        """How much the critic counts, to have something that changes once."""
        return step >= self.config.critic_from

    def codec_terms(self, forward: Forward, step: int) -> Terms:
        """Rebuild, be predictable, please the critic; weights that float32 holds exactly."""
        please = -self.critic(forward.back).mean()
        if forward.is_spoilt and self.config.fault == "gradient":
            please = please + (forward.back.sum() * 0.0).sqrt()  # 0, with a slope of inf * 0
        elif forward.is_spoilt:
            please = please + float(self.config.fault)  # the gradient stays finite
        return Terms(
            losses={
                "rebuild": (forward.back - forward.values).square().mean(),
                "predict": (self.predictor(forward.hidden) - forward.hidden).square().mean(),
                "please": please,
                "unused": forward.back.sum() * float("nan"),
            },
            weights={"rebuild": 1.0, "predict": 0.5, "please": 0.25, "unused": 0.0},
            watched={"size": forward.hidden.square().mean()},
        )

    def critic_terms(self, forward: Forward, step: int) -> Terms:
        """The hinge, on purpose without a ``detach``: the loop alone keeps the codec out of it."""
        real, fake = self.critic(forward.values), self.critic(forward.back)
        hinge = torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()
        return Terms({"hinge": hinge}, {"hinge": 0.5})

    def after_step(self, outcomes: list[Forward], step: int) -> None:
        """Counts, and remembers the weights."""
        self.codec.steps += 1
        self.trace.append(weights_of(self))

    def _mover(self, name: str) -> Mover:
        optim = self.config.optim
        optimizer = adamw_of(optim, self.modules[name].parameters())
        rate = rate_of(optim, self.config.loop.steps)
        return Mover(name, self.modules[name], optimizer, rate, optim.clip)


def sample_values(indices: Tensor) -> Tensor:
    """Each sample is noise of its own seed."""
    rows = [torch.randn(WIDTH, generator=torch.Generator().manual_seed(int(i))) for i in indices]
    return torch.stack(rows)


def weights_of(job: ToyJob) -> dict[str, Tensor]:
    """A copy of all state of a job's modules."""
    return {
        f"{name}/{key}": value.detach().clone()
        for name, module in job.modules.items()
        for key, value in module.state_dict().items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """True if two dicts of tensors agree in every bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Over all elements of two dicts of tensors."""
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)


def held_out(job: ToyJob, every: int) -> tuple[Evaluation, ...]:
    """A loss on samples the training never sees; it draws noise, as evaluations do."""

    def measure(step: int) -> dict[str, float]:
        values = sample_values(torch.arange(-8, 0)) + 0.1 * torch.randn(8, WIDTH)
        values = values.to(job.codec.there.weight.dtype)
        back = job.codec.back(job.codec.noise(job.codec.there(values).tanh()))
        return {"loss": float((back - values).square().mean())}

    return (Evaluation("held", every, measure),)


@dataclass
class Errand:
    """What a child is to do."""

    out: str
    loop: dict
    toy: dict = field(default_factory=dict)
    evaluate_every: int = 0
    resume: bool = False
    strike: str = ""
    """Where the child sends a signal to itself; see ``_arm``."""
    at: int = 0
    signal: str = "SIGKILL"


def train(errand: Errand, world: World | None = None) -> tuple[ToyJob, Outcome, Run]:
    """Trains a toy in a run folder as the errand says."""
    config = ToyConfig(loop=LoopConfig(**errand.loop), **errand.toy)
    run = Run.open(errand.out, config, kind="toy", world=world, resume=errand.resume)
    job = ToyJob(config, run.world)
    if errand.strike:
        _arm(job, errand)
    evaluations = held_out(job, errand.evaluate_every) if errand.evaluate_every else ()
    outcome = fit(job, config.loop, run, evaluations=evaluations)
    if outcome.finished:
        run.finish(steps=outcome.step, skips=outcome.skips, rollbacks=outcome.rollbacks)
    run.world.leave()
    return job, outcome, run


def talk(errand: Errand, world: World) -> None:
    """Writes down what a rank hears from the others."""
    module = nn.BatchNorm1d(2)
    nn.init.constant_(module.weight, float(world.rank + 1))
    module = world.shard(module)
    ours = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    ours.grad = torch.arange(3, dtype=torch.float64) * (world.rank + 1)
    world.average_gradients([ours, nn.Parameter(torch.zeros(1))])
    heard = {
        "is_main": world.is_main,
        "any": [world.any(world.rank == 1), world.any(world.rank == 0), world.any(False)],
        "mean": world.mean(torch.tensor([1.0, 4.0]) * world.rank).tolist(),
        "gather": world.gather(torch.tensor([[world.rank, 7]])).tolist(),
        "weight": module.weight.tolist(),
        "gradient": ours.grad.tolist(),
    }
    world.barrier()
    Path(errand.out, f"{world.rank}.json").write_text(json.dumps(heard))
    world.leave()


def divide(errand: Errand, world: World) -> None:
    """Divides a network among the ranks, moves it once, and stores its state, if that goes well."""
    torch.manual_seed(world.rank)  # so that it is equal only once it is made so
    net = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    start = {k: v.clone() for k, v in net.state_dict().items()}
    net = world.shard(net, "divided", units=[net[0]])
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.25)
    values = sample_values(torch.arange(world.rank, 12, world.size)).double()
    moved = list(net.parameters())
    backward(net(values).square().mean(), moved)
    world.average_gradients(moved)
    norm = clip_gradients(moved, 0.1)
    optimizer.step()
    moments = tensors_of_optimizer(optimizer)
    again = torch.optim.AdamW(net.parameters(), lr=0.25)
    put_optimizer(again, {k: whole(v) for k, v in moments.items()})
    tensors = {f"net/{k}": v for k, v in net.state_dict().items()}
    tensors |= {f"optimizer/{k}": v for k, v in tensors_of_optimizer(again).items()}
    tensors["norm"] = norm
    gathered = world.gathered(net)
    if world.is_main:
        save_file(start | {f"moved/{k}": v for k, v in gathered.items()}, f"{errand.out}/seen")
    assert bool(gathered) == world.is_main
    folder = Path(errand.out, "checkpoints")
    for step in range(1, 3):
        if step == 2 and errand.strike:
            _spoil_writing(errand, world)
            folder = Path(errand.out, "another") if _is_apart(errand, world) else folder
        save_state(folder, TrainingState(step, tensors), world)
    world.leave()


def _is_apart(errand: Errand, world: World) -> bool:
    """True where a rank's folder is no other rank's."""
    return errand.strike == "apart" and world.rank == errand.at


def _spoil_writing(errand: Errand, world: World) -> None:
    """On a rank: its disk is full, also as late as when all is written, or it is killed."""
    plain, plain_sync = checkpoint.save_file, files._sync

    def sync(path) -> None:
        if path.is_dir():
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        plain_sync(path)

    def write(tensors, path) -> None:
        if world.rank != errand.at or errand.strike in ("late", "apart"):
            plain(tensors, path)
        elif errand.strike == "full":
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        elif errand.strike == "killed":
            Path(path).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = write
    if errand.strike == "late":
        files._sync = sync


def refuse(errand: Errand, world: World) -> None:
    """Writes down how a rank is refused when the run's folder is not empty."""
    try:
        Run.open(errand.out, ToyConfig(loop=LoopConfig(**errand.loop)), kind="toy", world=world)
    except UserError as error:
        Path(errand.out, f"{world.rank}.txt").write_text(str(error))
    world.leave()


def take_turns(errand: Errand, world: World) -> None:
    """Writes down which ranks found a file that the main one makes, or why a rank gave up."""
    path = Path(errand.out, "made")

    def make() -> str:
        if world.is_main and errand.strike:
            raise OSError("no network")
        found = path.exists()
        path.touch()
        return f"found {found}"

    try:
        said = world.first(make)
    except (OSError, UserError) as error:
        said = f"{type(error).__name__}: {error}"
    Path(errand.out, f"{world.rank}.txt").write_text(said)
    world.barrier()  # the ranks are still in step
    world.leave()


def _arm(job: ToyJob, errand: Errand) -> None:
    """Makes the training signal itself in step or at sample ``at``, or in its ``at``-th saving."""
    calls = itertools.count()

    def strike() -> None:
        os.kill(os.getpid(), signal.Signals[errand.signal])

    def prepare(batch: Samples, step: int, plain=job.prepare) -> Forward:
        if errand.at in batch.indices:
            strike()
        return plain(batch, step)

    def poison() -> None:
        if not job.world.is_main:
            nn.init.constant_(job.codec.there.bias, float("nan"))

    def replace(source, target, plain=os.replace) -> None:
        due = Path(target).name.startswith("step-") and next(calls) == errand.at
        if due and errand.strike == "staged":
            strike()
        plain(source, target)
        if due:
            strike()

    def write_json(path, value, plain=checkpoint.write_json) -> None:
        if next(calls) == errand.at:
            strike()
        plain(path, value)

    def remove(path, plain=checkpoint.remove) -> None:
        if next(calls) == errand.at:
            (path / "state.json").unlink()
            strike()
        plain(path)

    if errand.strike == "step" or errand.strike == f"rank {job.world.rank}":
        job.in_prepare = lambda step: strike() if step == errand.at else None
    elif errand.strike == "sample":
        job.prepare = prepare
    elif errand.strike == "poison":
        job.in_prepare = lambda step: poison() if step == errand.at else None
    elif errand.strike in ("staged", "renamed"):
        files.os.replace = replace
    elif errand.strike == "half written":
        checkpoint.write_json = write_json
    elif errand.strike == "half removed":
        checkpoint.remove = remove


def _child(errand: dict) -> None:
    torch.set_num_threads(1)
    call = errand.pop("call", "train")
    world = World.join("cpu") if "RANK" in os.environ else None
    globals()[call](Errand(**errand), world)


def _fork(errand: dict, ranks: int, port: int) -> list[int]:
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child:
            children.append(child)
            continue
        try:
            if ranks > 1:
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks),
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
            _child(errand)
        except NonFiniteError:
            os._exit(3)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            Path(errand["out"], f"{rank}.error").write_text(f"{type(error).__name__}: {error}")
            os._exit(2)
        os._exit(0)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    ToyJob(ToyConfig(loop=LoopConfig(steps=1, batch=1)))  # so that torch imports all it needs once
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(_fork(asked["errand"], asked["ranks"], asked["port"])), flush=True)
