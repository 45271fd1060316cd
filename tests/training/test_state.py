"""What a run goes on from: each key of a last checkpoint absent, of another kind, not finite."""

import copy

import pytest
import torch
from torch import nn

from training.state import check_state, load_moments
from utils.errors import InputError

GOOD = {
    "options": {"batch": 3, "part": [1, 2], "seed": 1, "views": "plain", "load": None},
    "average": None,
    "epoch": 0,
    "step": 1,
    "draws": 3,
    "processes": 1,
    "seconds": 0.5,
    "best": None,
}


def trained(steps: int = 1):
    """A network and its optimizer, after some steps."""
    torch.manual_seed(0)
    network = nn.Linear(2, 3)
    groups = [{"params": [network.weight]}, {"params": [network.bias], "lr": 0.5}]
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    for _ in range(steps):
        network(torch.randn(4, 2)).square().mean().backward()
        optimizer.step()
    return optimizer


def test_a_whole_state_passes():
    check_state({**GOOD, "optimizer": trained().state_dict()}, "last.pth")


@pytest.mark.parametrize("name", [*GOOD, "optimizer"])
def test_a_key_that_is_absent_is_named(name):
    state = {**GOOD, "optimizer": trained().state_dict()}
    del state[name]
    with pytest.raises(InputError, match=rf"^last\.pth: has no {name}\. .*--load FILE"):
        check_state(state, "last.pth")


@pytest.mark.parametrize("name", [*GOOD, "optimizer"])
@pytest.mark.parametrize(
    "value", [-1, -1.5, True, "3", [], {"a": torch.ones(2)}, torch.ones(2), float("nan"), object()]
)
def test_a_value_of_another_kind_is_named(name, value):
    if name == "average" and isinstance(value, dict):
        return  # a table, which load_strictly() looks into
    state = {**GOOD, "optimizer": trained().state_dict(), name: value}
    with pytest.raises(InputError, match=rf"^last\.pth: {name}"):
        check_state(state, "last.pth")


@pytest.mark.parametrize("steps", [0, 2])
def test_moments_and_rates_come_back(steps):
    former, new = trained(steps), trained(0)
    former.param_groups[0]["lr"] = 0.05  # as a schedule leaves it
    load_moments(new, copy.deepcopy(former.state_dict()), "last.pth")
    assert new.param_groups[0]["lr"] == 0.05 and new.param_groups[1]["lr"] == 0.5
    assert [group["initial_lr"] for group in new.param_groups] == [0.1, 0.5]
    one, other = former.state_dict()["state"], new.state_dict()["state"]
    assert one.keys() == other.keys()
    for number in one:
        for name, tensor in one[number].items():
            assert torch.equal(tensor, other[number][name])


def _without_a_tensor(state):
    del state["state"][1]


def _without_a_moment(state):
    del state["state"][0]["exp_avg"]


def _misshapen(state):
    state["state"][0]["exp_avg"] = torch.zeros(3, 3)


def _not_finite(state):
    state["state"][0]["exp_avg_sq"][0, 0] = float("nan")


def _no_tensor(state):
    state["state"][0]["step"] = 5


def _other_groups(state):
    state["param_groups"][0]["params"] = [1]


def _fewer_groups(state):
    state["param_groups"].pop()


def _no_state(state):
    del state["state"]


def _meta(state):
    state["state"][0]["exp_avg"] = torch.zeros(3, 2, device="meta")


@pytest.mark.parametrize(
    "damage",
    [
        _without_a_tensor,
        _without_a_moment,
        _misshapen,
        _not_finite,
        _no_tensor,
        _other_groups,
        _fewer_groups,
        _no_state,
        _meta,
    ],
)
def test_damaged_moments_are_one_sentence_and_nothing_is_loaded(damage):
    state, new = copy.deepcopy(trained(2).state_dict()), trained(0)
    damage(state)
    with pytest.raises(InputError, match=r"^last\.pth: optimizer"):
        load_moments(new, state, "last.pth")
    assert not new.state_dict()["state"]
