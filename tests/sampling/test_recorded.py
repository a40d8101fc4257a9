"""Steps that are replayed draw what steps that are computed draw.

Here with a recording that computes anew, and the prior as written in the place of GPU kernels.
"""

import pytest
import torch

from cartok.core.errors import UserError
from cartok.layers import TransformerConfig
from cartok.prior.model import Prior, PriorConfig
from cartok.sampling import drawing, recorded
from cartok.sampling.decoding import PlainDecoder
from cartok.sampling.recorded import Draws
from cartok.sampling.sampler import Sampler

LABELS = [0, 1, 2, 3, 0, 1, 2]


class Fixed:
    """A decoder that may be recorded: not a plain one, though it computes as that does."""

    def __init__(self, prior, rows):
        self._plain = PlainDecoder(prior, rows)
        self.restart, self.logits = self._plain.restart, self._plain.logits


class ComputedAnew:
    """A recording without a GPU."""

    def __init__(self, step):
        self.replay = step


class Painter:
    digest = "painter"

    def image_of(self, tokens):
        return tokens[:, None].float()


def sampler_of(record=None):
    torch.manual_seed(0)
    net = TransformerConfig(width=32, depth=2, heads=2, hidden_multiple=16)
    prior = Prior(
        PriorConfig(transformer=net, codebook_size=11, grid=(2, 3), num_classes=4),
        tokenizer_digest="painter",
    )
    with torch.no_grad():
        for weight in prior.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    sampler = Sampler(prior, Painter())
    if record is not None:
        sampler._draws = Draws(record)
    return sampler


@pytest.fixture
def made(monkeypatch):
    """The rows of every recording, on a device that records."""
    monkeypatch.setattr(recorded, "records_on", lambda device: True)
    monkeypatch.setattr(drawing, "decoder_of", Fixed)
    return []


@pytest.fixture
def recording(made):
    def record(step):
        made.append(step.__self__.rows)
        return ComputedAnew(step)

    return sampler_of(record)


@pytest.fixture(scope="module")
def drawn():
    """What is drawn by steps that are computed."""
    return lambda *args, **options: sampler_of(ComputedAnew).sample_tokens(*args, **options)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("batch", [2, 3, 7])
def test_samples_are_the_same_whether_drawn_or_replayed(drawn, recording, made, guidance, batch):
    plain = drawn(LABELS, 5, guidance)
    assert torch.equal(recording.sample_tokens(LABELS, 5, guidance, batch=batch), plain)
    assert made[0] == batch


def test_the_first_batch_is_replayed_already(recording, made):
    recording.sample_tokens(LABELS, 5)
    assert made == [7]


def test_a_smaller_batch_is_drawn_in_a_larger_one_if_it_fills_half_of_it(drawn, recording, made):
    for labels in (LABELS, LABELS[:4], LABELS):
        assert torch.equal(recording.sample_tokens(labels, 5), drawn(labels, 5))
    assert made == [7]
    assert torch.equal(recording.sample_tokens(LABELS[:3], 5), drawn(LABELS[:3], 5))
    assert made == [7, 3]


def test_rows_that_fill_a_replay_are_of_a_class_that_was_asked_for(recording):
    with torch.no_grad():
        recording.prior.class_embedding.weight[0] = float("nan")
    labels = [1, 2, 3, 1, 2]
    recording.sample_tokens(labels, 1, batch=2)
    with pytest.raises(UserError, match="not finite"):
        recording.sample_tokens([1, 1, 0, 1], 1, batch=2)


def test_one_recording_serves_every_guidance_and_schedule(drawn, recording, made):
    for guidance, schedule in ((2.0, "constant"), (3.0, "constant"), (4.0, "linear")):
        wanted = drawn(LABELS, 1, guidance, schedule=schedule)
        assert torch.equal(recording.sample_tokens(LABELS, 1, guidance, schedule=schedule), wanted)
    assert made == [7]


@pytest.mark.parametrize("change", [{"top_k": 2}, {"temperature": 0.5}, {"top_p": 0.5}])
def test_another_filter_is_another_recording(drawn, recording, made, change):
    recording.sample_tokens(LABELS, 1, 2.0)
    wanted = drawn(LABELS, 1, 2.0, **change)
    assert torch.equal(recording.sample_tokens(LABELS, 1, 2.0, **change), wanted)
    assert made == [7, 7]


def test_mixtures_are_another_recording_than_labels(drawn, recording, made):
    recording.sample_tokens(LABELS, 1, 2.0)
    shares = torch.eye(5)[torch.tensor(LABELS)]
    wanted = drawn(LABELS, 1, 2.0)
    assert torch.equal(recording.sample_tokens(shares, 1, 2.0), wanted)
    assert made == [7, 7]


def test_tokens_that_are_kept_stay_in_a_replay_too(drawn, recording):
    kept = torch.full((7, 6), -1)
    kept[:, 1], kept[3, 4] = 7, 2
    wanted = drawn(LABELS, 1, 2.0, kept=kept)
    found = recording.sample_tokens(LABELS, 1, 2.0, kept=kept)
    assert torch.equal(found, wanted)
    assert torch.equal(found[kept >= 0], kept[kept >= 0])


def test_weights_that_have_moved_are_recorded_anew(recording, made):
    recording.sample_tokens(LABELS, 1)
    head = recording.prior.head
    head.weight = torch.nn.Parameter(head.weight.flip(0))
    fresh = sampler_of(ComputedAnew)
    fresh.prior.head.weight = head.weight
    assert torch.equal(recording.sample_tokens(LABELS, 1), fresh.sample_tokens(LABELS, 1))
    assert made == [7, 7]


def test_what_cannot_be_recorded_is_drawn_and_told_once(drawn, made, caplog):
    def fails(step):
        made.append(step.__self__.rows)
        raise RuntimeError("the step waits\nand more")

    assert torch.equal(sampler_of(fails).sample_tokens(LABELS, 1, batch=2), drawn(LABELS, 1))
    assert made == [2]
    assert caplog.messages == [
        "samples are drawn kernel by kernel, since that cannot be recorded: the step waits"
    ]


def test_a_cpu_records_nothing():
    made = []
    sampler_of(made.append).sample_tokens(LABELS, 1, batch=2)
    assert made == []
