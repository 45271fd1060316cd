"""The training loop, with a method of one number."""

import math

import pytest
import torch
from torch import nn

import engine
from engine import rate_at, train_one_epoch
from utils.errors import InputError

CPU = torch.device("cpu")


class Number(nn.Module):
    """Pulls one number to the mean of the batch's sketches; notes how it is called."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))
        self.progress, self.after, self.modes = [], [], []

    def forward(self, batch, progress):
        self.progress.append(progress)
        self.modes.append(self.training)
        pull = (self.value - batch["sketches"].mean()).square()
        push = 0.5 * self.value.square() * 0
        return {"pull": pull, "push": push, "total": pull + push}

    def after_step(self, step):
        self.after.append((step, self.value.item()))


class Wrapped(nn.Module):
    """Stands around a method as DistributedDataParallel does."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        return self.module(*inputs)


def batches(count, value=1.0, unreadable=()):
    """`count` batches of two draws; `unreadable` sentences by the number of the batch."""
    for number in range(count):
        yield {
            "sketches": torch.full((4, 3, 2, 2), value),
            "photos": torch.full((4, 3, 2, 2), value),
            "sketch_targets": torch.zeros(4, dtype=torch.int64),
            "unreadable": dict(unreadable).get(number, []),
        }


def train(model, items, steps, epoch=0, epochs=1, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return train_with(optimizer, model, items, steps, epoch, epochs, **settings)


def train_with(optimizer, model, items, steps, epoch=0, epochs=1, **settings):
    return train_one_epoch(
        model, items, optimizer, device=CPU, epoch=epoch, epochs=epochs, steps=steps, **settings
    )


def test_an_epoch_optimises_every_step():
    method = Number()
    result = train(method, batches(3), steps=3)
    assert result.steps == 3 and result.finished and result.unreadable == set()
    after = [1 - 0.8**step for step in (1, 2, 3)]  # each step goes a fifth of the way to 1
    assert [value for _, value in method.after] == pytest.approx(after)


def test_losses_are_means_over_the_steps():
    result = train(Number(), batches(3), steps=3)
    pulls = [0.8 ** (2 * step) for step in range(3)]
    assert result.losses == pytest.approx(
        {"pull": sum(pulls) / 3, "push": 0, "total": sum(pulls) / 3}
    )


def test_total_falls_over_epochs():
    method = Number()
    totals = [train(method, batches(5), 5, epoch, 4).losses["total"] for epoch in range(4)]
    assert totals == sorted(totals, reverse=True) and totals[-1] < 0.01 * totals[0]


def test_the_method_is_put_into_training_mode():
    method = Number().eval()
    train(method, batches(2), steps=2)
    assert method.modes == [True, True]


@pytest.mark.parametrize("wrap", [lambda method: method, Wrapped])
def test_after_step_is_told_the_step_of_the_whole_run(wrap):
    method = Number()
    train(wrap(method), batches(3), steps=3, epoch=2, epochs=5)
    assert [step for step, _ in method.after] == [7, 8, 9]


def test_progress_goes_from_zero_towards_one_over_all_epochs():
    method = Number()
    for epoch in range(2):
        train(method, batches(4), 4, epoch, epochs=2)
    assert method.progress == pytest.approx([i / 8 for i in range(8)])


# ---- schedule of the learning rate


def rates(schedule, epochs=2, steps=50, parted=False):
    """The rate of every step; parted: each epoch in two runs, with the optimiser from a file."""
    method = Number()
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    seen = []
    method.after_step = lambda step: seen.append(optimizer.param_groups[0]["lr"])
    for epoch in range(epochs):
        items = batches(steps)
        if parted:
            middle = len(seen) + steps // 2
            stop = {"stop": lambda middle=middle: len(seen) == middle}
            train_with(optimizer, method, items, steps, epoch, epochs, schedule=schedule, **stop)
            state = optimizer.state_dict()
            optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
            optimizer.load_state_dict(state)
        first = len(seen) - epoch * steps
        more = {"schedule": schedule, "first_step": first}
        train_with(optimizer, method, items, steps, epoch, epochs, **more)
    return seen


def test_the_constant_rate_is_the_optimisers_own():
    assert rates("constant") == [0.1] * 100


def test_the_cosine_rises_then_falls_to_nothing():
    seen = rates("cosine")
    expected = [
        0.1 * min(1, (i + 0.5) / 10) * (1 + math.cos(math.pi * (i + 0.5) / 100)) / 2
        for i in range(100)
    ]
    assert seen == pytest.approx(expected)
    assert max(seen) == seen[10] > 0.097 and 0 < seen[-1] < 1e-4


@pytest.mark.parametrize(
    ("done", "share"),
    [(0, 0), (0.05, 0.5 * 0.9938442), (0.1, 0.9755283), (0.5, 0.5), (0.75, 0.1464466), (1, 0)],
)
def test_the_cosine_by_hand(done, share):
    assert rate_at("cosine", done) == pytest.approx(share, abs=1e-7)
    assert rate_at("constant", done) == 1


def test_groups_with_their_own_rates_keep_their_ratio():
    method = Number()
    method.second = nn.Parameter(torch.zeros(()))
    groups = [{"params": [method.value], "lr": 0.1}, {"params": [method.second], "lr": 0.4}]
    optimizer = torch.optim.SGD(groups, lr=9.0)
    seen = []
    method.after_step = lambda step: seen.append([g["lr"] for g in optimizer.param_groups])
    train_with(optimizer, method, batches(20), 20, schedule="cosine")
    one, four = zip(*seen, strict=True)
    assert one == pytest.approx([0.1 * rate_at("cosine", (i + 0.5) / 20) for i in range(20)])
    assert four == pytest.approx([4 * rate for rate in one])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_rate_goes_on_where_it_stopped(schedule):
    assert rates(schedule, parted=True) == rates(schedule)


def test_a_training_of_one_step_learns_under_either_schedule():
    for schedule in ("constant", "cosine"):
        method = Number()
        train(method, batches(1), 1, schedule=schedule)
        assert method.value.item() != 0


# ---- precision


class Layer(Number):
    """Multiplies in a layer, as networks do; notes in which precision."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, 3)
        self.precisions, self.autocast = [], []

    def forward(self, batch, progress):
        out = self.layer(batch["sketches"].flatten(1))
        self.precisions.append(out.dtype)
        out.register_hook(lambda grad: self.autocast.append(torch.is_autocast_enabled("cpu")))
        pull = (out.float() - 1).square().mean()
        return {"pull": pull, "total": pull}

    def after_step(self, step):
        self.autocast.append(torch.is_autocast_enabled("cpu"))


@pytest.mark.parametrize(("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_the_forward_pass_has_the_precision_asked_for_and_nothing_else_has(amp, dtype):
    method = Layer()
    result = train(method, batches(3), steps=3, amp=amp)
    assert method.precisions == [dtype] * 3
    assert method.autocast == [False, False] * 3  # on the way back, after the step
    assert {p.dtype for p in method.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in method.layer.parameters()} == {torch.float32}
    assert math.isfinite(result.losses["total"])


def test_the_precision_is_full_by_default():
    method, full = Layer(), Layer()
    train(method, batches(2), steps=2)
    train(full, batches(2), steps=2, amp="off")
    assert method.precisions == [torch.float32] * 2
    assert torch.equal(method.layer.weight, full.layer.weight)


def test_a_step_in_bf16_is_autocast_written_out():
    method, plain = Layer(), Layer()
    train(method, batches(1, value=0.3), steps=1, amp="bf16")
    (batch,) = batches(1, value=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        total = plain(batch, 0)["total"]
    total.backward()
    torch.optim.SGD(plain.layer.parameters(), lr=0.1).step()
    assert torch.equal(method.layer.weight, plain.layer.weight)
    assert torch.equal(method.layer.bias, plain.layer.bias)


# ---- after a step


def test_after_step_is_called_once_each_optimiser_step_is_done():
    method = Number()
    seen = []
    train(
        method,
        batches(3),
        3,
        after_step=lambda: seen.append((len(method.after), method.value.item())),
    )
    assert [steps for steps, _ in seen] == [1, 2, 3]  # the method's own comes first
    assert [value for _, value in seen] == [value for _, value in method.after]
    assert seen[0][1] == pytest.approx(0.2)


def test_after_step_comes_before_the_question_whether_to_stop():
    calls = []

    def stop():
        calls.append("stop")
        return calls.count("stop") == 2

    train(Number(), batches(4), 4, after_step=lambda: calls.append("step"), stop=stop)
    assert calls == ["step", "stop"] * 2


def test_after_step_is_not_called_for_a_batch_that_ends_the_training():
    calls = []
    items = batches(3, unreadable={1: ["a.jpg: unreadable."]})
    with pytest.raises(InputError):
        train(Number(), items, 3, after_step=lambda: calls.append(1))
    assert calls == [1]


# ---- stopping and resuming


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_stop_ends_after_the_step(stop_after):
    method = Number()
    items = batches(4)
    result = train(method, items, 4, stop=lambda: len(method.after) == stop_after)
    assert result.steps == len(method.after) == stop_after
    assert result.finished == (stop_after == 4)
    assert len(list(items)) == 4 - stop_after  # no further batch was taken


def test_a_stopped_epoch_goes_on_as_if_it_had_not_stopped():
    whole, parted = Number(), Number()
    train(whole, batches(5), 5, epoch=1, epochs=2)
    items = batches(5)
    first = train(parted, items, 5, 1, 2, stop=lambda: len(parted.after) == 2)
    rest = train(parted, items, 5, 1, 2, first_step=first.steps)
    assert not first.finished and rest.finished and rest.steps == 5
    assert parted.after == whole.after and parted.progress == whole.progress


def test_losses_are_of_this_runs_steps_alone():
    result = train(Number(), batches(1, value=3.0), steps=5, first_step=4)
    assert result.losses["pull"] == 9 and result.steps == 5


def test_an_epoch_stopped_at_its_very_end_is_finished_when_resumed():
    result = train(Number(), batches(0), steps=5, first_step=5)
    assert result.finished and result.steps == 5


# ---- reports


def reports(monkeypatch, every, count, **settings):
    monkeypatch.setattr(engine, "STEPS_BETWEEN_REPORTS", every)
    found = []
    train(Number(), batches(count), report=lambda *words: found.append(words), **settings)
    return found


def test_reports_come_every_so_many_steps_and_at_the_end(monkeypatch):
    found = reports(monkeypatch, every=2, count=5, steps=5)
    assert [step for step, _, _ in found] == [2, 4, 5]
    pulls = [0.8 ** (2 * step) for step in range(5)]
    expected = [(pulls[0] + pulls[1]) / 2, (pulls[2] + pulls[3]) / 2, pulls[4]]
    assert [losses["pull"] for _, _, losses in found] == pytest.approx(expected)
    assert [set(losses) for _, _, losses in found] == [{"pull", "push", "total"}] * 3


def test_steps_of_a_resumed_epoch_are_counted_from_its_start(monkeypatch):
    found = reports(monkeypatch, every=2, count=2, steps=5, first_step=3)
    assert [step for step, _, _ in found] == [4, 5]


def test_speed_counts_the_images_of_both_modalities_since_the_last_report(monkeypatch):
    clock = iter([0.0, 4.0, 4.0, 6.0, 6.0])
    monkeypatch.setattr(engine.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(engine, "progress", lambda items, total, what: items)
    found = reports(monkeypatch, every=2, count=3, steps=3)
    assert [speed for _, speed, _ in found] == [2 * 8 / 4.0, 8 / 2.0]


# ---- losses that are not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_ends_the_training(value):
    with pytest.raises(InputError, match=r"epoch 2, step 1: the loss pull, total .*learning_rate"):
        train(Number(), batches(1, value), steps=1, epoch=1, epochs=3)


def test_one_such_loss_among_others_is_enough():
    items = [*batches(1), *batches(1, math.nan), *batches(1)]
    with pytest.raises(InputError, match="no longer finite"):
        train(Number(), items, steps=3)


def test_stopping_does_not_hide_a_loss_that_is_not_finite():
    method = Number()  # else the caller would save its spoilt weights
    with pytest.raises(InputError, match="no longer finite"):
        train(method, batches(3, math.nan), steps=3, stop=lambda: len(method.after) == 2)


# ---- unreadable files


def test_unreadable_file_ends_the_training():
    method = Number()
    items = batches(3, unreadable={1: ["a.jpg: unreadable.", "b.jpg: unreadable."]})
    with pytest.raises(InputError, match=r"^a\.jpg: unreadable\. .* --skip_bad"):
        train(method, items, steps=3)
    assert len(method.after) == 1


def test_under_skip_bad_unreadable_files_are_collected_and_named_once(caplog):
    again = {0: ["a.jpg: unreadable."], 2: ["a.jpg: unreadable.", "b.jpg: unreadable."]}
    result = train(Number(), batches(3, unreadable=again), steps=3, skip_bad=True)
    assert result.finished
    assert result.unreadable == {"a.jpg: unreadable.", "b.jpg: unreadable."}
    assert caplog.messages == ["skipped: a.jpg: unreadable.", "skipped: b.jpg: unreadable."]


def test_under_skip_bad_a_batch_without_any_readable_draw_is_an_error():
    items = [{"unreadable": ["a.jpg: unreadable."] * 20}]  # what Triplets.collate then makes
    with pytest.raises(InputError, match=r"a\.jpg"):
        train(Number(), items, steps=1, skip_bad=True)
