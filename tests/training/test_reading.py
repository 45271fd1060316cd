"""A data worker that dies is reported with the file that it was reading."""

import os
import signal

import pytest
import torch
from sample_data import training_list

from datasets.images import Preprocessing
from training.batches import EpochSampler, build_batches
from training.reading import NOTHING, Reading, explain_dead_worker

HALF = (0.5, 0.5, 0.5)
DEADLY = "photo 2.jpg"


class Deadly(Preprocessing):
    """Ends its process at one file, as a fault in a decoder does, or the system out of memory."""

    def levels(self, file, modality):
        """As ever, if it comes back."""
        if file.name == DEADLY:
            self.end()
        return super().levels(file, modality)


class Killed(Deadly):
    def end(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Crashed(Deadly):
    def end(self):
        os._exit(3)


def loader_of(images, preprocessing, workers):
    sampler = EpochSampler(draws=40, size=4)
    settings = {"seed": 7, "skip_bad": False}
    more = {"draw_settings": settings, "workers": workers}
    return build_batches("triplets", images, preprocessing, sampler, **more)


def death(loader):
    with pytest.raises(RuntimeError) as error:
        for _ in loader:
            pass
    return error.value


@pytest.mark.parametrize(
    ("ends", "how"), [(Killed, "was killed (Killed)"), (Crashed, "ended with exit code 3")]
)
def test_a_dead_worker_is_reported_with_its_file(tmp_path, ends, how):
    images = training_list(tmp_path)
    loader = loader_of(images, ends(16, HALF, HALF, crop=True), workers=1)
    error = death(loader)
    ((pid, number),) = loader.dataset.reading.rows.tolist()
    assert images.path[number].endswith(DEADLY)
    assert str(explain_dead_worker(loader, error)) == (
        f"Data worker {pid} {how} while it read {images.file(number)} (named in "
        f"{images.origin[number]}). If the machine's memory ran out, lower --num_workers; else "
        "check that file."
    )


def table(*rows):
    reading = Reading(len(rows))
    reading.rows[:] = torch.tensor(rows)
    return reading


@pytest.fixture
def loader(tmp_path):
    """Of two workers, by their process ids: 11 reads image 3, 22 nothing."""
    loader = loader_of(training_list(tmp_path), Preprocessing(16, HALF, HALF, True), 0)
    loader.dataset.reading = table((11, 3), (22, NOTHING))
    return loader


@pytest.mark.parametrize(
    ("said", "explained"),
    [
        (
            "DataLoader worker (pid 11) is killed by signal: Killed. ",
            "Data worker 11 was killed (Killed) while it read {3}. If the machine's memory ran "
            "out, lower --num_workers; else check that file.",
        ),
        (
            "DataLoader worker (pid(s) 11, 22) exited unexpectedly",
            "Data worker 11 ended unexpectedly while it read {3}; data worker 22 ended "
            "unexpectedly. If the machine's memory ran out, lower --num_workers; else check that "
            "file.",
        ),
        (
            "DataLoader worker (pid 22) is killed by signal: Bus error. It is possible that "
            "dataloader's workers are out of shared memory.",
            "Data worker 22 was killed (Bus error). If the machine's memory ran out, lower "
            "--num_workers.",
        ),
        (
            "DataLoader worker (pid 33) exited unexpectedly with exit code 1. Details are lost.",
            "Data worker 33 ended with exit code 1. If the machine's memory ran out, lower "
            "--num_workers.",
        ),
    ],
)
def test_what_torch_says_becomes_a_sentence(loader, said, explained):
    images = loader.dataset.images
    file = f"{images.file(3)} (named in {images.origin[3]})"
    sentence = str(explain_dead_worker(loader, RuntimeError(said)))
    assert sentence == explained.replace("{3}", file)


def test_two_files_are_two_to_check(loader):
    loader.dataset.reading = table((11, 3), (22, 4))
    error = RuntimeError("DataLoader worker (pid(s) 11, 22) exited unexpectedly")
    sentence = str(explain_dead_worker(loader, error))
    assert all(str(loader.dataset.images.file(number)) in sentence for number in (3, 4))
    assert sentence.endswith("else check those files.")


def test_the_signal_is_looked_for_in_what_led_to_the_error(loader):
    error = RuntimeError("DataLoader worker (pid(s) 11) exited unexpectedly")
    error.__cause__ = RuntimeError("DataLoader worker (pid 11) is killed by signal: Killed. ")
    assert "11 was killed (Killed) while" in str(explain_dead_worker(loader, error))


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of memory"), ValueError("is killed by signal: Killed")]
)
def test_other_errors_are_left_alone(loader, error):
    assert explain_dead_worker(loader, error) is None


def test_without_workers_nothing_is_noted(tmp_path):
    loader = loader_of(training_list(tmp_path), Preprocessing(16, HALF, HALF, True), 0)
    assert loader.dataset.reading is None
    error = RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. ")
    assert "Data worker 5 was killed (Killed). If" in str(explain_dead_worker(loader, error))


def test_a_worker_that_is_done_reads_nothing(tmp_path):
    loader = loader_of(training_list(tmp_path), Preprocessing(16, HALF, HALF, True), 2)
    assert len(list(loader)) == 10
    pids = [worker.pid for worker in loader._iterator._workers]
    assert loader.dataset.reading.rows.tolist() == [[pid, NOTHING] for pid in pids]
