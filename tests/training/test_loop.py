"""The training loop, with a method of one number."""

import copy
import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import training.loop
from model.settings import TrainingSettings
from training.loop import Hooks, NonFiniteLossError, rate_at, train_one_epoch
from utils.errors import InputError

CPU = torch.device("cpu")
SETTINGS = ("schedule", "accumulate", "clip")
PLAIN = {"first_step": 0, "normalise": lambda levels: levels, "skip_bad": False}
NOTHING = {
    "before_step": lambda step: None,
    "after_step": lambda step: None,
    "stop": lambda: False,
    "report": lambda *_: None,
}


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
    """`count` batches of two draws; `unreadable` sentences by the number of the batch.

    The images of batch n are 10 n to 10 n + 7: its sketches first.
    """
    for number in range(count):
        yield {
            "sketch_numbers": 10 * number + torch.arange(4),
            "photo_numbers": 10 * number + torch.arange(4, 8),
            "sketches": torch.full((4, 3, 2, 2), value),
            "photos": torch.full((4, 3, 2, 2), value),
            "sketch_targets": torch.zeros(4, dtype=torch.int64),
            "unreadable": dict(unreadable).get(number, []),
        }


def train(model, items, steps, epoch=0, epochs=1, **more):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return train_with(optimizer, model, items, steps, epoch, epochs, **more)


def train_with(optimizer, model, items, steps, epoch=0, epochs=1, amp="off", **more):
    """more: settings of the training, hooks, and arguments of train_one_epoch()."""
    chosen = {name: more.pop(name) for name in SETTINGS if name in more}
    settings = TrainingSettings(epochs=epochs, amp=amp, **chosen)
    more["hooks"] = Hooks(**{name: more.pop(name, hook) for name, hook in NOTHING.items()})
    more = {"device": CPU, "epoch": epoch, "steps": steps, **PLAIN, **more}
    return train_one_epoch(model, items, optimizer, settings, **more)


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
def test_after_step_gets_the_step_of_the_whole_run(wrap):
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
def test_the_forward_pass_has_the_precision_of_the_settings_and_nothing_else_has(amp, dtype):
    method = Layer()
    result = train(method, batches(3), steps=3, amp=amp)
    assert method.precisions == [dtype] * 3
    assert method.autocast == [False, False] * 3  # on the way back, after the step
    assert {p.dtype for p in method.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in method.layer.parameters()} == {torch.float32}
    assert math.isfinite(result.losses["total"])


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


# ---- what reaches the method


class Listener(Number):
    """Keeps the batches that it is given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def forward(self, batch, progress):
        self.given.append(batch)
        return {"total": self.value * 1.0}


def test_pictures_are_normalised_and_nothing_else_is():
    method = Listener()
    levels = torch.arange(4 * 3 * 2 * 2, dtype=torch.uint8).view(4, 3, 2, 2)
    batch = {
        "sketches": levels,
        "photos": 255 - levels,
        "sketch_targets": torch.tensor([0, 1, 0, 1]),
        "photo_targets": torch.tensor([1, 0, 1, 0]),
        "chances": torch.rand(4, 2),
        "sketch_numbers": torch.arange(4),
        "photo_numbers": torch.arange(4),
        "unreadable": [],
    }
    train(method, [dict(batch)], 1, normalise=lambda levels: (levels.float() / 255 - 0.5) / 0.25)
    (given,) = method.given
    by_hand = [(level / 255 - 0.5) / 0.25 for level in levels.flatten().tolist()]
    assert given["sketches"].flatten().tolist() == pytest.approx(by_hand)
    torch.testing.assert_close(given["photos"], -given["sketches"])
    for name in ("sketch_targets", "photo_targets", "chances"):
        assert torch.equal(given[name], batch[name]) and given[name].dtype == batch[name].dtype
    assert given.keys() == batch.keys() - {"sketch_numbers", "photo_numbers", "unreadable"}


def test_without_normalising_the_method_gets_what_the_batch_has():
    method = Listener()
    train(method, batches(1, value=0.25), 1)
    assert torch.equal(method.given[0]["photos"], torch.full((4, 3, 2, 2), 0.25))


def test_a_batch_needs_no_numbers_of_images():
    batch = {"sketches": torch.ones(4, 3, 2, 2), "unreadable": []}
    assert train(Number(), [batch], 1).finished


# ---- before a step


def test_before_step_gets_the_steps_done_and_comes_before_the_forward_pass():
    method, seen = Number(), []
    settings = {"before_step": lambda step: seen.append((step, len(method.progress)))}
    train(method, batches(3), steps=7, first_step=4, epoch=2, epochs=3, **settings)
    assert seen == [(4, 0), (5, 1), (6, 2)]


def test_what_before_step_seeds_a_step_draws_however_the_epoch_was_parted():
    """As a run does with dropout."""

    class Drawing(Number):
        def forward(self, batch, progress):
            return {"total": self.value * torch.rand(())}

    def drawn(*parts):
        method, gradients = Drawing(), []
        method.value.register_hook(lambda gradient: gradients.append(gradient.item()))
        for first, count in parts:
            torch.rand(5)  # whatever came between
            seed = {"before_step": torch.manual_seed}
            train(method, batches(count), 6, first_step=first, **seed)
        return gradients

    whole = drawn((0, 6))
    assert drawn((0, 2), (2, 3), (5, 1)) == whole and len(set(whole)) == 6


# ---- after a step


def test_after_step_is_called_once_each_optimiser_step_is_done():
    method = Number()
    seen = []
    train(
        method,
        batches(3),
        3,
        after_step=lambda step: seen.append((step, len(method.after), method.value.item())),
    )
    assert [steps for _, steps, _ in seen] == [1, 2, 3]  # the method's own comes first
    assert [value for *_, value in seen] == [value for _, value in method.after]
    assert seen[0][2] == pytest.approx(0.2)


def test_after_step_gets_the_steps_of_the_epoch_so_far():
    seen = []
    train(Number(), batches(3), 9, epoch=1, epochs=2, first_step=4, after_step=seen.append)
    assert seen == [5, 6, 7]


def test_stop_is_called_before_the_step_that_is_then_still_done():
    calls = []

    def stop():
        calls.append("stop")
        return calls.count("stop") == 2

    result = train(Number(), batches(4), 4, after_step=calls.append, stop=stop)
    assert calls == ["stop", 1, "stop", 2] and result.steps == 2


def test_after_step_is_not_called_for_a_batch_that_ends_the_training():
    calls = []
    items = batches(3, unreadable={1: ["a.jpg: unreadable."]})
    with pytest.raises(InputError):
        train(Number(), items, 3, after_step=calls.append)
    assert calls == [1]


# ---- several batches a step


class Sums(Number):
    """A mean loss over the sketches of a batch, of a layer; notes when gradients are shared."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, 3)

    def forward(self, batch, progress):
        total = self.layer(batch["sketches"].flatten(1)).square().mean()
        return {"total": total}

    def after_step(self, step):
        self.after.append(step)


def random_batches(count, rows, seed=0):
    """`count` batches of so many sketches, one after the other from the same list."""
    generator = torch.Generator().manual_seed(seed)
    sketches = torch.randn(count * rows, 3, 2, 2, generator=generator)
    return [{"sketches": part, "unreadable": []} for part in sketches.split(rows)]


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_a_step_of_several_batches_equals_one_of_a_big_batch(accumulate):
    big, parted = Sums(), Sums()
    of_big = train(big, random_batches(2, rows=12), 2)
    items = random_batches(2 * accumulate, rows=12 // accumulate)
    of_parted = train(parted, items, 2, accumulate=accumulate)
    torch.testing.assert_close(parted.layer.state_dict(), big.layer.state_dict())
    assert of_parted.losses == pytest.approx(of_big.losses)
    assert (of_parted.steps, parted.after) == (2, [1, 2]) and of_parted.finished


def test_batches_of_a_step_count_as_one_step():
    before, after, stops = [], [], []
    settings = {"before_step": before.append, "after_step": after.append}
    method = Number()
    train(method, batches(6), 2, accumulate=3, stop=lambda: stops.append(1), **settings)
    assert (before, after, len(stops)) == ([0, 1], [1, 2], 2)
    assert method.progress == [0] * 3 + [0.5] * 3


class Shared(Wrapped):
    """Notes for each batch whether its gradient would be sent to other processes."""

    def __init__(self, module):
        super().__init__(module)
        self.quiet, self.shared = False, []

    @contextmanager
    def no_sync(self):
        self.quiet = True
        yield
        self.quiet = False

    def forward(self, *inputs):
        losses = super().forward(*inputs)
        on_the_way_back = losses["total"] * 1
        on_the_way_back.register_hook(lambda gradient: self.shared.append(not self.quiet))
        return {**losses, "total": on_the_way_back}


@pytest.mark.parametrize(("accumulate", "shared"), [(1, [True] * 6), (3, [False, False, True] * 2)])
def test_processes_share_gradients_once_a_step(accumulate, shared):
    model = Shared(Number())
    train(model, batches(6), 6 // accumulate, accumulate=accumulate)
    assert model.shared == shared


def test_files_of_every_batch_of_a_step_are_noted():
    items = batches(4, unreadable={1: ["a.jpg: bad."], 2: ["b.jpg: bad."]})
    result = train(Number(), items, 2, accumulate=2, skip_bad=True)
    assert result.unreadable == {"a.jpg: bad.", "b.jpg: bad."}


# ---- the norm of the gradient


class Slope(Number):
    """A loss with the gradient (3, 4)."""

    def __init__(self):
        super().__init__()
        self.other = nn.Parameter(torch.zeros(()))
        self.unused = nn.Parameter(torch.ones(()))

    def forward(self, batch, progress):
        return {"total": 3 * self.value + 4 * self.other}


@pytest.mark.parametrize(
    ("clip", "moved"),
    [
        (0.0, (-0.3, -0.4)),
        (1.0, (-0.06, -0.08)),
        (2.5, (-0.15, -0.2)),
        (5.0, (-0.3, -0.4)),
        (100.0, (-0.3, -0.4)),
    ],
)
def test_a_longer_gradient_is_scaled_down_to_the_norm_of_the_settings(clip, moved):
    method, norms = Slope(), []
    report = {"report": lambda step, figures, losses: norms.append(figures["gradient_norm"])}
    train(method, batches(1), 1, clip=clip, **report)
    assert (method.value.item(), method.other.item()) == pytest.approx(moved, abs=1e-6)
    assert norms == pytest.approx([5])  # as it was before
    assert method.unused.item() == 1


def test_the_mean_of_several_batches_is_clipped_and_not_each():
    """Gradients 10 and -8: their mean is 1."""

    class Own(Number):
        def forward(self, batch, progress):
            return {"total": self.value * batch["sketches"].mean()}

    method = Own()
    train(method, [*batches(1, 10.0), *batches(1, -8.0)], 1, accumulate=2, clip=1.0)
    assert method.value.item() == pytest.approx(-0.1, abs=1e-6)


def test_clipping_needs_no_report(monkeypatch):
    monkeypatch.setattr(training.loop, "STEPS_BETWEEN_REPORTS", 1000)
    method = Slope()
    train(method, batches(3), 4, clip=1.0)
    assert method.value.item() == pytest.approx(-0.18, abs=1e-6)


# ---- stopping and resuming


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_stop_ends_after_the_step(stop_after):
    method = Number()
    items = batches(4)
    result = train(method, items, 4, stop=lambda: len(method.after) == stop_after - 1)
    assert result.steps == len(method.after) == stop_after
    assert result.finished == (stop_after == 4)
    assert len(list(items)) == 4 - stop_after  # no further batch was read


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
    monkeypatch.setattr(training.loop, "STEPS_BETWEEN_REPORTS", every)
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


class Clock:
    """Time as a test lets it pass; stands in for the module."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def slow(self, items, seconds):
        """Items that each take so long to come."""
        for item, passed in zip(items, seconds, strict=True):
            self.now += passed
            yield item


@pytest.mark.parametrize("processes", [1, 2])
def test_speed_and_waiting_are_of_the_time_since_the_last_report(monkeypatch, processes):
    """Batches of 8 images come after 3, 1 and 5 s; steps take 1, 3 and 3 s."""
    clock, method, found = Clock(), Number(), []
    monkeypatch.setattr(training.loop, "time", clock)
    monkeypatch.setattr(training.loop, "STEPS_BETWEEN_REPORTS", 2)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    seconds = iter([1.0, 3.0, 3.0])

    def take_time(step):
        clock.now += next(seconds)

    items = clock.slow(batches(3), [3.0, 1.0, 5.0])
    report = {"report": lambda *words: found.append(words)}
    train(method, items, 3, before_step=take_time, **report)
    expected = [16 / 8 * processes, 8 / 8 * processes]
    assert [figures["images_per_second"] for _, figures, _ in found] == expected
    assert [figures["data_wait"] for _, figures, _ in found] == [4 / 8, 5 / 8]


def test_images_of_all_batches_of_a_step_count(monkeypatch):
    clock, found = Clock(), []
    monkeypatch.setattr(training.loop, "time", clock)
    report = {"report": lambda *words: found.append(words)}
    train(Number(), clock.slow(batches(3), [1.0, 2.0, 1.0]), 1, accumulate=3, **report)
    assert found[0][1]["images_per_second"] == 24 / 4
    assert found[0][1]["data_wait"] == 1


def test_a_report_has_the_norm_of_the_last_gradient(monkeypatch):
    """Pulled from 0 to 1 by a fifth of the way a step; the gradient is twice what is left."""
    found = reports(monkeypatch, every=2, count=3, steps=3)
    norms = [figures["gradient_norm"] for _, figures, _ in found]
    assert norms == pytest.approx([2 * 0.8, 2 * 0.64])
    assert found[0][1].keys() == {"images_per_second", "data_wait", "gradient_norm"}


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
    with pytest.raises(InputError, match="no longer finite"):  # else it would be saved as good
        train(Number(), batches(3, math.nan), steps=3, stop=lambda: True)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_the_step_of_such_a_loss_is_not_done(clip):
    method, after = Layer(), []
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1)
    kept = []

    def keep(step):
        after.append(step)
        kept[:] = [copy.deepcopy(method.state_dict()), copy.deepcopy(optimizer.state_dict())]

    items = [*batches(2), *batches(1, math.inf), *batches(1)]
    with pytest.raises(NonFiniteLossError):
        train_with(optimizer, method, items, 4, clip=clip, after_step=keep)
    assert after == [1, 2]
    torch.testing.assert_close(dict(method.state_dict()), dict(kept[0]), rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict()["state"], kept[1]["state"], rtol=0, atol=0)
    assert all(tensor.isfinite().all() for tensor in method.state_dict().values())


def test_the_error_tells_step_losses_and_images_of_every_batch_of_the_step():
    """Steps of two batches; of the second step, the first has the fault."""
    items = list(batches(6))
    items[2] |= {"sketches": torch.full((4, 3, 2, 2), math.nan)}
    with pytest.raises(NonFiniteLossError, match=r"^epoch 3, step 2: the loss pull, total is") as e:
        train(Number(), items, 3, epoch=2, epochs=3, accumulate=2)
    assert e.value.step == 2
    first, second = e.value.losses
    assert math.isnan(first["pull"]) and math.isnan(first["total"]) and first["push"] == 0
    assert second == pytest.approx({"pull": 0.64, "push": 0, "total": 0.64})
    assert e.value.numbers == [*range(20, 28), *range(30, 38)]
    assert "--learning_rate" in str(e.value) and "--clip 1" in str(e.value)


def test_every_process_stops_where_one_has_such_a_loss(monkeypatch):
    method = Number()
    monkeypatch.setattr(training.loop, "any_process", lambda *flags: [False, True])
    with pytest.raises(NonFiniteLossError, match="step 1: the loss of another process is") as e:
        train(method, batches(3), 3)
    assert method.value == 0 and method.after == []
    assert e.value.losses == [{"pull": 1, "push": 0, "total": 1}]


def test_processes_share_stop_and_fault_once_a_step(monkeypatch):
    shared = []

    def any_process(*flags):
        shared.append(flags)
        return list(flags)

    monkeypatch.setattr(training.loop, "any_process", any_process)
    train(Number(), batches(4), 2, accumulate=2, stop=lambda: len(shared) == 1)
    assert shared == [(False, False), (True, False)]


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
