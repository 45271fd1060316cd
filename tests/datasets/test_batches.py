"""Training batches: what is drawn, how it is shared out, and what unreadable files do."""

import numpy as np
import pytest
import torch
from sample_data import write_benchmark

from datasets import load_benchmark
from datasets.batches import ATTEMPTS, EpochSampler, Triplets, build_batches
from datasets.images import Preprocessing
from utils.errors import InputError

HALF = (0.5, 0.5, 0.5)
READ = Preprocessing(size=16, mean=HALF, std=HALF, crop=True)
DRAWS = [(epoch, number) for epoch in range(3) for number in range(50)]


def training_list(root, **counts):
    write_benchmark(root, unseen=1, **counts)
    split = "test_class_sketchy25"
    return load_benchmark("sketchy_extend", split, root, unseen=False, validation=False).train


def triplets(images, seed=0, skip_bad=False, preprocessing=READ):
    return Triplets(images, preprocessing, seed, skip_bad)


def without(images, class_name, modality):
    return images.select(~((images.class_name == class_name) & (images.modality == modality)))


def break_file(images, index):
    images.file(index).write_bytes(b"no image")


def test_a_draw_depends_on_seed_epoch_and_number_alone(tmp_path):
    images = training_list(tmp_path)
    one, other = triplets(images), triplets(images)
    backwards = {key: other.draw(*key) for key in reversed(DRAWS)}
    np.random.seed(3)
    assert all(one.draw(*key) == backwards[key] for key in DRAWS)


def test_draws_differ_between_seeds_epochs_numbers_and_attempts(tmp_path):
    images = training_list(tmp_path)

    def first_hundred(seed=0, epoch=0, first=0, attempt=0):
        return [triplets(images, seed).draw(epoch, first + i, attempt) for i in range(100)]

    sequences = [
        first_hundred(),
        first_hundred(seed=1),
        first_hundred(epoch=1),
        first_hundred(first=1),
        first_hundred(first=100),
        first_hundred(attempt=1),
    ]
    for i, one in enumerate(sequences):
        for other in sequences[:i]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 5


def test_a_draw_is_two_sketches_and_a_photo_of_one_class_and_a_photo_of_another(tmp_path):
    images = training_list(tmp_path)
    dataset = triplets(images)
    for key in DRAWS:
        s1, s2, p, n = dataset.draw(*key)
        assert images.modality[[s1, s2, p, n]].tolist() == ["sketch", "sketch", "photo", "photo"]
        assert images.target[s1] == images.target[s2] == images.target[p] != images.target[n]
        assert s1 != s2


def test_every_file_can_be_drawn_in_every_part(tmp_path):
    images = training_list(tmp_path, seen=3, sketches=3, photos=4)
    dataset = triplets(images)
    drawn = np.array([dataset.draw(0, number) for number in range(400)])
    sketches = set(np.flatnonzero(images.modality == "sketch"))
    photos = set(np.flatnonzero(images.modality == "photo"))
    assert [set(column) for column in drawn.T] == [sketches, sketches, photos, photos]


def test_classes_are_drawn_uniformly(tmp_path):
    images = training_list(tmp_path, seen=6)
    dataset = triplets(images)
    drawn = np.array([dataset.draw(0, number) for number in range(3000)])
    for column in (0, 3):  # of the matching class, of the other class
        counts = np.bincount(images.target[drawn[:, column]], minlength=6)
        chi_square = ((counts - 500) ** 2 / 500).sum()
        assert chi_square < 20.5  # 0.1 % of fair draws exceed this, at 5 degrees of freedom


def test_class_size_does_not_change_how_often_a_class_is_drawn(tmp_path):
    images = training_list(tmp_path, seen=2, photos=8)
    keep = np.flatnonzero((images.target == 1) | (images.modality == "sketch"))
    one_photo = np.flatnonzero((images.target == 0) & (images.modality == "photo"))[:1]
    dataset = triplets(images.select(np.concatenate([keep, one_photo])))
    classes = [dataset.images.target[dataset.draw(0, number)[0]] for number in range(1000)]
    assert 430 < sum(classes) < 570


def test_class_of_one_sketch_is_drawn_with_that_sketch_twice(tmp_path):
    images = training_list(tmp_path, seen=2, sketches=1)
    s1, s2, p, n = triplets(images).draw(0, 0)
    assert s1 == s2 and p != n


def test_one_class_makes_no_triplet(tmp_path):
    images = training_list(tmp_path)
    with pytest.raises(InputError, match="two classes"):
        triplets(images.select(images.target == 2))


@pytest.mark.parametrize("modality", ["sketch", "photo"])
def test_class_without_a_modality_is_named(tmp_path, modality):
    images = training_list(tmp_path)
    with pytest.raises(InputError, match=f"seen class banana has no {modality}"):
        triplets(without(images, "banana", modality))


def test_targets_need_not_be_consecutive(tmp_path):
    images = training_list(tmp_path)
    images = images.select(np.isin(images.target, [1, 4]))
    item = triplets(images)[0, 0]
    assert set(item["photo_targets"].tolist()) == {1, 4}


def test_item_holds_the_pictures_and_targets_of_its_draw(tmp_path):
    images = training_list(tmp_path)
    dataset = triplets(images)
    s1, s2, p, n = dataset.draw(2, 7)
    item = dataset[2, 7]
    for picture, index in zip([*item["sketches"], *item["photos"]], (s1, s2, p, n), strict=True):
        assert torch.equal(picture, READ(images.file(index), images.modality[index]))
    assert item["sketch_targets"].tolist() == images.target[[s1, s2]].tolist()
    assert item["photo_targets"].tolist() == images.target[[p, n]].tolist()
    assert item["unreadable"] == []


def test_batch_has_all_matching_pairs_first_then_the_others(tmp_path):
    dataset = triplets(training_list(tmp_path))
    items = [dataset[0, number] for number in range(3)]
    batch = Triplets.collate(items)
    assert batch["sketches"].shape == batch["photos"].shape == (6, 3, 16, 16)
    for i, item in enumerate(items):
        for half in (0, 1):
            at = 3 * half + i
            for name in ("sketches", "photos", "sketch_targets", "photo_targets"):
                assert torch.equal(batch[name][at], item[name][half])
    same = batch["sketch_targets"] == batch["photo_targets"]
    assert same.tolist() == [True] * 3 + [False] * 3


def test_batch_of_one_draw(tmp_path):
    batch = Triplets.collate([triplets(training_list(tmp_path))[0, 0]])
    assert batch["photos"].shape == (2, 3, 16, 16) and batch["photo_targets"].shape == (2,)


# ---- unreadable files


def first_draw_with(dataset, index):
    return next(number for number in range(1000) if index in dataset.draw(0, number))


def test_unreadable_file_is_reported_with_list_and_line(tmp_path):
    images = training_list(tmp_path)
    at = int(np.flatnonzero(images.modality == "photo")[0])
    break_file(images, at)
    dataset = triplets(images)
    item = dataset[0, first_draw_with(dataset, at)]
    (sentence,) = item["unreadable"]
    assert str(images.file(at)) in sentence
    assert "named in all_photo_filelist_train.txt, line 1" in sentence
    batch = Triplets.collate([dataset[1, 0], item])
    assert batch == {"unreadable": [sentence]}


def test_under_skip_bad_the_next_attempt_takes_its_place(tmp_path):
    images = training_list(tmp_path)
    broken = int(np.flatnonzero(images.modality == "sketch")[5])
    break_file(images, broken)
    dataset = triplets(images, skip_bad=True)
    number = first_draw_with(dataset, broken)
    attempt = next(a for a in range(1, ATTEMPTS) if broken not in dataset.draw(0, number, a))
    item = dataset[0, number]
    s1, _, _, n = dataset.draw(0, number, attempt)
    assert torch.equal(item["sketches"][0], READ(images.file(s1), "sketch"))
    assert torch.equal(item["photos"][1], READ(images.file(n), "photo"))
    assert len(item["unreadable"]) == attempt and str(images.file(broken)) in item["unreadable"][0]
    batch = Triplets.collate([dataset[0, number], dataset[0, number]])
    assert len(batch["sketches"]) == 4 and len(batch["unreadable"]) == 2 * attempt


def test_under_skip_bad_drawing_ends_where_nothing_is_readable(tmp_path):
    images = training_list(tmp_path, seen=2, sketches=2, photos=1)
    for index in range(len(images)):
        break_file(images, index)
    item = triplets(images, skip_bad=True)[0, 0]
    assert item["sketches"] is None and len(item["unreadable"]) == ATTEMPTS


# ---- sharing out


def epoch_of(sampler, epoch=0, first_step=0):
    sampler.epoch, sampler.first_step = epoch, first_step
    return list(sampler)


def test_an_incomplete_batch_is_dropped():
    sampler = EpochSampler(draws=11, size=4)
    batches = epoch_of(sampler, epoch=5)
    assert batches == [[(5, 0), (5, 1), (5, 2), (5, 3)], [(5, 4), (5, 5), (5, 6), (5, 7)]]
    assert sampler.steps == len(sampler) == 2


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_together_take_the_batches_of_one_process(world_size):
    whole = epoch_of(EpochSampler(draws=50, size=4 * world_size))
    parts = [epoch_of(EpochSampler(50, 4, rank, world_size)) for rank in range(world_size)]
    assert len(whole) == 50 // (4 * world_size)
    for step, batch in enumerate(whole):
        assert [key for part in parts for key in part[step]] == batch


def test_an_epoch_goes_on_where_it_was_left():
    whole = epoch_of(EpochSampler(draws=23, size=5), epoch=1)
    resumed = EpochSampler(draws=23, size=5)
    assert epoch_of(resumed, epoch=1, first_step=3) == whole[3:]
    assert len(resumed) == 1 and resumed.steps == 4
    assert epoch_of(resumed, epoch=1, first_step=4) == []


@pytest.mark.parametrize(("draws", "size", "world_size"), [(3, 4, 1), (7, 4, 2), (0, 1, 1)])
def test_draws_that_fill_no_batch_are_refused(draws, size, world_size):
    with pytest.raises(InputError, match=f"datasetLen {draws} does not fill one batch of {size}"):
        EpochSampler(draws, size, 0, world_size)


def loaded(images, workers, epochs=1, skip_bad=True, **sampler_settings):
    sampler = EpochSampler(draws=9, size=4, **sampler_settings)
    settings = {"seed": 7, "skip_bad": skip_bad, "flip": True, "workers": workers}
    batches = build_batches("triplets", images, READ, sampler, **settings)
    found = []
    for epoch in range(epochs):
        sampler.epoch = epoch
        found += list(batches)
    return found


def test_any_number_of_workers_gives_the_same_batches(tmp_path):
    images = training_list(tmp_path)
    break_file(images, 0)
    alone, with_workers = loaded(images, 0, epochs=2), loaded(images, 2, epochs=2)
    assert len(alone) == len(with_workers) == 4
    for one, other in zip(alone, with_workers, strict=True):
        assert one.keys() == other.keys() and one.pop("unreadable") == other.pop("unreadable")
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(alone[0]["photos"], alone[2]["photos"])  # another epoch


def test_flip_mirrors_about_half_of_the_pictures_and_nothing_else(tmp_path):
    images = training_list(tmp_path)
    plain, flipping = triplets(images), Triplets(images, READ, 0, False, flip=True)
    mirrored = []
    for key in DRAWS[:40]:
        one, other = plain[key], flipping[key]
        assert torch.equal(one["photo_targets"], other["photo_targets"])
        for name in ("sketches", "photos"):
            for picture, shown in zip(one[name], other[name], strict=True):
                mirrored.append(torch.equal(shown, picture.flip(-1)))
                assert mirrored[-1] or torch.equal(shown, picture)
    assert 60 < sum(mirrored) < 100  # of 160
    assert all(
        torch.equal(flipping[DRAWS[0]][name], flipping[DRAWS[0]][name])
        for name in one
        if name != "unreadable"
    )


def test_loading_leaves_the_random_numbers_of_training_alone(tmp_path):
    images = training_list(tmp_path)
    before = torch.get_rng_state()
    loaded(images, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_processes_see_the_pictures_of_one_with_twice_the_batch(tmp_path):
    images = training_list(tmp_path)
    sampler = EpochSampler(draws=8, size=8)
    settings = {"seed": 7, "skip_bad": False, "flip": True, "workers": 0}
    (whole,) = build_batches("triplets", images, READ, sampler, **settings)
    parts = []
    for rank in (0, 1):
        sampler = EpochSampler(8, 4, rank, world_size=2)
        parts += build_batches("triplets", images, READ, sampler, **settings)
    for name in ("sketches", "photos", "sketch_targets", "photo_targets"):
        halves = [part[name].unflatten(0, (2, 4)) for part in parts]  # (matching or not, draw)
        assert torch.equal(torch.cat(halves, dim=1).flatten(0, 1), whole[name])
