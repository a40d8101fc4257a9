import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from cartok import frozen
from cartok.core.errors import UserError
from cartok.core.parallel import World
from cartok.core.shapes import image_of_pixels
from cartok.metrics import streaming
from cartok.metrics.features import content_hash
from cartok.metrics.gaussian import moments_of
from cartok.metrics.streaming import activations_of, share_of

KINDS = ("pool", "spatial", "logits")


@pytest.fixture(scope="module")
def pixels(tiny):
    return tiny.pictures(11)


@pytest.fixture(scope="module")
def at_once(tiny, pixels):
    """What the network says of all pictures in one pass, and nothing between."""
    return tiny.TinyInception()(pixels)


def close(moments, rows):
    expected = moments_of(rows)
    assert moments.count == expected.count
    torch.testing.assert_close(moments.mean, expected.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(moments.scatter, expected.scatter, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cuts", "rows_at_once"), [([11], 4096), ([1] * 11, 4), ([4, 7], 4)])
def test_a_stream_gives_what_all_pictures_at_once_give(
    tiny, pixels, at_once, cuts, rows_at_once, monkeypatch
):
    monkeypatch.setattr(streaming, "ROWS_AT_ONCE", rows_at_once)
    network = tiny.TinyInception()
    found = activations_of(iter(pixels.split(cuts)), network, kinds=KINDS, batch=3)
    for kind in KINDS:
        assert torch.equal(found.rows(kind), getattr(at_once, kind))
        assert found.rows(kind).dtype == torch.float32
    close(found.pool, at_once.pool)
    close(found.spatial, at_once.spatial)
    assert max(network.batches_seen) <= 3
    assert (found.count, found.hash, found.picture_size) == (11, content_hash(pixels), (8, 8))


def test_inception_itself_is_streamed(pixels):
    network = frozen.inception(random_weights=True)
    found = activations_of(image_of_pixels(pixels[:3]), network, batch=2)
    pool, spatial, logits = network(pixels[:3])
    torch.testing.assert_close(found.rows("pool"), pool, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.rows("logits"), logits, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.spatial.mean, spatial.double().mean(0), rtol=1e-5, atol=1e-4)
    assert found.key.network == "inception-random"
    assert found.key.precision == "float32"


def test_without_kinds_only_moments_are_left(tiny, pixels, at_once):
    found = activations_of(pixels, tiny.TinyInception(), kinds=())
    close(found.pool, at_once.pool)
    with pytest.raises(UserError, match=r"needs rows of 'pool', but \[\] were kept"):
        found.rows("pool")


def test_a_name_of_pictures_tells_their_order_and_their_hash_does_not(tiny, pixels):
    first, turned = (activations_of(p, tiny.TinyInception()) for p in (pixels, pixels.flip(0)))
    assert first.key.pictures != turned.key.pictures
    assert first.hash == turned.hash


def test_what_is_no_set_of_pictures_is_refused(tiny, pixels):
    for wrong, rule in (
        ([], "at least one picture"),
        ([pixels, tiny.pictures(1, size=9)], "have one size"),
        ([pixels[:, :1]], "in RGB"),
    ):
        with pytest.raises(UserError, match=rule) as error:
            activations_of(wrong, tiny.TinyInception())
        assert "\n" not in str(error.value)


def test_a_feature_that_is_not_finite_is_refused(tiny, pixels):
    class Broken(tiny.TinyInception):
        def forward(self, pixels):
            features = super().forward(pixels)
            return features._replace(spatial=features.spatial / 0)

    with pytest.raises(UserError, match="features are finite"):
        activations_of(pixels, Broken())


@given(count=st.integers(0, 50), size=st.integers(1, 9))
def test_shares_are_all_pictures_in_order_and_differ_by_one_at_most(count, size):
    shares = [share_of(count, World(rank=rank, size=size)) for rank in range(size)]
    assert [index for share in shares for index in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# ------------------------------------------------------------------ two ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks said and got, and the rows it holds."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("ranks_of_pictures.py")
    command = [sys.executable, str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [
        (
            json.loads((folder / f"{rank}.json").read_text()),
            load_file(folder / f"{rank}.safetensors"),
        )
        for rank in range(2)
    ]


@pytest.mark.parametrize("count", [7, 8, 1])
def test_two_ranks_give_what_one_gives(ranks, tiny, count):
    one = activations_of(tiny.pictures(count), tiny.TinyInception())
    for rank, (said, tensors) in enumerate(ranks):
        expected = {"hash": one.hash, "name": one.key.pictures, "count": count}
        assert said[str(count)] == expected
        torch.testing.assert_close(tensors[f"{count}.mean"], one.pool.mean, rtol=0, atol=1e-12)
        scatter = tensors[f"{count}.scatter"]
        torch.testing.assert_close(scatter, one.spatial.scatter, rtol=0, atol=1e-12)
        for kind in ("pool", "logits"):
            rows = one.rows(kind)
            share = rows if rank == 0 else rows[count // 2 :]
            assert torch.equal(tensors[f"{count}.{kind}"], share)


def test_ranks_share_the_pictures_and_look_up_together_what_they_have_seen(ranks, tiny):
    pool = tiny.TinyInception()(tiny.pictures(7)).pool
    assert [said["seen"] for said, _ in ranks] == [[3, 0], [4, 0]]
    assert all(torch.equal(tensors["kept1.pool"], pool) for _, tensors in ranks)


def test_what_one_rank_refuses_every_rank_refuses(ranks):
    (first, _), (last, _) = ranks
    assert [len(said["refused"]) for said in (first, last)] == [2, 2]
    assert "have one size" in first["refused"][0]
    assert "another rank failed" in first["refused"][1]
    assert "in RGB" in last["refused"][1]
