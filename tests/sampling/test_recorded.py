"""Batches that are replayed are those that are drawn; here with a recording that draws anew.

The double keeps what a CUDA graph keeps: tensors of one place in memory, read and written again.
"""

from dataclasses import fields

import pytest
import torch

from cartok.core.errors import UserError
from cartok.layers import TransformerConfig
from cartok.prior.model import Prior, PriorConfig
from cartok.sampling import recorded
from cartok.sampling.recorded import Replays
from cartok.sampling.sampler import Sampler

LABELS = [0, 1, 2, 3, 0, 1, 2]


class DrawnAnew:
    """A recording without a GPU: every replay draws, and writes over what the first one gave."""

    def __init__(self, draw, batch):
        self._draw = draw
        self._batch = type(batch)(*(getattr(batch, f.name).clone() for f in fields(batch)))
        self._drawn = draw(self._batch)

    def replay(self, batch):
        for field in fields(batch):
            getattr(self._batch, field.name).copy_(getattr(batch, field.name))
        fresh = self._draw(self._batch)
        self._drawn.tokens.copy_(fresh.tokens)
        self._drawn.all_finite.copy_(fresh.all_finite)
        return self._drawn


class Painter:
    digest = "painter"

    def image_of(self, tokens):
        return tokens[:, None].float()


def sampler_of(record=None):
    """One whose recordings are listed in ``made``, or one that records nothing."""
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
        sampler._replays = Replays(record)
    return sampler


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(recorded, "records_on", lambda device: True)
    return []


@pytest.fixture
def recording(made):
    return sampler_of(lambda draw, batch: made.append(len(batch.labels)) or DrawnAnew(draw, batch))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_samples_are_the_same_whether_drawn_or_replayed(recording, made, guidance, batch):
    plain = sampler_of().sample_tokens(LABELS, 5, guidance)
    assert torch.equal(recording.sample_tokens(LABELS, 5, guidance, batch=batch), plain)
    assert made == [batch]


def test_what_is_left_over_is_replayed_if_it_is_most_of_a_batch(recording, made, monkeypatch):
    drawn, plain = [], recording._draw_batch

    def noted(batch, choice):
        drawn.append(len(batch.labels))
        return plain(batch, choice)

    monkeypatch.setattr(recording, "_draw_batch", noted)
    for labels in (LABELS, LABELS, LABELS[:4], LABELS[:3]):
        wanted = sampler_of().sample_tokens(labels, 5)
        assert torch.equal(recording.sample_tokens(labels, 5), wanted)
    assert drawn == [7, 7, 7, 7, 3]  # drawn, recorded and replayed, replayed, drawn
    assert made == [7]


def test_a_few_that_are_left_over_are_not_worth_a_recording(recording, made):
    recording.sample_tokens(LABELS, 5, batch=5)
    assert made == []


def test_rows_that_fill_a_replay_are_of_a_class_that_was_asked_for(recording):
    with torch.no_grad():
        recording.prior.class_embedding.weight[0] = float("nan")
    labels = [1, 2, 3, 1, 2]
    recording.sample_tokens(labels, 1, batch=2)
    with pytest.raises(UserError, match="not finite"):
        recording.sample_tokens([1, 1, 0, 1], 1, batch=2)


def test_a_lone_batch_is_not_recorded(recording, made):
    recording.sample_tokens(LABELS, 5)
    assert made == []
    recording.sample_tokens(LABELS, 6)
    assert made == [7]


def test_one_recording_serves_every_guidance_and_schedule(recording, made):
    for guidance, schedule in ((2.0, "constant"), (3.0, "constant"), (4.0, "linear")):
        wanted = sampler_of().sample_tokens(LABELS, 1, guidance, schedule=schedule)
        found = recording.sample_tokens(LABELS, 1, guidance, schedule=schedule, batch=3)
        assert torch.equal(found, wanted)
    assert made == [3]


@pytest.mark.parametrize("change", [{"top_k": 2}, {"temperature": 0.5}, {"top_p": 0.5}])
def test_another_filter_is_another_recording(recording, made, change):
    recording.sample_tokens(LABELS, 1, 2.0, batch=3)
    wanted = sampler_of().sample_tokens(LABELS, 1, 2.0, **change)
    assert torch.equal(recording.sample_tokens(LABELS, 1, 2.0, batch=3, **change), wanted)
    assert made == [3, 3]


def test_more_rows_are_another_recording_and_fewer_are_not(recording, made):
    for batch in (2, 3, 2):
        wanted = sampler_of().sample_tokens(LABELS, 1, 2.0)
        assert torch.equal(recording.sample_tokens(LABELS, 1, 2.0, batch=batch), wanted)
    assert made == [2, 3]


def test_weights_that_have_moved_are_recorded_anew(recording, made):
    recording.sample_tokens(LABELS, 1, batch=3)
    head = recording.prior.head
    head.weight = torch.nn.Parameter(head.weight.flip(0))
    fresh = sampler_of()
    fresh.prior.head.weight = head.weight
    wanted = fresh.sample_tokens(LABELS, 1)
    assert torch.equal(recording.sample_tokens(LABELS, 1, batch=3), wanted)
    assert made == [3, 3]


def test_what_cannot_be_recorded_is_drawn_and_told_once(made, caplog):
    def fails(draw, batch):
        made.append(len(batch.labels))
        raise RuntimeError("out of memory\nand more")

    wanted = sampler_of().sample_tokens(LABELS, 1)
    assert torch.equal(sampler_of(fails).sample_tokens(LABELS, 1, batch=2), wanted)
    assert made == [2]
    assert caplog.messages == [
        "samples are drawn kernel by kernel, since that cannot be recorded: out of memory"
    ]


def test_a_cpu_records_nothing():
    made = []
    sampler_of(lambda draw, batch: made.append(1)).sample_tokens(LABELS, 1, batch=2)
    assert made == []
