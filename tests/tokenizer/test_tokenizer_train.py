import json
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cartok.core.clock import Clock
from cartok.core.config import ConfigError, dict_of
from cartok.core.loop import Outcome, fit
from cartok.core.parallel import World
from cartok.core.run import Run, read_log
from cartok.data.views import View
from cartok.recipes.tokenizer import baseline_toy, causal_toy, without_causal
from cartok.tokenizer.critic import CriticConfig
from cartok.tokenizer.model import Tokenizer
from cartok.tokenizer.train import TokenizerJob, TokenizerRun, train_tokenizer

TWO_RANKS = Path(__file__).with_name("two_ranks.py")


def toy(steps=20, *, causal=None, losses=None, model=None, loop=None, **changes) -> TokenizerRun:
    """causal-toy with changes; ``steps`` are those taken, whatever the regulariser costs."""
    run = causal_toy()
    quantizer = replace(run.model.quantizer, **(model or {}))
    return replace(
        run,
        **{"equal_compute": False} | changes,
        causal=replace(run.causal, **(causal or {})),
        losses=replace(run.losses, **(losses or {})),
        model=replace(run.model, quantizer=quantizer),
        loop=replace(run.loop, steps=steps, save_every=5, **(loop or {})),
    )


@pytest.fixture
def train(pictures, tmp_path):
    """A function that trains a recipe in a folder of its own and returns the job."""

    def train(config: TokenizerRun, name: str = "", **given) -> TokenizerJob:
        job = TokenizerJob(config, pictures, World())
        folder = tmp_path / (name or f"run-{len(list(tmp_path.iterdir()))}")
        run = Run.open(folder, config, kind="tokenizer", resume=True)
        job.outcome = fit(job, replace(config.loop, steps=job.steps), run, **given)
        job.folder = folder
        return job

    return train


def tensors_of(job: TokenizerJob, *names: str) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value.clone()
        for name in names or job.modules
        for key, value in job.modules[name].state_dict().items()
    }


def alike(first: TokenizerJob, second: TokenizerJob) -> bool:
    """True if both ended with the same tokenizer, bit for bit."""
    pair = (tensors_of(job, "tokenizer").values() for job in (first, second))
    return all(torch.equal(*values) for values in zip(*pair, strict=True))


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    different = [name for name, value in wanted.items() if not torch.equal(found[name], value)]
    assert different == []


# ------------------------------------------------------------------ phases


def test_the_movers_hold_every_parameter_once_and_nothing_else(pictures):
    job = TokenizerJob(toy(), pictures, World())
    assert [(phase.name, [mover.name for mover in phase.movers]) for phase in job.phases] == [
        ("codec", ["tokenizer", "causal", "twin"]), ("critic", ["critic"]),
    ]  # fmt: skip
    movers = [mover for phase in job.phases for mover in phase.movers]
    moved = [id(p) for mover in movers for p in mover.parameters]
    assert sorted(moved) == sorted(id(p) for m in job.modules.values() for p in m.parameters())
    for mover in movers:
        held = [id(p) for group in mover.optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in mover.parameters)


def test_gradients_of_each_phase_reach_all_parameters_of_its_movers_and_no_other(pictures):
    job = TokenizerJob(toy(losses={"critic": CriticConfig(channels=8, layers=2, start=0, ramp=0)},
                           causal={"anneal_steps": 0}), pictures, World())  # fmt: skip
    # At chance both sides of the hinge pull at the last bias alike: put the verdicts past a margin.
    torch.nn.init.constant_(job.parts.critic.layers[-1].bias, 2.0)
    outcome = job.prepare(next(job.batches(0)), 1)
    for phase in job.phases:
        moved = {id(p) for mover in phase.movers for p in mover.parameters}
        phase.objective(outcome, 1).total.backward(
            inputs=[p for mover in phase.movers for p in mover.parameters]
        )
        for name, module in job.modules.items():
            for key, parameter in module.named_parameters():
                has = parameter.grad is not None and parameter.grad.abs().max() > 0
                assert has == (id(parameter) in moved), f"{phase.name}: {name}.{key}"
                parameter.grad = None


def test_the_critics_phase_computes_no_gradient_for_the_codec(pictures):
    job = TokenizerJob(toy(), pictures, World())
    outcome = job.prepare(next(job.batches(0)), 9)
    job.phases[1].objective(outcome, 9).total.backward()  # without being told whom to move
    assert all(p.grad is None for p in job.tokenizer.parameters())


def test_the_critic_learns_from_its_warm_up_on_and_not_before(train, pictures):
    untouched = tensors_of(TokenizerJob(toy(3), pictures, World()), "critic")
    assert_equal(tensors_of(train(toy(3)), "critic"), untouched)  # start 6, warm 3
    moved = tensors_of(train(toy(4)), "critic")
    assert not torch.equal(moved["critic/layers.0.weight"], untouched["critic/layers.0.weight"])


def test_the_codec_hears_the_critic_only_after_its_start(train):
    silent = {"critic": CriticConfig(weight=0.0)}
    # Steps 0 to 6 are taken without it: at its start, step 6, the ramp is still at 0.
    for steps, same in ((7, True), (8, False)):
        with_critic, without = train(toy(steps)), train(toy(steps, losses=silent))
        assert without.parts.critic is None
        assert alike(with_critic, without) is same


# ------------------------------------------------------------------ the pair


def test_the_twin_starts_from_bit_identical_weights(pictures):
    causal, baseline = (
        TokenizerJob(run, pictures, World()) for run in (causal_toy(), baseline_toy())
    )
    assert_equal(tensors_of(causal), tensors_of(baseline))
    other = TokenizerJob(replace(causal_toy(), seed=1), pictures, World())
    assert not torch.equal(other.tokenizer.quantizer.table, causal.tokenizer.quantizer.table)


def test_the_twin_sees_identical_pictures_in_every_epoch(pictures):
    causal, baseline = (
        TokenizerJob(run, pictures, World()) for run in (causal_toy(), baseline_toy())
    )
    streams = causal.batches(0), baseline.batches(0)
    for _ in range(2 * len(pictures) // 8 + 1):
        mine, other = (next(stream) for stream in streams)
        assert torch.equal(mine.image, other.image)
        assert torch.equal(mine.indices, other.indices)


def test_the_first_step_is_the_twins_and_the_second_is_not(train):
    # Lambda is 0 at step 0, where the anneal begins.
    for steps, same in ((1, True), (2, False)):
        assert alike(train(toy(steps)), train(without_causal(toy(steps)))) is same


def test_a_watching_predictor_changes_no_bit_of_the_baseline(train):
    run = without_causal(toy(6, losses={"critic": CriticConfig(weight=0.0)}))
    watching, alone = train(run), train(replace(run, causal=replace(run.causal, watch=False)))
    assert "causal" in watching.modules
    assert "causal" not in alone.modules
    assert_equal(tensors_of(watching, "tokenizer"), tensors_of(alone, "tokenizer"))
    log = read_log(watching.folder)
    assert log[-1]["codec/causal"] < log[0]["codec/causal"]  # and still it learns


def test_the_regulariser_pays_for_itself_with_steps(pictures):
    causal, baseline = (
        TokenizerJob(run, pictures, World()) for run in (causal_toy(), baseline_toy())
    )
    assert baseline.steps == 20
    assert causal.steps < 20
    losses = causal.config.losses
    assert causal.flops.of(causal.steps, losses) <= baseline.flops.of(20, losses)
    assert causal.flops.of(causal.steps + 1, losses) > baseline.flops.of(20, losses)
    assert TokenizerJob(toy(20), pictures, World()).steps == 20


def test_the_rate_is_the_schedules_over_the_steps_really_taken(pictures):
    job = TokenizerJob(causal_toy(), pictures, World())
    for mover in (mover for phase in job.phases for mover in phase.movers):
        assert mover.rate(job.steps) == pytest.approx(0, abs=1e-12)  # the cosine ends there
        assert mover.rate(job.steps - 1) > 0


# ------------------------------------------------------------------ parts and ranks

# Noise is drawn anew for every part and rank, so equality is asked without it.
PLAIN = {"reads": "latents"}


def assert_near(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Equal but for the order of sums."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        # A key's bias changes no attention: its gradient is rounding alone, which Adam scales up.
        limit = 1e-3 if name.endswith("qkv.bias") else 3e-5
        assert (found[name] - value).abs().max() <= limit, name


def test_what_a_step_takes_from_its_number_is_told_while_it_changes_and_then_still(pictures):
    critic = CriticConfig(channels=8, layers=2, start=4, ramp=3)
    job = TokenizerJob(
        toy(causal={"anneal_steps": 3}, losses={"critic": critic}), pictures, World()
    )
    told = [job.fixed_at(step) for step in range(12)]
    changes = [before != after for before, after in pairwise(told)]
    assert changes == [True] * 7 + [False] * 4


@pytest.mark.parametrize(
    "model",
    [
        {"codebook": "ema", "decay": 0.8, "revive_after": 1},
        {"init": "kmeans", "revive_after": 1},
        {"gradient": "rotation"},
    ],
    ids=["moving means", "k-means", "rotation"],
)
def test_all_state_stays_where_it_is_in_memory(pictures, tmp_path, model):
    """A recorded step reads it there; a tensor that took another's place would be missed."""
    job = TokenizerJob(toy(6, model=model, loop={"ema": 0.5}), pictures, World())

    def places():
        return {
            f"{name}/{key}": value.data_ptr()
            for name, module in job.modules.items()
            for key, value in module.state_dict().items()
        }

    before = places()
    fit(job, job.config.loop, Run.open(tmp_path / "run", job.config, kind="tokenizer"))
    assert places() == before


@pytest.mark.parametrize("revive_after", [0, 2])
def test_a_batch_in_two_parts_trains_like_a_whole_one(train, revive_after):
    whole, parts = (
        train(toy(10, causal=PLAIN, model={"revive_after": revive_after},
                  loop={"accumulate": accumulate}))
        for accumulate in (1, 2)
    )  # fmt: skip
    assert_near(tensors_of(parts), tensors_of(whole))
    for mine, other in zip(read_log(parts.folder), read_log(whole.folder), strict=True):
        for name in ("codec/pixel_l2", "codec/commitment", "codec/next_latent_mse"):
            assert mine[name] == pytest.approx(other[name], rel=1e-3)
    if revive_after:
        assert not (whole.tokenizer.quantizer.idle > 2).any()


ERRANDS = {
    "plain": {"causal": PLAIN, "model": {"revive_after": 0}},
    "revived": {"causal": PLAIN, "model": {"revive_after": 2}},
    "noisy": {"causal": {"reads": "noisy"}, "model": {"revive_after": 2}},
}


@pytest.fixture(scope="module")
def two_ranks(picture_folder, tmp_path_factory):
    """What both ranks of a training in two processes end with, by errand."""
    out = tmp_path_factory.mktemp("ranks")
    for name, changes in ERRANDS.items():
        text = json.dumps(dict_of(toy(8, **changes)))
        (out / f"{name}.json").write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configs = [str(out / f"{name}.json") for name in ERRANDS]
    done = subprocess.run(
        [sys.executable, str(TWO_RANKS), str(picture_folder), str(port), str(out), *configs],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return {
        name: [load_file(out / f"{name}-{rank}.safetensors") for rank in range(2)]
        for name in ERRANDS
    }


@pytest.mark.slow
@pytest.mark.parametrize("errand", ERRANDS)
def test_two_ranks_end_bit_identical_to_each_other(two_ranks, errand):
    assert_equal(*two_ranks[errand])


@pytest.mark.slow
@pytest.mark.parametrize("errand", ["plain", "revived"])
def test_two_ranks_train_like_one(two_ranks, train, errand):
    one = train(toy(8, **ERRANDS[errand]))
    assert_near(two_ranks[errand][0], tensors_of(one))


# ------------------------------------------------------------------ to the end, and again


class _StruckError(Exception):
    pass


@pytest.mark.parametrize("at", [3, 12])
def test_a_training_that_died_goes_on_to_the_same_end(train, at):
    def strike(done: int, words: str) -> None:
        if done == at:
            raise _StruckError

    whole = train(toy(16), "whole")
    with pytest.raises(_StruckError):
        train(toy(16), "struck", tick=strike)
    again = train(toy(16), "struck")
    assert again.outcome.step == 16
    assert_equal(tensors_of(again), tensors_of(whole))
    for mine, other in zip(again.phases, whole.phases, strict=True):
        for left, right in zip(mine.movers, other.movers, strict=True):
            states = left.optimizer.state_dict()["state"], right.optimizer.state_dict()["state"]
            for index, entry in states[1].items():
                for key, value in entry.items():
                    assert torch.equal(states[0][index][key], value), (left.name, index, key)
    logs = [
        [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in read_log(folder)]
        for folder in (again.folder, whole.folder)
    ]
    assert logs[0] == logs[1]


def test_a_finished_training_leaves_the_model_and_one_that_died_none(pictures, tmp_path):
    config = toy(2)
    job = TokenizerJob(config, pictures, World())
    run = Run.open(tmp_path / "run", config, kind="tokenizer")

    def strike(done: int, words: str) -> None:
        raise _StruckError

    with pytest.raises(_StruckError):
        train_tokenizer(job, run, tick=strike)
    assert not (run.folder / "model").exists()
    job = TokenizerJob(config, pictures, World())
    outcome = train_tokenizer(job, Run.open(run.folder, config, kind="tokenizer", resume=True))
    assert outcome.finished
    assert outcome.step == 2
    assert Tokenizer.from_pretrained(run.folder).digest == job.tokenizer.digest


def test_the_steps_of_a_regularised_training_are_the_jobs(pictures, tmp_path):
    config = causal_toy()
    job = TokenizerJob(config, pictures, World())
    run = Run.open(tmp_path / "run", config, kind="tokenizer")
    assert train_tokenizer(job, run).step == job.steps < config.loop.steps


def test_training_lowers_the_pixel_error(train):
    log = read_log(train(toy(40, losses={"critic": CriticConfig(weight=0.0)})).folder)
    first, last = (sum(line["codec/pixel_l2"] for line in some) for some in (log[:5], log[-5:]))
    assert last < 0.5 * first


def test_it_trains_in_bfloat16_near_the_float32_curve(train):
    pair = [train(toy(6, causal=PLAIN, loop={"precision": p})) for p in ("fp32", "bf16")]
    plain, short = (read_log(job.folder) for job in pair)
    assert short[-1]["codec/pixel_l2"] == pytest.approx(plain[-1]["codec/pixel_l2"], rel=0.1)
    assert all(value.dtype == torch.float32 for value in tensors_of(pair[1]).values())


# ------------------------------------------------------------------ the record


def test_the_facts_say_what_the_training_was(pictures):
    job = TokenizerJob(causal_toy(), pictures, World())
    clock = Clock(torch.device("cpu"))
    clock.seconds, clock.stalled = 2.0, 0.2
    facts = job.facts(Outcome(step=18, finished=True, clock=clock, values={}))
    per_picture = job.flops.of(18, job.config.losses)
    assert facts == {
        "steps": 18,
        "samples": 18 * 8,
        "parameters": {
            name: sum(p.numel() for p in module.parameters())
            for name, module in job.modules.items()
        },
        "flops": per_picture * 8,
        "flops_per_picture": {
            "codec": job.flops.codec, "critic": job.flops.critic, "causal": job.flops.causal,
        },
        "pictures_digest": pictures.digest,
        "seconds": 2.0,
        "joules": None,
        "stall_share": 0.1,
        "skips": 0,
        "rollbacks": 0,
        "tokenizer_digest": job.tokenizer.digest,
    }  # fmt: skip
    assert facts["parameters"].keys() == {"tokenizer", "causal", "critic", "twin"}
    json.dumps(facts)


def test_every_term_and_gradient_is_logged(train):
    line = read_log(train(toy(8)).folder)[-1]
    watched = ("next_latent_mse", "next_latent_r2", "latent_variance", "batch_usage")
    for name in ("pixel_l2", "codebook", "commitment", "critic", "causal", *watched):
        assert isinstance(line[f"codec/{name}"], float), name
    for name in ("tokenizer", "causal", "critic"):
        assert line[f"gradient/{name}"] > 0
        assert line[f"rate/{name}"] > 0
    assert line["critic/hinge"] > 0


def test_a_gradient_on_the_photographs_reaches_the_perceptual_term(pictures):
    run = toy(1, losses={"perceptual": 1.0})
    job = TokenizerJob(run, pictures, World())
    outcome = job.prepare(next(job.batches(0)), 0)
    terms = job.phases[0].objective(outcome, 0)
    assert terms.weights["perceptual"] == 1
    (found,) = torch.autograd.grad(terms.losses["perceptual"], outcome.reconstruction)
    assert found.abs().max() > 0
    assert "perceptual" not in job.modules  # neither saved nor moved
    plain = TokenizerJob(toy(1), pictures, World())
    assert job.flops.codec > plain.flops.codec


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"view": View(size=18)}, "multiple of the codec's factor 4"),
        ({"view": View(size=4)}, "two or more times, but is 4"),
        ({"view": View(size=8)}, "a critic of 2 layers needs pictures of 12 pixels or more"),
    ],
)
def test_sizes_that_cannot_work_are_refused(change, words):
    with pytest.raises(ConfigError, match=words) as caught:
        replace(causal_toy(), **change)
    assert "\n" not in str(caught.value)


def test_lpips_needs_pictures_that_it_can_halve_four_times():
    losses = replace(causal_toy().losses, perceptual=1.0, perceptual_network="lpips-vgg",
                     critic=CriticConfig(weight=0.0))  # fmt: skip
    with pytest.raises(ConfigError, match=r"view\.size must be 16 or more, but is 12"):
        replace(causal_toy(), losses=losses, view=View(size=12))
    assert replace(causal_toy(), losses=losses, view=View(size=16)).view.size == 16
    silent = replace(losses, perceptual=0.0)
    assert replace(causal_toy(), losses=silent, view=View(size=12)).view.size == 12


def test_the_smallest_pictures_a_critic_takes_do_work(train):
    assert train(toy(8, view=View(size=12))).outcome.finished
