"""How fast a tokenizer trains, encodes and decodes on a device, in one run and beside its limits.

Everything is measured in one process, since clocks drift and cards differ: the device's ceilings
before and after; the real training step, with and without the regulariser, in turns; and both ways
through the codec. Pictures are noise that lies on the device. Started by ``torchrun``, every rank
measures its own device, all at once, and then they train together.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from cartok.core.config import config, dict_of
from cartok.core.errors import UserError
from cartok.core.files import write_text
from cartok.core.parallel import World
from cartok.core.precision import Precision, computing_in
from cartok.core.run import provenance
from cartok.core.shapes import Pixels, image_of_pixels
from cartok.lab.anatomy import anatomy_of, kernels_of_a_step
from cartok.lab.goals import Goal, Numbers, Say, goals_at
from cartok.lab.growth import HEAD, Grown, TooLarge, grown, growth_of
from cartok.lab.steps import REGULARISER, Pace, Timed, all_at_once, job_of, noise, time_steps
from cartok.lab.timing import (
    GIB,
    Ceilings,
    ceilings_of,
    clear_memory,
    enough_memory,
    peak_of,
    seconds_of,
)
from cartok.recipes import recipe_of
from cartok.recipes.tokenizer import TOKENIZERS, causal_16k, causal_toy
from cartok.tokenizer.model import Tokenizer
from cartok.tokenizer.setup import TokenizerRun
from cartok.tokenizer.train import TokenizerJob

_TINY_SIZE = 32
_ROUNDS = 2  # in which the variants of a step take turns, so that a drifting clock favours none


@config
class BenchConfig:
    """What is measured of a tokenizer."""

    recipe: str = "causal-16k"
    batch: int = 64
    """Pictures of a training step."""
    inference_batch: int = 128
    """Pictures that are encoded or decoded at once."""
    perceptual: Literal["random-vgg", "recipe"] = "random-vgg"
    """LPIPS on a VGG16 of random weights, which costs what the published one costs and needs no
    download; or what the recipe says."""
    recompute_levels: int = 0
    """Of the codec's levels, from the finest on, whose activations are not kept: less memory."""
    growth: bool = False
    """Also train at 1.25 and 1.5 times the side, and with a 16th and 8 times the codes."""
    tiny: bool = False
    """Pictures of 32 pixels, four at once unless you say how many, and a codec of a few channels:
    shows on any device that all of it runs; its numbers mean nothing."""

    def __post_init__(self):
        if min(self.batch, self.inference_batch) < 1 or self.recompute_levels < 0:
            raise ValueError(
                "batch and inference_batch are 1 or more, recompute_levels 0 or more: "
                f"{self.batch}, {self.inference_batch}, {self.recompute_levels}"
            )


def usual_bench(tiny: bool) -> BenchConfig:
    """What is measured where nothing else is asked for."""
    return BenchConfig(tiny=True, batch=4, inference_batch=4) if tiny else BenchConfig()


def bench_tokenizer(
    bench: BenchConfig, world: World, say: Say, profile: Path | None = None
) -> dict[str, Any]:
    """Measures, says each number when it is known, and returns all as plain JSON values.

    ``profile`` is a file that a table of a step's kernels goes to. Shares are of the ceiling that
    was measured before.

    Raises:
        UserError: there is no such recipe; its weights are missing; the device has too little
            memory, or is no GPU and the bench not ``tiny``.
    """
    precision: Precision = "bf16" if world.device.type == "cuda" else "fp32"
    run = run_of(bench, world.device, precision)
    if world.device.type != "cuda" and not bench.tiny:
        raise UserError(
            "a bench of this size needs a CUDA GPU and would take an hour without one, but the "
            f"device is {world.device.type}; give --tiny to see that it runs"
        )
    return _Bench(bench, run, world, say).go(profile)


def run_of(bench: BenchConfig, device: torch.device, precision: Precision) -> TokenizerRun:
    """The recipe with all its parts at work from the first step on, compiled on a GPU.

    Raises:
        UserError: there is no such recipe; names the nearest.
    """
    run = recipe_of(TOKENIZERS, bench.recipe)
    run = replace(run, recompute_levels=bench.recompute_levels, compile=device.type == "cuda")
    if bench.tiny:
        toy = causal_toy()
        causal = replace(
            run.causal,
            transformer=toy.causal.transformer,
            twin_transformer=toy.causal.twin_transformer,
        )
        critic = replace(run.losses.critic, channels=8, layers=2)
        run = replace(
            run,
            view=replace(run.view, size=_TINY_SIZE),
            model=toy.model,
            causal=causal,
            losses=replace(run.losses, critic=critic),
        )
    return all_at_once(run, bench.batch, precision)


def why_not_compared(bench: BenchConfig, run: TokenizerRun, device: str) -> str:
    """Why the goals say nothing of what this bench measures; '' if they do."""
    if bench.tiny:
        return "a tiny codec has nothing to be compared with"
    if "H100" not in device:
        return f"targets and peer were set on an H100; there are none for {device}"
    usual = all_at_once(causal_16k(), bench.batch, run.loop.precision)
    if (run.model, run.view, run.losses) != (usual.model, usual.view, usual.losses):
        return "targets and peer are of causal-16k and its baseline"
    return ""


class _Bench:
    def __init__(self, bench: BenchConfig, run: TokenizerRun, world: World, say: Say):
        self.bench, self.run, self.world, self.say = bench, run, world, say
        self.device, self.precision = world.device, run.loop.precision
        self.alone = World(device=world.device)
        self.pace = Pace(warm=1, counted=2) if bench.tiny else Pace(warm=5, counted=12)
        self.provenance = provenance(world)
        self.why_not = why_not_compared(bench, run, self.provenance["device"])
        goals: dict[str, Goal] = {} if self.why_not else goals_at(bench.batch, world.size)
        self.numbers = Numbers(say, goals)
        self.add = self.numbers.add

    def go(self, profile: Path | None) -> dict[str, Any]:
        bench = self.bench
        self.say(self.title)
        self.say(self.why_not or "the peer is LlamaGen, whose training step has a batch of 32")
        ceilings = self.ceilings("before")
        with enough_memory(
            bench.batch, _fewer("--batch", bench.batch) + " or --recompute-levels 1"
        ):
            job = job_of(self.run, self.alone, bench.perceptual == "random-vgg")
            pixels = noise(bench.batch, self.run.view.size, self.device)
            first = grown(job, bench.batch, self.training(job, pixels, ceilings))
            if profile and self.world.is_main:
                write_text(profile, anatomy_of(kernels_of_a_step(job, pixels), self.title))
                self.say(f"kernels of a step: {profile}")
        tokenizer = job.tokenizer.eval()
        del job, pixels  # and with it the optimizers' memory
        at_once = bench.inference_batch
        with enough_memory(at_once, _fewer("--inference-batch", at_once)):
            self.inference(tokenizer, ceilings)
        del tokenizer
        if self.world.size > 1:
            self.together(first.images_per_second)
        growth = self.growth(first) if bench.growth else []
        self.ceilings("after")
        return {
            "subject": "tokenizer",
            "bench": dict_of(bench),
            "run": dict_of(self.run),
            "why_not_compared": self.why_not,
            "numbers": self.numbers.to_json(),
            "growth": [asdict(row) for row in growth],
            "provenance": self.provenance,
        }

    @property
    def title(self) -> str:
        tiny = " made tiny" if self.bench.tiny else ""
        return (
            f"{self.bench.recipe}{tiny}, {self.bench.batch} pictures of {self.run.view.size} "
            f"pixels, {self.precision}, {self.provenance['device']}, "
            f"torch {self.provenance['torch']}"
        )

    def ceilings(self, when: str) -> Ceilings:
        clear_memory(self.device)
        found = ceilings_of(self.device, self.bench.tiny)
        self.add(f"ceiling.matmul_{when}", found.matmul / 1e12, "TFLOP/s")
        self.add(f"ceiling.copy_{when}", found.copy / 1e12, "TB/s")
        return found

    def training(self, job: TokenizerJob, pixels: Pixels, ceilings: Ceilings) -> Timed:
        """The whole step, and what it takes without parts of the regulariser."""
        there = tuple(name for name in REGULARISER if name in job.modules)
        variants: dict[str, tuple[str, ...]] = {"whole": ()}
        if "twin" in there:
            variants["without_twin"] = ("twin",)
        if there:
            variants["without_regulariser"] = there
        times = {
            name: time_steps(job, pixels, self.pace, names) for name, names in variants.items()
        }
        start = times["whole"].peak
        for _ in range(_ROUNDS - 1):
            for name, names in variants.items():
                later = time_steps(job, pixels, self.pace, names)
                times[name] = times[name].with_later(later)
        whole = times.pop("whole")
        self.rates(
            "training", len(pixels), whole.seconds, job.flops.of(1, self.run.losses), ceilings
        )
        self.add("training.memory", whole.peak.allocated / GIB, "GiB")
        self.add("training.memory_reserved", whole.peak.reserved / GIB, "GiB")
        self.add("training.memory_at_start", start.allocated / GIB, "GiB")
        self.add("training.first_step", whole.first, "s")
        self.overheads(whole, times)
        return whole

    def overheads(self, whole: Timed, times: dict[str, Timed]) -> None:
        """What the regulariser adds to a step that has none, and its twin's part of that."""
        for name, timed in times.items():
            self.add(f"training.step_{name}", timed.seconds * 1000, "ms")
        bare = times.get("without_regulariser", whole).seconds
        self.add("training.speed_without_regulariser", self.bench.batch / bare, "images/s")
        if "without_regulariser" not in times:
            return
        self.add("regulariser.overhead", 100 * (whole.seconds - bare) / bare, "%")
        if "without_twin" in times:
            twin = whole.seconds - times["without_twin"].seconds
            self.add("regulariser.twin", 100 * twin / bare, "%")

    def inference(self, tokenizer: Tokenizer, ceilings: Ceilings) -> None:
        """Pictures to tokens, and tokens to pictures."""
        num, size = self.bench.inference_batch, self.run.view.size
        flops = inference_flops(tokenizer, size)
        image = image_of_pixels(noise(num, size, self.device))
        with computing_in(self.precision, self.device):
            tokens = tokenizer.tokens_of(image)
            actions: dict[str, Callable[[], object]] = {
                "encode": lambda: tokenizer.tokens_of(image),
                "decode": lambda: tokenizer.image_of(tokens),
            }
            for name, action in actions.items():
                clear_memory(self.device)
                seconds = seconds_of(action, self.device, calls=1 if self.bench.tiny else 2)
                self.rates(name, num, seconds, flops[name], ceilings)
                self.add(f"{name}.memory", peak_of(self.device).allocated / GIB, "GiB")

    def together(self, speed_alone: float) -> None:
        """All ranks train one tokenizer, each on a batch as large as it had alone."""
        num, ranks = self.bench.batch, self.world.size
        loop = replace(self.run.loop, batch=num * ranks)
        run = replace(self.run, loop=loop)
        with enough_memory(num, _fewer("--batch", num) + " or --recompute-levels 1"):
            job = job_of(run, self.world, self.bench.perceptual == "random-vgg")
            timed = time_steps(job, noise(num, run.view.size, self.device), self.pace)
        speed = num * ranks / timed.seconds
        alone = float(self.world.mean(torch.tensor(speed_alone, device=self.device)))
        self.add("together.ranks", ranks, "")
        self.add("together.speed", speed, "images/s")
        self.add("together.step", timed.seconds * 1000, "ms")
        self.add("together.memory", timed.peak.allocated / GIB, "GiB")
        self.add("together.speedup", speed / alone, "x one rank")

    def growth(self, first: Grown) -> list[Grown | TooLarge]:
        self.say(HEAD)
        self.say(first.row)
        is_random = self.bench.perceptual == "random-vgg"
        return [first, *growth_of(self.run, self.alone, self.pace, is_random, self.say)]

    def rates(self, name: str, num: int, seconds: float, flops: float, ceilings: Ceilings) -> None:
        """Numbers of an action on ``num`` pictures that costs ``flops`` a picture."""
        self.add(f"{name}.speed", num / seconds, "images/s")
        self.add(f"{name}.step", seconds * 1000, "ms")
        self.add(f"{name}.flops", flops / 1e9, "GFLOP/image")
        self.add(f"{name}.compute", num * flops / seconds / 1e12, "TFLOP/s")
        self.add(f"{name}.share", 100 * num * flops / seconds / ceilings.matmul, "% of matmul")


@torch.no_grad()
def inference_flops(tokenizer: Tokenizer, size: int) -> dict[str, float]:
    """FLOPs a picture of encoding and of decoding, counted on shapes alone."""
    shapes = copy.deepcopy(tokenizer).to("meta")
    image = torch.zeros(1, 3, size, size, device="meta")
    with FlopCounterMode(display=False) as encoding:
        encoded = shapes.encode(image)
    with FlopCounterMode(display=False) as decoding:
        shapes.decode(encoded.quantized.codes)
    counters = {"encode": encoding, "decode": decoding}
    return {name: float(counter.get_total_flops()) for name, counter in counters.items()}


def _fewer(option: str, num: int) -> str:
    return f"give {option} {max(1, num // 2)}"
