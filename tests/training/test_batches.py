"""Training batches: what is drawn, how it is shared out, and what unreadable files do."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_data import training_list

import training.batches
from datasets.images import Preprocessing
from training.batches import ATTEMPTS, BATCHES, Classes, EpochSampler, Triplets, build_batches
from utils.errors import InputError

HALF = (0.5, 0.5, 0.5)
READ = Preprocessing(size=16, mean=HALF, std=HALF, crop=True)
ROWS = (
    "sketches",
    "photos",
    "sketch_targets",
    "photo_targets",
    "sketch_numbers",
    "photo_numbers",
    "chances",
)
DRAWS = [(epoch, number) for epoch in range(3) for number in range(50)]


def draws(kind, images, seed=0, skip_bad=False, **settings):
    return BATCHES[kind](images, READ, seed=seed, skip_bad=skip_bad, **settings)


def triplets(images, **settings):
    return draws("triplets", images, **settings)


def classes(images, **settings):
    return draws("classes", images, **settings)


def class_of(dataset, epoch, number, attempt=0):
    """The class of a draw of a class."""
    (target,) = set(dataset.images.target[list(dataset.draw(epoch, number, attempt))])
    return int(target)


@pytest.fixture(params=BATCHES)
def kind(request):
    """Every kind of draw in the table."""
    return request.param


def without(images, class_name, modality):
    return images.select(~((images.class_name == class_name) & (images.modality == modality)))


def break_file(images, index):
    images.file(index).write_bytes(b"no image")


# ---- draws of any kind


def test_a_draw_depends_on_seed_epoch_and_number_alone(tmp_path, kind):
    images = training_list(tmp_path)
    one, other = draws(kind, images, per_class=2), draws(kind, images, per_class=2)
    backwards = {key: other.draw(*key) for key in reversed(DRAWS)}
    np.random.seed(3)
    assert all(one.draw(*key) == backwards[key] for key in DRAWS)


def test_draws_differ_between_seeds_epochs_numbers_and_attempts(tmp_path, kind):
    images = training_list(tmp_path)

    def first_hundred(seed=0, epoch=0, first=0, attempt=0):
        dataset = draws(kind, images, seed=seed, per_class=2)
        return [dataset.draw(epoch, first + i, attempt) for i in range(100)]

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


def test_one_class_is_nothing_to_train_on(tmp_path, kind):
    images = training_list(tmp_path)
    with pytest.raises(InputError, match="two classes"):
        draws(kind, images.select(images.target == 2))


@pytest.mark.parametrize("modality", ["sketch", "photo"])
def test_class_without_a_modality_is_named(tmp_path, modality, kind):
    images = training_list(tmp_path)
    with pytest.raises(InputError, match=f"seen class banana has no {modality}"):
        draws(kind, without(images, "banana", modality))


def test_targets_need_not_be_consecutive(tmp_path, kind):
    images = training_list(tmp_path)
    dataset = draws(kind, images.select(np.isin(images.target, [1, 4])))
    assert {t for n in range(2) for t in dataset[0, n]["photo_targets"].tolist()} == {1, 4}


def test_item_holds_the_pictures_and_targets_of_its_draw(tmp_path, kind):
    images = training_list(tmp_path)
    dataset = draws(kind, images, per_class=3)
    indices = list(dataset.draw(2, 7))
    item = dataset[2, 7]
    pictures = [*item["sketches"], *item["photos"]]
    for picture, index in zip(pictures, indices, strict=True):
        assert picture.dtype == torch.uint8
        normalised = READ(images.file(index), images.modality[index])
        assert torch.equal(READ.normalise(picture), normalised)
    half = len(indices) // 2
    assert item["sketch_numbers"].tolist() == indices[:half]
    assert item["photo_numbers"].tolist() == indices[half:]
    assert item["sketch_numbers"].dtype == item["photo_numbers"].dtype == torch.int64
    assert item["sketch_targets"].tolist() == images.target[indices[:half]].tolist()
    assert item["photo_targets"].tolist() == images.target[indices[half:]].tolist()
    assert set(images.modality[indices[:half]]) == {"sketch"}
    assert set(images.modality[indices[half:]]) == {"photo"}
    assert item["unreadable"] == []


@pytest.mark.parametrize("per_class", [1, 3])
def test_batch_has_the_first_of_every_draw_then_the_second(tmp_path, kind, per_class):
    dataset = draws(kind, training_list(tmp_path), per_class=per_class)
    items = [dataset[0, number] for number in range(4)]
    batch = dataset.collate(items)
    K = {"triplets": 2, "classes": per_class}[kind]
    assert batch["sketches"].shape == batch["photos"].shape == (4 * K, 3, 16, 16)
    for i, item in enumerate(items):
        for k in range(K):
            for name in ROWS:
                assert torch.equal(batch[name][4 * k + i], item[name][k])
    assert batch.keys() == {*ROWS, "unreadable"}


def test_every_sketch_has_two_chances_that_depend_on_seed_epoch_and_number_alone(tmp_path, kind):
    images = training_list(tmp_path)
    one, other = (draws(kind, images, per_class=3) for _ in range(2))
    backwards = {key: other[key]["chances"] for key in reversed(DRAWS[:20])}
    np.random.seed(3)
    torch.manual_seed(3)
    K = {"triplets": 2, "classes": 3}[kind]
    for key in DRAWS[:20]:
        chances = one[key]["chances"]
        assert chances.shape == (K, 2) and chances.dtype == torch.float32
        assert torch.equal(chances, backwards[key])
    elsewhere = [draws(kind, images, seed=1, per_class=3)[0, 0], one[1, 0]]
    drawn = torch.cat([*backwards.values(), *(item["chances"] for item in elsewhere)])
    assert drawn.unique().numel() == drawn.numel()
    assert drawn.min() >= 0 and drawn.max() < 1
    assert 0.35 < drawn.mean() < 0.65  # of 88 or more: four standard deviations


def test_chances_are_apart_from_draws_and_augmentation(tmp_path, kind):
    images = training_list(tmp_path)
    plain, strong = draws(kind, images), draws(kind, images, augmentation="strong")
    assert torch.equal(plain[0, 3]["chances"], strong[0, 3]["chances"])
    for stream in ([0, 0, 3, 0], [0, 0, 3, 0, 1], [0, 0, 3, 0, 2]):
        chances = np.random.default_rng(stream).random(2, dtype=np.float32).tolist()
        assert plain[0, 3]["chances"][0].tolist() != chances


def test_a_draw_that_takes_the_place_of_another_has_its_own_chances(tmp_path, kind):
    images = training_list(tmp_path)
    whole = draws(kind, images)[0, 0]
    break_file(images, int(whole["sketch_numbers"][0]))
    instead = draws(kind, images, skip_bad=True)[0, 0]
    assert not torch.equal(instead["chances"], whole["chances"])


def test_batch_of_triplets_has_all_matching_pairs_first_then_the_others(tmp_path):
    dataset = triplets(training_list(tmp_path))
    batch = Triplets.collate([dataset[0, number] for number in range(3)])
    same = batch["sketch_targets"] == batch["photo_targets"]
    assert same.tolist() == [True] * 3 + [False] * 3


def test_batch_of_one_draw(tmp_path):
    batch = Triplets.collate([triplets(training_list(tmp_path))[0, 0]])
    assert batch["photos"].shape == (2, 3, 16, 16) and batch["photo_targets"].shape == (2,)


# ---- triplets


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


def test_classes_of_triplets_are_drawn_uniformly(tmp_path):
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
    drawn = [dataset.images.target[dataset.draw(0, number)[0]] for number in range(1000)]
    assert 430 < sum(drawn) < 570


def test_class_of_one_sketch_is_drawn_with_that_sketch_twice(tmp_path):
    images = training_list(tmp_path, seen=2, sketches=1)
    s1, s2, p, n = triplets(images).draw(0, 0)
    assert s1 == s2 and p != n


# ---- draws of classes


def test_classes_are_dealt_like_cards(tmp_path):
    """All once before any comes again."""
    dataset = classes(training_list(tmp_path, seen=5))
    for epoch in range(3):
        drawn = [class_of(dataset, epoch, number) for number in range(40)]
        assert all(sorted(drawn[i : i + 5]) == [0, 1, 2, 3, 4] for i in range(0, 40, 5))


def test_deals_differ_within_an_epoch_between_epochs_and_between_seeds(tmp_path):
    images = training_list(tmp_path)

    def deals(seed, epoch):
        drawn = [class_of(classes(images, seed=seed), epoch, number) for number in range(60)]
        return {tuple(drawn[i : i + 6]) for i in range(0, 60, 6)}

    one, other_epoch, other_seed = deals(0, 0), deals(0, 1), deals(1, 0)
    assert min(map(len, (one, other_epoch, other_seed))) >= 9  # of ten, out of 720
    assert max(len(one & other_epoch), len(one & other_seed)) <= 1


def test_every_class_comes_as_often_at_every_place_of_a_deal(tmp_path):
    dataset = classes(training_list(tmp_path, seen=3))
    counts = np.zeros((3, 3))
    for number in range(1800):
        counts[number % 3, class_of(dataset, 0, number)] += 1
    chi_square = ((counts - 200) ** 2 / 200).sum()
    assert chi_square < 18.5  # 0.1 % of fair deals exceed this, at 4 degrees of freedom


@pytest.mark.parametrize("seen", [2, 3, 6])
def test_any_three_draws_in_a_row_contain_two_classes(tmp_path, seen):
    dataset = classes(training_list(tmp_path, seen=seen))
    drawn = [class_of(dataset, 0, number) for number in range(200)]
    assert all(len(set(drawn[i : i + 3])) > 1 for i in range(198))
    assert any(drawn[i] == drawn[i + 1] for i in range(199))  # of two, perhaps one


@pytest.mark.parametrize("per_class", [1, 3, 4])
def test_a_draw_is_so_many_sketches_and_photos_of_one_class_each_once(tmp_path, per_class):
    images = training_list(tmp_path)  # 4 sketches and 5 photos a class
    dataset = classes(images, per_class=per_class)
    for key in DRAWS:
        drawn = list(dataset.draw(*key))
        assert images.modality[drawn].tolist() == ["sketch"] * per_class + ["photo"] * per_class
        assert len(set(images.target[drawn])) == 1
        assert len(set(drawn)) == 2 * per_class


def test_what_a_class_has_too_few_of_comes_again(tmp_path):
    images = training_list(tmp_path, seen=2, sketches=2, photos=3)
    sketches = [classes(images, per_class=3).draw(0, number)[:3] for number in range(50)]
    photos = [classes(images, per_class=3).draw(0, number)[3:] for number in range(50)]
    assert all(len(set(drawn)) == 3 for drawn in photos)
    assert {len(set(drawn)) for drawn in sketches} == {1, 2}


def test_every_file_of_a_class_can_be_drawn_at_every_place(tmp_path):
    images = training_list(tmp_path, seen=2, sketches=3, photos=4)
    drawn = np.array([classes(images, per_class=2).draw(0, number) for number in range(200)])
    sketches = set(np.flatnonzero(images.modality == "sketch"))
    photos = set(np.flatnonzero(images.modality == "photo"))
    assert [set(column) for column in drawn.T] == [sketches, sketches, photos, photos]


def test_the_draws_of_a_deal_take_other_places_of_their_classes(tmp_path):
    images = training_list(tmp_path, photos=4)
    dataset = classes(images)
    place = np.empty(len(images), dtype=int)  # of an image among those of its class
    for target in range(6):
        for modality in ("sketch", "photo"):
            members = (images.target == target) & (images.modality == modality)
            place[members] = np.arange(4)
    for deal in range(10):
        drawn = [dataset.draw(0, 6 * deal + i) for i in range(6)]
        assert len({tuple(place[list(indices)]) for indices in drawn}) > 1


def test_attempts_at_a_draw_go_through_all_classes(tmp_path):
    dataset = classes(training_list(tmp_path, seen=5))
    for number in range(10):
        attempts = [class_of(dataset, 1, number, attempt) for attempt in range(5)]
        assert sorted(attempts) == [0, 1, 2, 3, 4]
    for attempt in range(5):  # in the order of the deal
        assert class_of(dataset, 1, 0, attempt) == class_of(dataset, 1, attempt)


# ---- a sketch's own photo


def named_pairs(tmp_path):
    """Sketches named after photos of their class, but for the last sketch of each class."""
    images = training_list(tmp_path)  # 4 sketches and 5 photos a class
    path = images.path.copy()
    for target in range(6):
        sketches = np.flatnonzero((images.target == target) & (images.modality == "sketch"))
        for number, sketch in enumerate(sketches[:3]):
            path[sketch] = f"drawings/photo {number}-2.png"
    return dataclasses.replace(images, path=path)


@pytest.mark.parametrize("per_class", [1, 3])
def test_sketches_come_with_their_own_photos_as_often_as_the_setting_says(tmp_path, per_class):
    images = named_pairs(tmp_path)
    own = images.own_photos()
    assert (own >= 0).sum() == 18
    dataset = classes(images, per_class=per_class, own_photo=0.75)
    drawn = [dataset.draw(0, number) for number in range(600)]
    pairs = [pair for d in drawn for pair in zip(d[:per_class], d[per_class:], strict=True)]
    met = [own[sketch] == photo for sketch, photo in pairs if own[sketch] >= 0]
    assert 0.75 < np.mean(met) < 0.85  # 0.75 + 0.25 of a fifth, by chance
    assert all(images.target[sketch] == images.target[photo] for sketch, photo in pairs)
    strangers = {photo for sketch, photo in pairs if own[sketch] < 0}
    assert len(strangers) > 20  # of 30 photos


def test_always_and_never_are_exact_and_change_no_sketch(tmp_path):
    images = named_pairs(tmp_path)
    own = images.own_photos()
    never, always = classes(images), classes(images, own_photo=1.0)
    for key in DRAWS:
        (sketch, photo), (same, with_it) = never.draw(*key), always.draw(*key)
        assert same == sketch
        assert with_it == (own[sketch] if own[sketch] >= 0 else photo)


def test_names_that_tell_of_no_photo_change_no_draw(tmp_path):
    images = training_list(tmp_path)
    plain, own = classes(images, per_class=2), classes(images, per_class=2, own_photo=1.0)
    assert all(plain.draw(*key) == own.draw(*key) for key in DRAWS)


# ---- augmentation


def test_pictures_are_augmented_as_levels(tmp_path, kind, monkeypatch):
    images = training_list(tmp_path)
    given = []

    def invert(levels, modality, augmentation, random):
        given.append((levels.dtype, modality, augmentation))
        return 255 - levels

    monkeypatch.setattr(training.batches, "augment", invert)
    dataset = draws(kind, images, per_class=2, augmentation="light")
    item = dataset[1, 3]
    assert given == [(torch.uint8, m, "light") for m in ["sketch"] * 2 + ["photo"] * 2]
    pictures = [*item["sketches"], *item["photos"]]
    for picture, index in zip(pictures, dataset.draw(1, 3), strict=True):
        levels = READ.levels(images.file(index), images.modality[index])
        assert torch.equal(picture, 255 - levels)


def test_flip_mirrors_about_half_of_the_pictures_and_nothing_else(tmp_path, kind):
    images = training_list(tmp_path)
    plain = draws(kind, images, per_class=2)
    flipping = draws(kind, images, per_class=2, augmentation="flip")
    mirrored = []
    for key in DRAWS[:40]:
        one, other = plain[key], flipping[key]
        assert torch.equal(one["photo_targets"], other["photo_targets"])
        for name in ("sketches", "photos"):
            for picture, shown in zip(one[name], other[name], strict=True):
                mirrored.append(torch.equal(shown, picture.flip(-1)))
                assert mirrored[-1] or torch.equal(shown, picture)
    assert 60 < sum(mirrored) < 100  # of 160
    for place in range(4):  # each picture by its own chance
        assert 8 < sum(mirrored[place::4]) < 32
    assert len({tuple(mirrored[i : i + 4]) for i in range(0, 160, 4)}) > 8


def test_augmentation_changes_no_draw(tmp_path, kind):
    images = training_list(tmp_path)
    plain, strong = draws(kind, images), draws(kind, images, augmentation="strong")
    assert all(plain.draw(*key) == strong.draw(*key) for key in DRAWS)
    one, other = plain[0, 0], strong[0, 0]
    assert torch.equal(one["sketch_targets"], other["sketch_targets"])
    assert not torch.equal(one["photos"], other["photos"])


def test_an_augmented_item_depends_on_seed_epoch_and_number_alone(tmp_path, kind):
    images = training_list(tmp_path, seen=2, sketches=1, photos=1)  # few draws are possible
    one, other = (draws(kind, images, augmentation="strong") for _ in range(2))
    backwards = {key: other[key]["photos"] for key in reversed(DRAWS[:20])}
    np.random.seed(3)
    torch.manual_seed(3)
    assert all(torch.equal(one[key]["photos"], backwards[key]) for key in DRAWS[:20])
    elsewhere = draws(kind, images, seed=1, augmentation="strong")
    shown = [
        *backwards.values(),
        *(one[1, n]["photos"] for n in range(20)),
        elsewhere[0, 0]["photos"],
    ]
    for i, picture in enumerate(shown):
        assert not any(torch.equal(picture, former) for former in shown[:i])


# ---- unreadable files


def first_draw_with(dataset, index):
    return next(number for number in range(1000) if index in dataset.draw(0, number))


def test_unreadable_file_is_reported_with_list_and_line(tmp_path, kind):
    images = training_list(tmp_path)
    at = int(np.flatnonzero(images.modality == "photo")[0])
    break_file(images, at)
    dataset = draws(kind, images)
    item = dataset[0, first_draw_with(dataset, at)]
    (sentence,) = item["unreadable"]
    assert str(images.file(at)) in sentence
    assert "named in all_photo_filelist_train.txt, line 1" in sentence
    whole = next(n for n in range(1000) if at not in dataset.draw(1, n))
    batch = dataset.collate([dataset[1, whole], item])
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
    assert torch.equal(item["sketches"][0], READ.levels(images.file(s1), "sketch"))
    assert torch.equal(item["photos"][1], READ.levels(images.file(n), "photo"))
    assert len(item["unreadable"]) == attempt and str(images.file(broken)) in item["unreadable"][0]
    batch = Triplets.collate([dataset[0, number], dataset[0, number]])
    assert len(batch["sketches"]) == 4 and len(batch["unreadable"]) == 2 * attempt


@pytest.mark.parametrize("modality", ["sketch", "photo"])
def test_under_skip_bad_another_class_takes_the_place_of_an_unreadable_draw(tmp_path, modality):
    images = training_list(tmp_path)
    spoilt = np.flatnonzero((images.target == 3) & (images.modality == modality))
    for index in spoilt:
        break_file(images, index)
    dataset = classes(images, skip_bad=True, per_class=2)
    for number in range(12):
        item, drawn = dataset[0, number], class_of(dataset, 0, number)
        found = {*item["sketch_targets"].tolist(), *item["photo_targets"].tolist()}
        expected = class_of(dataset, 0, number, attempt=int(drawn == 3))
        assert found == {expected} != {3}
        assert len(item["unreadable"]) == (drawn == 3)
        indices = dataset.draw(0, number, attempt=int(drawn == 3))
        assert torch.equal(item["photos"][1], READ.levels(images.file(indices[3]), "photo"))


def test_under_skip_bad_the_one_readable_class_of_many_is_found(tmp_path):
    images = training_list(tmp_path)
    for index in np.flatnonzero(images.target != 4):
        break_file(images, index)
    dataset = classes(images, skip_bad=True)
    for number in range(6):
        item = dataset[0, number]
        assert item["photo_targets"].tolist() == [4]
        assert len(item["unreadable"]) < 6


def test_under_skip_bad_drawing_ends_where_nothing_is_readable(tmp_path, kind):
    images = training_list(tmp_path, seen=2, sketches=2, photos=1)
    for index in range(len(images)):
        break_file(images, index)
    item = draws(kind, images, skip_bad=True)[0, 0]
    assert item["sketches"] is None and len(item["unreadable"]) == ATTEMPTS


# ---- sharing out


def epoch_of(sampler, epoch=0, first_draw=0):
    sampler.epoch, sampler.first_draw = epoch, first_draw
    return list(sampler)


def draws_of_steps(draws, size, world_size=1, accumulate=1, first_draw=0):
    """Of each step the numbers that its processes draw, part by part and rank by rank."""
    samplers = [EpochSampler(draws, size, r, world_size, accumulate) for r in range(world_size)]
    epochs = [epoch_of(sampler, 0, first_draw) for sampler in samplers]
    assert {len(epoch) for epoch in epochs} == {len(samplers[0])}
    batches = [batch for together in zip(*epochs, strict=True) for batch in together]
    a_step = world_size * accumulate
    steps = [batches[i : i + a_step] for i in range(0, len(batches), a_step)]
    return [[number for batch in step for _, number in batch] for step in steps]


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
    assert epoch_of(resumed, epoch=1, first_draw=15) == whole[3:]
    assert (len(resumed), resumed.first_step, resumed.steps) == (1, 3, 4)
    assert epoch_of(resumed, epoch=1, first_draw=20) == []
    assert (len(resumed), resumed.first_step, resumed.steps) == (0, 4, 4)


def test_processes_and_parts_take_the_draws_of_a_step_in_one_order():
    expected = [list(range(0, 6)), list(range(6, 12)), list(range(12, 18))]
    assert draws_of_steps(20, 6) == expected
    assert draws_of_steps(20, 3, world_size=2) == expected
    assert draws_of_steps(20, 3, accumulate=2) == expected
    assert draws_of_steps(20, 1, world_size=3, accumulate=2) == expected


def test_a_part_is_shared_out_before_the_next_one_begins():
    batches = [epoch_of(EpochSampler(14, 2, rank, 2, accumulate=2), epoch=3) for rank in (0, 1)]
    assert batches[0] == [[(3, 0), (3, 1)], [(3, 4), (3, 5)]]
    assert batches[1] == [[(3, 2), (3, 3)], [(3, 6), (3, 7)]]


def test_a_loader_has_as_many_batches_as_parts():
    sampler = EpochSampler(draws=50, size=3, world_size=2, accumulate=2)
    assert (sampler.draws_a_step, sampler.steps, len(sampler)) == (12, 4, 8)
    sampler.first_draw = 24
    assert (sampler.first_step, sampler.steps, len(sampler)) == (2, 4, 4)


@settings(max_examples=200, deadline=None)
@given(
    draws=st.integers(1, 60),
    parts=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), min_size=2, max_size=4
    ),
    stops=st.lists(st.integers(0, 5), min_size=3, max_size=3),
)
def test_a_run_resumed_with_other_sizes_draws_none_twice_and_leaves_none_out(draws, parts, stops):
    done, drawn = 0, []
    for (size, world_size, accumulate), stop in zip(parts, [*stops, 0], strict=False):
        if size * world_size * accumulate > draws:
            continue
        steps = draws_of_steps(draws, size, world_size, accumulate, first_draw=done)[:stop]
        drawn += [number for step in steps for number in step]
        done += len(steps) * size * world_size * accumulate
    assert drawn == list(range(done))


def test_steps_count_from_the_start_of_the_epoch_whatever_their_size_was():
    sampler = EpochSampler(draws=100, size=10)
    sampler.first_draw = 36  # of three steps of 12
    assert (sampler.first_step, sampler.steps, len(sampler)) == (3, 9, 6)
    assert next(iter(sampler))[0] == (0, 36)


@pytest.mark.parametrize(
    ("draws", "size", "world_size", "accumulate", "a_step"),
    [(3, 4, 1, 1, 4), (7, 4, 2, 1, 8), (0, 1, 1, 1, 1), (23, 4, 2, 3, 24)],
)
def test_draws_that_fill_no_step_are_refused(draws, size, world_size, accumulate, a_step):
    with pytest.raises(InputError) as error:
        EpochSampler(draws, size, 0, world_size, accumulate)
    assert str(error.value) == (
        f"datasetLen {draws} does not fill one batch of {size} on {world_size} process(es) x "
        f"{accumulate}: a step takes {a_step} draws. Lower --batch, or raise --datasetLen."
    )
    EpochSampler(a_step, size, 0, world_size, accumulate)


def draw_settings(**changed):
    return {"seed": 7, "skip_bad": True, "augmentation": "light", "per_class": 2, **changed}


def loaded(kind, images, workers, epochs=1, **more):
    sampler = EpochSampler(draws=9, size=4)
    more = {"draw_settings": draw_settings(), "workers": workers, **more}
    batches = build_batches(kind, images, READ, sampler, **more)
    found = []
    for epoch in range(epochs):
        sampler.epoch = epoch
        found += list(batches)
    return found


def test_a_loader_draws_as_its_settings_say(tmp_path):
    images, sampler = training_list(tmp_path), EpochSampler(draws=9, size=4)
    for kind, of_kind in (("triplets", Triplets), ("classes", Classes)):
        more = {"draw_settings": draw_settings(), "workers": 0}
        dataset = build_batches(kind, images, READ, sampler, **more).dataset
        assert type(dataset) is of_kind
        found = {name: getattr(dataset, name) for name in draw_settings()}
        assert found == draw_settings()


def test_any_number_of_workers_gives_the_same_batches(tmp_path, kind):
    images = training_list(tmp_path)
    break_file(images, 0)
    alone, with_workers = loaded(kind, images, 0, epochs=2), loaded(kind, images, 2, epochs=2)
    assert len(alone) == len(with_workers) == 4
    for one, other in zip(alone, with_workers, strict=True):
        assert one.keys() == other.keys() and one.pop("unreadable") == other.pop("unreadable")
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(alone[0]["photos"], alone[2]["photos"])  # another epoch


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_pictures_give_the_same_batches(tmp_path, kind, workers):
    images = training_list(tmp_path)
    break_file(images, 0)
    plain = loaded(kind, images, 0, epochs=2)
    for _ in range(2):  # while pictures are kept, and of what was kept
        cached = loaded(kind, images, workers, epochs=2, cache_images=tmp_path / "kept")
        for one, other in zip(plain, cached, strict=True):
            assert one.keys() == other.keys() and one["unreadable"] == other["unreadable"]
            assert all(torch.equal(one[name], other[name]) for name in ROWS)


def test_loading_leaves_the_random_numbers_of_training_alone(tmp_path):
    images = training_list(tmp_path)
    before = torch.get_rng_state()
    loaded("classes", images, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_processes_see_the_pictures_of_one_with_twice_the_batch(tmp_path, kind):
    images = training_list(tmp_path)
    sampler = EpochSampler(draws=8, size=8)
    more = {"draw_settings": draw_settings(skip_bad=False), "workers": 0}
    (whole,) = build_batches(kind, images, READ, sampler, **more)
    parts = []
    for rank in (0, 1):
        sampler = EpochSampler(8, 4, rank, world_size=2)
        parts += build_batches(kind, images, READ, sampler, **more)
    for name in ROWS:
        halves = [part[name].unflatten(0, (2, 4)) for part in parts]  # (place in the draw, draw)
        assert torch.equal(torch.cat(halves, dim=1).flatten(0, 1), whole[name])
