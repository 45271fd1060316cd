"""AdamW as the settings say, and the running average against a loop over its tensors."""

import pytest
import torch
from torch import nn

from model.settings import TrainingSettings
from training.optimizer import Average, build_optimizer
from utils.checkpoints import load_file, save_atomically

# ---- AdamW


class Two(nn.Module):
    """Two numbers, of which the second has a rate and a decay of its own."""

    def __init__(self, **settings):
        super().__init__()
        self.settings = TrainingSettings(**settings)
        self.first = nn.Parameter(torch.tensor(2.0))
        self.second = nn.Parameter(torch.tensor(-4.0))

    def parameter_groups(self):
        own = {"lr": 0.5, "weight_decay": 0.0}
        return [{"params": [self.first]}, {"params": [self.second], **own}]


def test_groups_have_rate_and_decay_of_the_settings_unless_they_have_their_own():
    optimizer = build_optimizer(Two(learning_rate=0.25, weight_decay=0.125))
    assert isinstance(optimizer, torch.optim.AdamW)
    found = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert found == [(0.25, 0.125), (0.5, 0.0)]


def test_the_first_step_of_adamw_by_hand():
    """It shrinks a weight by rate times decay, then moves it by the rate against its gradient."""
    method = Two(learning_rate=0.25, weight_decay=0.125)
    optimizer = build_optimizer(method)
    (3 * method.first - 7 * method.second).backward()
    optimizer.step()
    assert method.first.item() == pytest.approx(2 - 0.25 * 0.125 * 2 - 0.25)
    assert method.second.item() == pytest.approx(-4 + 0.5)


# ---- the running average


class Mixed(nn.Module):
    """Weights of two types, one of them frozen; buffers that move, that count and that switch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.exact = nn.Parameter(torch.zeros(5, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(4, dtype=torch.bool))


def change(method, random):
    """Every tensor takes other values."""
    with torch.no_grad():
        for tensor in method.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=random))
            else:
                tensor.copy_(torch.randint(0, 2, tensor.shape, generator=random))


def slow_average(history, decay):
    """Tensor by tensor, number by number: what moves is averaged, what counts is copied."""
    average = {name: tensor.clone() for name, tensor in history[0].items()}
    for number, current in enumerate(history[1:], start=1):
        share = min(decay, (1 + number) / (10 + number))
        for name, tensor in current.items():
            if not tensor.is_floating_point():
                average[name] = tensor.clone()
                continue
            flat = average[name].view(-1)
            for i, value in enumerate(tensor.reshape(-1).tolist()):
                flat[i] = share * flat[i].item() + (1 - share) * value
    return average


def follow(method, average, steps, random):
    """Change and average so many times; the tensors of the method after each."""
    history = []
    for _ in range(steps):
        change(method, random)
        average.update_parameters(method)
        history.append({name: tensor.clone() for name, tensor in method.state_dict().items()})
    return history


@pytest.mark.parametrize("decay", [0.05, 0.3, 0.9, 0.999])
def test_the_average_equals_the_loop_over_tensors(decay):
    method = Mixed()
    average = Average(method, decay)
    history = follow(method, average, 12, torch.Generator().manual_seed(0))
    torch.testing.assert_close(dict(average.module.state_dict()), slow_average(history, decay))
    assert average.count == int(average.n_averaged) == 12


def test_the_average_starts_with_the_weights_after_the_first_step():
    method = Mixed()
    average = Average(method, 0.999)
    (only,) = follow(method, average, 1, torch.Generator().manual_seed(0))
    for name, tensor in average.module.state_dict().items():
        assert torch.equal(tensor, only[name])


def test_an_average_of_the_weights_begins_as_a_short_one():
    """Decay (1 + steps) / (10 + steps) until that is more than the one in the settings."""
    method = nn.Linear(1, 1, bias=False)
    average = Average(method, decay=0.2)
    values, expected = [1.0, 2.0, -3.0, 0.5], 1.0
    for steps, value in enumerate(values):
        with torch.no_grad():
            method.weight.fill_(value)
        average.update_parameters(method)
        if steps:
            decay = [None, 2 / 11, 0.2, 0.2][steps]  # 3 / 12 and 4 / 13 are more
            expected = decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected, abs=1e-6)  # float32, of 3


@pytest.mark.parametrize("before", [0, 1, 7])
def test_an_average_that_is_saved_and_loaded_goes_on_as_if_it_had_not_been(tmp_path, before):
    """Whatever it held before: a resumed run has made a new one."""
    method, whole = Mixed(), None
    for parted in (False, True):
        random = torch.Generator().manual_seed(0)
        average = Average(method, 0.999)
        follow(method, average, before, random)
        if parted:
            save_atomically({"average": average.state_dict()}, tmp_path / "last.pth")
            average = Average(Mixed(), 0.999)
            average.update_parameters(Mixed())
            average.load_state_dict(load_file(tmp_path / "last.pth")["average"])
            assert average.count == before
        follow(method, average, 5, random)
        found = {name: tensor.clone() for name, tensor in average.state_dict().items()}
        whole = whole or found
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_averaging_leaves_the_method_alone_and_keeps_no_graph():
    method = Mixed()
    average = Average(method, 0.9)
    random = torch.Generator().manual_seed(0)
    last = follow(method, average, 3, random)[-1]
    assert all(torch.equal(tensor, last[name]) for name, tensor in method.state_dict().items())
    assert all(parameter.grad_fn is None for parameter in average.module.parameters())
    method.layer(torch.ones(1, 3)).sum().backward()
    assert all(parameter.grad is None for parameter in average.module.parameters())
