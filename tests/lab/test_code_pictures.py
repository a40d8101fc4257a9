"""What is kept of an arm's codes is small, and says where they live and what they look like."""

import json
import math
from dataclasses import replace

import pytest
import torch

from cartok.core.levels import values_of_levels
from cartok.lab import code_pictures
from cartok.lab.code_pictures import maps_of, plane_score
from cartok.metrics.code_plane import mean_colours, plane_of
from cartok.recipes.tokenizer import causal_toy
from cartok.tokenizer.model import Tokenizer
from cartok.tokenizer.quantize.binary import BSQConfig, LFQConfig
from cartok.tokenizer.quantize.fsq import FSQConfig
from cartok.tokenizer.quantize.residual import ResidualVQConfig
from cartok.tokenizer.quantize.vq import VQConfig

KINDS = {
    "vq": VQConfig(codebook_size=32, dim=8),
    "fsq": FSQConfig(levels=(4, 3, 3)),
    "lfq": LFQConfig(bits=5),
    "bsq": BSQConfig(bits=5),
}
RESIDUAL = ResidualVQConfig(levels=2, codebook_size=8, dim=4)


def tokenizer_of(quantizer):
    torch.manual_seed(0)
    return Tokenizer(replace(causal_toy().model, quantizer=quantizer)).eval()


def random_tokens(size, *shape):
    return torch.randint(size, shape, generator=torch.Generator().manual_seed(1))


def pictures(tokens, side=4):
    """Pictures whose cells are grey, as bright as their token; a column is brighter in red."""
    grey = tokens.repeat_interleave(side, 1).repeat_interleave(side, 2) / 32 - 0.5
    image = grey[:, None].repeat(1, 3, 1, 1)
    image[:, 0, :, :side] += 0.25
    return image


def parsed(maps):
    """Code, uses, bits and shares by place, of each line."""
    for line in maps["shown"]:
        code, uses, bits, peak, levels = line.split()
        shares = torch.tensor(values_of_levels(levels, float(peak)))
        yield int(code), int(uses), float(bits), shares.view(maps["grid"])


def test_a_code_that_lives_in_a_corner_is_kept_there():
    tokens = random_tokens(20, 30, 2, 3)
    tokens[:, 1, 0] = 31  # the lower left
    maps = maps_of(tokens, tokenizer_of(KINDS["vq"]))
    assert maps is not None
    assert maps["grid"] == [2, 3]
    code, uses, bits, shares = next(parsed(maps))
    assert (code, uses, bits) == (31, 30, pytest.approx(math.log2(6), abs=1e-3))
    assert shares.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert all(shares[1, 0] == 0 for _, _, _, shares in [*parsed(maps)][1:])


def test_shares_are_those_of_the_tokens_and_few_codes_come_whole():
    tokens = random_tokens(5, 40, 3, 4)
    maps = maps_of(tokens, tokenizer_of(KINDS["vq"]))
    assert maps is not None
    assert maps["codes"] == len(maps["shown"]) == 5
    for code, uses, _, shares in parsed(maps):
        at = (tokens == code).double()
        assert uses == at.sum()
        torch.testing.assert_close(shares.double(), at.mean(0) * 40 / uses, atol=3e-3, rtol=0)


def test_bits_stand_beside_what_chance_would_show():
    tokenizer = tokenizer_of(KINDS["vq"])
    bound = torch.arange(12).view(1, 3, 4).expand(50, 3, 4)
    maps = maps_of(bound, tokenizer)
    assert maps is not None
    assert maps["bits"] == pytest.approx(math.log2(12))
    assert 0 <= maps["by_chance"] < 0.3
    dealt = maps_of(random_tokens(12, 200, 3, 4), tokenizer)
    assert dealt is not None
    assert dealt["bits"] == pytest.approx(dealt["by_chance"], abs=0.02)


def test_codes_that_are_used_less_often_than_there_are_places_do_not_count():
    tokens = torch.zeros(8, 2, 3, dtype=torch.long)
    tokens.view(-1)[:5] = 1
    tokens.view(-1)[10:16] = 2
    maps = maps_of(tokens, tokenizer_of(KINDS["vq"]))
    assert maps is not None
    assert {code for code, *_ in parsed(maps)} == {0, 2}
    assert maps_of(random_tokens(32, 1, 2, 3), tokenizer_of(KINDS["vq"])) is None


def test_codes_of_residual_levels_are_told_apart_by_number_and_not_by_place():
    """A row's places are a cell's two levels side by side: six places are three cells."""
    tokens = torch.zeros(20, 2, 6, dtype=torch.long)
    tokens[:, :, 1::2] = 5  # the second level, in every cell
    tokens[:, 0, 4] = 3  # the first level of the upper right cell
    maps = maps_of(tokens, tokenizer_of(RESIDUAL))
    assert maps is not None
    assert maps["grid"] == [2, 3]
    found = {code: (uses, shares) for code, uses, _, shares in parsed(maps)}
    assert found.keys() == {0, 3, 8 + 5}
    assert found[3][1].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert found[13][0] == 120
    assert found[13][1].flatten().tolist() == pytest.approx([1 / 6] * 6, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_dots_are_the_vectors_of_codes_in_the_plane_and_the_colours_under_them(kind):
    tokenizer = tokenizer_of(KINDS[kind])
    tokens = random_tokens(12, 40, 2, 3)
    image = pictures(tokens)
    score = plane_score(image, tokens, tokenizer)["embedding_plane"]
    about = score["receipt"]
    size = tokenizer.codebook_size
    uses, colours = (
        torch.bincount(tokens.flatten(), minlength=size),
        mean_colours(image, tokens, size),
    )
    used = uses.nonzero()[:, 0]
    vectors = torch.cat([tokenizer.quantizer.codes_of(code.view(1, 1, 1)) for code in used])
    plane = plane_of(vectors[:, :, 0, 0].detach(), uses[used], colours[used].mean(1))
    assert plane is not None
    assert score["value"] == pytest.approx(sum(plane.shares))
    assert about["shares"] == pytest.approx(plane.shares)
    assert (about["codes"], about["of"], about["pictures"]) == (len(used), size, 40)
    dots = {int(code): rest for code, *rest in (dot.split() for dot in about["dots"].split("; "))}
    assert [*dots] == used[uses[used].argsort(descending=True, stable=True)].tolist()
    for code, place in zip(used.tolist(), plane.places.tolist(), strict=True):
        x, y, count, colour = dots[code]
        wanted = [at / about["reach"] * 1000 for at in place]
        assert [int(x), int(y)] == pytest.approx(wanted, abs=0.6)
        assert int(count) == uses[code]
        assert [*bytes.fromhex(colour)] == pytest.approx(colours[code].tolist(), abs=0.51)


def test_residual_codes_have_no_vector_each_and_so_no_plane():
    tokens = random_tokens(8, 10, 2, 6)
    assert plane_score(torch.zeros(10, 3, 8, 12), tokens, tokenizer_of(RESIDUAL)) == {}


def test_a_single_code_has_no_plane():
    tokens = torch.full((10, 2, 3), 7)
    assert plane_score(pictures(tokens), tokens, tokenizer_of(KINDS["vq"])) == {}


def test_of_many_pictures_some_are_looked_at_from_first_to_last(monkeypatch):
    monkeypatch.setattr(code_pictures, "LOOKED_AT", 4)
    tokens = torch.arange(10)[:, None, None].expand(10, 2, 3)
    score = plane_score(pictures(tokens), tokens, tokenizer_of(KINDS["vq"]))["embedding_plane"]
    codes = {int(dot.split()[0]) for dot in score["receipt"]["dots"].split("; ")}
    assert codes == {0, 3, 6, 9}
    assert score["receipt"]["pictures"] == 4


def test_both_are_small_as_they_stand_in_a_file_of_256_places_and_1024_codes():
    tokenizer = tokenizer_of(VQConfig(codebook_size=1024, dim=8))
    tokens = random_tokens(1024, 1200, 16, 16)
    maps = maps_of(tokens, tokenizer)
    assert maps is not None
    assert len(maps["shown"]) == 12
    plane = plane_score(torch.rand(300, 3, 32, 32), tokens[:300], tokenizer)
    assert len(plane["embedding_plane"]["receipt"]["dots"].split("; ")) == 96
    assert len(json.dumps([maps, plane], indent=2)) < 7_000
    fine = maps_of(random_tokens(16, 50, 32, 32), tokenizer)
    assert fine is not None
    assert len(fine["shown"]) == 3
