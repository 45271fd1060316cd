"""Encoding lists block by block, by one process or several, and the fingerprint of a method."""

import dataclasses
from itertools import chain

import numpy as np
import pytest
import torch
from fakes import FakeEncoder, FakeMethod, FakeSettings, World, image_list, on_disk, picture

from retrieval import encoder as encoder_module
from retrieval import store as store_module
from retrieval.stored import StoredRows, fingerprint
from utils.errors import InputError

CPU = torch.device("cpu")
BOTH = ("retrieval", "tokens")


def encode(method, images, size=3, names=("retrieval",), workers=0, skip_bad=False, store=None):
    encoder = FakeEncoder(method, workers=workers, skip_bad=skip_bad, store=store)
    with torch.no_grad():
        return list(encoder.blocks(images, names, size, "images"))


def test_blocks_number_the_images_in_list_order(method):
    blocks = encode(method, image_list("photo", [0] * 7))
    assert [block.numbers for block in blocks] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [block.faults for block in blocks] == [{}, {}, {}]
    assert method.encoded == {"sketch": [], "photo": list(range(7))}


def test_only_the_features_that_are_wanted_are_there(method):
    images = image_list("sketch", [0, 0])
    ((_, features, _),) = encode(method, images, names=BOTH)
    assert {name: tuple(t.shape) for name, t in features.items()} == {
        "retrieval": (2, 6),
        "tokens": (2, 2, 3),
    }


@pytest.mark.parametrize("size", [1, 2, 100])
def test_features_do_not_depend_on_the_block_size(method, size):
    images = image_list("photo", [0] * 5)
    whole = encode(method, images, size=5)[0][1]["retrieval"]
    blocks = encode(method, images, size=size)
    assert torch.equal(torch.cat([features["retrieval"] for _, features, _ in blocks]), whole)


def test_features_do_not_depend_on_the_number_of_workers(method):
    images = image_list("photo", [0] * 7, broken=[4])
    alone, helped = (encode(method, images, workers=n, skip_bad=True) for n in (0, 2))
    for (numbers, features, faults), other in zip(alone, helped, strict=True):
        assert (numbers, faults) == (other[0], other[2])
        assert torch.equal(features["retrieval"], other[1]["retrieval"])


def test_numbers_leave_out_unreadable_images(method):
    images = image_list("photo", [0] * 7, broken=[1, 3, 4, 5])
    blocks = encode(method, images, skip_bad=True)
    assert [block.numbers for block in blocks] == [[0, 2], [], [6]]
    assert [len(block.faults) for block in blocks] == [1, 3, 0]
    assert blocks[1][1] == {}
    with pytest.raises(InputError, match=r"1-broken\.png: unreadable .* photos\.txt, line 2"):
        encode(method, images)


# ---- a gallery, encoded by several processes

TARGETS = [0, 1, 2] * 3


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "features"


@pytest.fixture
def photos(tmp_path):
    return on_disk(image_list("photo", TARGETS), tmp_path)


def whole(method, images, folder, size=2, shared=False, skip_bad=True, levels=picture, names=BOTH):
    encoder = FakeEncoder(method, skip_bad=skip_bad, store=folder, levels=levels)
    with torch.inference_mode():
        return encoder.whole(images, names, size, "photos encoded", shared)


def shared_by(count, images, folder, monkeypatch, size=2, **settings):
    """What each of `count` processes returns, and the numbers of the photos that each encoded."""
    methods = [FakeMethod().eval() for _ in range(count)]
    sizes = [size] * count if isinstance(size, int) else size

    def work(rank):
        return whole(methods[rank], images, folder, sizes[rank], shared=True, **settings)

    made = World(count).run(monkeypatch, work)
    return made, [method.encoded["photo"] for method in methods]


def assert_same(made, expected):
    """Of one process, whatever the features are kept in."""
    assert made[0] == expected[0] and made[2] == expected[2]
    assert made[1].keys() == expected[1].keys()
    for name, rows in made[1].items():
        assert torch.equal(rows[:].float(), expected[1][name][:].float())


@pytest.mark.parametrize("size", [1, 2, 4, 100])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("cached", [False, True])
def test_processes_encode_each_photo_once_and_all_have_all(
    method, photos, folder, monkeypatch, count, size, cached
):
    expected = whole(method, photos, None)
    made, encoded = shared_by(count, photos, folder if cached else None, monkeypatch, size)
    for each in made:
        assert_same(each, expected)
        kept = isinstance(each[1]["tokens"], StoredRows)
        assert kept == cached and each[1]["retrieval"].dtype == torch.float32
        assert each[1]["tokens"][:].dtype == (torch.float16 if cached else torch.float32)
    blocks = [list(range(first, min(first + size, 9))) for first in range(0, 9, size)]
    assert encoded == [list(chain(*blocks[rank::count])) for rank in range(count)]
    if cached:  # by one process or by several, it is the same cache
        method.encoded["photo"].clear()
        assert_same(whole(method, photos, folder), expected)
        assert method.encoded["photo"] == []


def stop(photos, folder, at):
    """Encode until this photo comes."""

    def stopped(file, modality):
        if file.name.startswith(f"{at}-"):
            raise KeyboardInterrupt
        return picture(file, modality)

    with pytest.raises(KeyboardInterrupt):
        whole(FakeMethod().eval(), photos, folder, levels=stopped)


@pytest.mark.parametrize("done", [0, 4, 6, 8])
def test_processes_go_on_where_one_was_stopped(method, photos, folder, monkeypatch, done):
    expected = whole(method, photos, None)
    stop(photos, folder, at=done)
    made, encoded = shared_by(2, photos, folder, monkeypatch)
    assert sorted(encoded[0] + encoded[1]) == list(range(done, 9))
    for each in made:
        assert_same(each, expected)
    made, encoded = shared_by(2, photos, folder, monkeypatch)
    assert encoded == [[], []]
    for each in made:
        assert_same(each, expected)


def no_room(monkeypatch):
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: type("", (), {"free": 3}))


def no_entries(monkeypatch):
    def refuse(file, line):
        raise OSError("no space left")

    monkeypatch.setattr(store_module, "append_line", refuse)


def not_for_others(monkeypatch):
    """The first process alone sees the folder."""
    opened = encoder_module.open_stored_list
    monkeypatch.setattr(
        encoder_module,
        "open_stored_list",
        lambda *arguments: opened(*arguments) if encoder_module.is_main() else None,
    )


@pytest.mark.parametrize("refuse", [no_room, no_entries, not_for_others])
@pytest.mark.parametrize("done", [0, 4])
def test_processes_get_what_they_cannot_read_from_disk(
    method, photos, folder, monkeypatch, refuse, done
):
    expected = whole(method, photos, None)
    stop(photos, folder, at=done)
    refuse(monkeypatch)
    made, encoded = shared_by(3, photos, folder, monkeypatch)
    assert sorted(chain(*encoded)) == list(range(done, 9))
    for each in made:
        assert_same(each, expected)


@pytest.mark.parametrize("refuse", [None, no_room, no_entries])
@pytest.mark.parametrize("done", [0, 4])
def test_processes_fill_a_store_together_or_not_at_all(
    method, photos, folder, monkeypatch, refuse, done
):
    stop(photos, folder, at=done)
    methods = [FakeMethod().eval() for _ in range(2)]
    if refuse:
        refuse(monkeypatch)

    def work(rank):
        encoder = FakeEncoder(methods[rank], store=folder)
        with torch.inference_mode():
            encoder.keep(photos, BOTH, 2, "photos encoded")

    assert World(2).run(monkeypatch, work) == [None, None]
    encoded = sorted(chain(*(each.encoded["photo"] for each in methods)))
    assert encoded == list(range(done, 9 if not refuse else done + 4))  # a block each
    monkeypatch.undo()
    made = whole(method, photos, folder)
    assert method.encoded["photo"] == ([] if not refuse else list(range(done, 9)))
    assert_same(made, whole(method, photos, None))


def test_without_a_store_there_is_nothing_to_fill(method, photos):
    FakeEncoder(method).keep(photos, BOTH, 2, "photos encoded")
    assert method.encoded["photo"] == []


def test_processes_of_less_memory_decide_on_the_blocks(method, photos, folder, monkeypatch):
    made, encoded = shared_by(2, photos, folder, monkeypatch, size=[100, 2])
    assert encoded == [[0, 1, 4, 5, 8], [2, 3, 6, 7]]
    for each in made:
        assert_same(each, whole(method, photos, None))


BROKEN = [(4,), (0, 1), (0, 8), (2, 3, 6, 7), tuple(range(9))]


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("cached", [False, True])
def test_processes_leave_out_the_same_photos(method, folder, monkeypatch, broken, cached):
    images = image_list("photo", TARGETS, broken)
    expected = whole(method, images, None)
    assert len(expected[2]) == len(broken)
    for _ in range(2):  # the second time from what is kept
        made, encoded = shared_by(2, images, folder if cached else None, monkeypatch)
        for each in made:
            assert_same(each, expected)
    if cached and len(broken) < 9:
        assert encoded == [[], []]


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("kept", ["not kept", "new", "kept with --skip_bad"])
def test_processes_refuse_an_unreadable_photo_in_the_same_words(
    method, folder, monkeypatch, broken, kept
):
    images = image_list("photo", TARGETS, broken)
    if kept == "kept with --skip_bad":
        whole(method, images, folder)
    place = None if kept == "not kept" else folder
    ends, _ = shared_by(2, images, place, monkeypatch, skip_bad=False)
    assert [type(end) for end in ends] == [InputError, InputError]
    assert str(ends[0]) == str(ends[1])
    assert f"{broken[0]}-broken.png: unreadable" in str(ends[0]) and "--skip_bad" in str(ends[0])


def test_without_sharing_each_process_is_alone(method, photos, folder, monkeypatch):
    ends = World(2).run(monkeypatch, lambda rank: whole(FakeMethod().eval(), photos, None))
    for end in ends:
        assert_same(end, whole(method, photos, None))


# ---- fingerprint


def test_fingerprint_is_sixteen_hex_digits_and_the_same_every_time(method):
    one = fingerprint(method, image_list("sketch", [0, 1]), image_list("photo", [0]))
    again = fingerprint(method, image_list("sketch", [0, 1]), image_list("photo", [0]))
    assert one == again and len(one) == 16 and int(one, 16) >= 0


def test_fingerprint_knows_nothing_of_what_only_training_uses(method):
    images = image_list("sketch", [0, 1])
    before = fingerprint(method, images)
    method.teacher = torch.nn.Linear(2, 2)
    assert fingerprint(method, images) == before


def test_fingerprint_changes_with_a_weight(method):
    images = image_list("photo", [0, 1])
    before = fingerprint(method, images)
    with torch.no_grad():
        method.weight[3] += 1e-6
    assert fingerprint(method, images) != before


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", 4), ("mean", (0.4, 0.5, 0.5)), ("std", (1.0,) * 3), ("crop", False)],
)
def test_fingerprint_changes_with_the_preprocessing(method, name, value):
    images = image_list("photo", [0, 1])
    before = fingerprint(method, images)
    method.inputs = {**method.inputs, name: value}
    assert fingerprint(method, images) != before


def test_fingerprint_changes_with_the_settings(method):
    images = image_list("photo", [0, 1])
    before = fingerprint(method, images)
    method.settings = FakeSettings(width=7)
    assert fingerprint(method, images) != before


def test_fingerprint_changes_with_a_path_and_with_the_order_of_paths(method):
    images = image_list("photo", [0, 1, 2])
    renamed = dataclasses.replace(images, path=images.path.copy())
    renamed.path[1] += "x"
    variants = [images, renamed, images.select(np.array([1, 0, 2])), images.select([0, 1])]
    assert len({fingerprint(method, variant) for variant in variants}) == 4


def test_fingerprint_tells_in_which_list_an_image_is(method):
    images = image_list("photo", [0, 1, 2])
    first, rest = images.select([0]), images.select([1, 2])
    two, last = images.select([0, 1]), images.select([2])
    assert fingerprint(method, first, rest) != fingerprint(method, two, last)
