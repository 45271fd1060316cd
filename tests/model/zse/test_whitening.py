"""Whitening: what it follows, what it makes even, and what it must survive."""

import pytest
import torch

from model.zse.whitening import MOMENTUM, SHRINKAGE, Whitening


def stretched(count: int, seed: int, width: int = 5) -> torch.Tensor:
    """Vectors (count, width) that spread a hundred times as far in one direction as in another."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(
        torch.randn((width, width), generator=torch.Generator().manual_seed(9))
    ).Q
    lengths = torch.logspace(0, 2, width)
    return torch.randn((count, width), generator=generator) * lengths @ turn + 30


def covariance(tokens: torch.Tensor) -> torch.Tensor:
    centred = tokens - tokens.mean(dim=0)
    return centred.T @ centred / len(tokens)


def test_one_batch_gives_its_means_and_the_mean_of_both_covariances():
    whitening = Whitening(width=5, modalities=2)
    sketches, photos = stretched(40, 1), stretched(30, 2)
    whitening.follow(sketches, photos)
    means = torch.stack([sketches.mean(dim=0), photos.mean(dim=0)])
    torch.testing.assert_close(whitening.means, means)
    both = (covariance(sketches) + covariance(photos)) / 2
    torch.testing.assert_close(whitening.covariance, both, rtol=1e-4, atol=1e-2)


def test_the_first_batches_give_the_exact_means():
    whitening = Whitening(width=5, modalities=2)
    batches = [(stretched(8, seed), stretched(8, seed + 50)) for seed in range(6)]
    for sketches, photos in batches:
        whitening.follow(sketches, photos)
    for number in (0, 1):
        mean = torch.cat([batch[number] for batch in batches]).mean(dim=0)
        torch.testing.assert_close(whitening.means[number], mean)
    assert whitening.batches == 6


def test_later_batches_move_both_by_the_momentum():
    whitening = Whitening(width=5, modalities=2)
    whitening.batches.fill_(1000)
    sketches, photos = stretched(40, 1), stretched(40, 2)
    whitening.follow(sketches, photos)
    torch.testing.assert_close(whitening.means[0], MOMENTUM * sketches.mean(dim=0))
    centred = [side - mean for side, mean in zip((sketches, photos), whitening.means, strict=True)]
    spread = sum(side.T @ side / 40 for side in centred) / 2
    wanted = (1 - MOMENTUM) * torch.eye(5) + MOMENTUM * spread
    torch.testing.assert_close(whitening.covariance, wanted)


def test_cosines_are_those_of_the_inverse_of_the_shrunk_covariance():
    whitening = Whitening(width=5, modalities=2)
    sketches, photos = stretched(400, 1), stretched(90, 2)
    whitening.follow(sketches, photos)
    shrunk = whitening.covariance.double()
    shrunk = shrunk + SHRINKAGE * shrunk.diagonal().mean() * torch.eye(5)
    a, b = (sketches - whitening.means[0]).double(), (photos - whitening.means[1]).double()
    products = a @ torch.linalg.inv(shrunk) @ b.T
    norms = [(side @ torch.linalg.inv(shrunk) * side).sum(dim=1).sqrt() for side in (a, b)]
    one = torch.nn.functional.normalize(whitening(sketches, 0), dim=1)
    other = torch.nn.functional.normalize(whitening(photos, 1), dim=1)
    wanted = (products / norms[0][:, None] / norms[1]).float()
    torch.testing.assert_close(one @ other.T, wanted, rtol=1e-4, atol=1e-5)


def test_the_widest_direction_becomes_even_with_the_others_as_far_as_shrinkage_lets_it():
    whitening, tokens = Whitening(width=5, modalities=2), stretched(400, 1)
    whitening.follow(tokens, tokens)
    before, after = (torch.linalg.eigvalsh(covariance(t)) for t in (tokens, whitening(tokens, 0)))
    torch.testing.assert_close(
        after, before / (before / before.mean() + SHRINKAGE), rtol=1e-3, atol=0
    )


def test_before_the_first_batch_no_cosine_changes():
    tokens = torch.nn.functional.normalize(stretched(6, 1), dim=1)
    whitened = torch.nn.functional.normalize(Whitening(width=5, modalities=2)(tokens, 1), dim=1)
    torch.testing.assert_close(whitened, tokens)


def test_equal_tokens_and_batches_of_one_give_numbers():
    whitening = Whitening(width=5, modalities=2)
    whitening.follow(torch.ones(1, 5), torch.ones(3, 5))
    assert not whitening.covariance.any()
    assert whitening(torch.randn(2, 5), 0).isfinite().all()


def test_tokens_that_are_not_finite_raise_nothing():
    whitening = Whitening(width=5, modalities=2)
    whitening.follow(torch.full((2, 5), torch.nan), torch.ones(2, 5))
    assert whitening(torch.ones(2, 5), 0).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_in_float32_also_under_autocast(dtype):
    whitening, tokens = Whitening(width=5, modalities=2), stretched(9, 1).to(dtype)
    plain = Whitening(width=5, modalities=2)
    plain.follow(tokens.float(), tokens.float())
    with torch.autocast("cpu", torch.bfloat16):
        whitening.follow(tokens, tokens)
        assert torch.equal(whitening(tokens, 0), plain(tokens.float(), 0))
    assert whitening.covariance.dtype == torch.float32
