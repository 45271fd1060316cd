"""One seed for all generators, and one for each step."""

import random

import numpy as np
import pytest
import torch

from utils.seeds import seed_everything, seed_step


@pytest.fixture(autouse=True)
def generators_restored():
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def draws():
    return random.random(), float(np.random.random()), float(torch.rand(1))


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
def test_a_seed_repeats_the_draws_of_every_generator(seed):
    seed_everything(seed)
    first = draws()
    assert all(a != b for a, b in zip(first, draws(), strict=True))
    seed_everything(seed)
    assert draws() == first


@pytest.mark.parametrize("other", [{"seed": 2}, {"seed": 1, "rank": 1}])
def test_another_seed_or_rank_draws_otherwise(other):
    seed_everything(1)
    first = draws()
    seed_everything(**other)
    assert all(a != b for a, b in zip(first, draws(), strict=True))


def of_step(*numbers):
    """What dropout draws in the step that these numbers tell from others."""
    seed_step(*numbers)
    return torch.nn.functional.dropout(torch.ones(64)).tolist()


def test_the_same_numbers_repeat_the_draws_whatever_came_between():
    first = of_step(2021, 3, 7, 0)
    torch.rand(1000)
    other = of_step(2021, 3, 8, 0)
    seed_everything(5)
    assert of_step(2021, 3, 7, 0) == first != other


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("change", [1, 2, 2**20])
def test_any_other_number_draws_otherwise(place, change):
    numbers = [2021, 3, 7, 1]
    first = of_step(*numbers)
    numbers[place] += change
    assert of_step(*numbers) != first


def test_steps_do_not_share_draws_where_their_numbers_have_the_same_sum():
    seen = [of_step(seed, 10 - seed, 0, rank) for seed in range(10) for rank in (0, 1)]
    assert len(set(map(tuple, seen))) == 20


@pytest.mark.parametrize("numbers", [(0,), (0, 0, 0, 0), (2**32, 10**6, 10**6, 1000), (2**63,)])
def test_any_whole_numbers_from_0_on_will_do(numbers):
    assert of_step(*numbers) == of_step(*numbers)
    assert 0 <= torch.initial_seed() < 2**63


def test_a_step_is_seeded_without_touching_other_generators():
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), float(np.random.random())
    random.seed(1)
    np.random.seed(1)
    seed_step(1, 2, 3)
    assert (random.random(), float(np.random.random())) == expected
