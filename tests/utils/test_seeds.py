"""One seed for all generators, and their state saved and restored."""

import random

import numpy as np
import pytest
import torch

from utils.seeds import random_state, restore_random_state, seed_everything


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


def test_restored_state_repeats_what_torch_drew():
    torch.rand(3)
    state = random_state()
    first = torch.rand(5), torch.nn.functional.dropout(torch.ones(20))
    torch.rand(7)
    restore_random_state(state)
    again = torch.rand(5), torch.nn.functional.dropout(torch.ones(20))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_state_is_a_copy_that_later_draws_leave_alone():
    state = random_state()
    kept = state["cpu"].clone()
    torch.rand(1000)
    assert torch.equal(state["cpu"], kept)


def test_state_without_a_gpu_is_restored_anywhere():
    restore_random_state({"cpu": torch.get_rng_state(), "cuda": None})


def test_state_of_a_gpu_is_passed_over_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    restore_random_state({"cpu": torch.get_rng_state(), "cuda": torch.zeros(16, dtype=torch.uint8)})
