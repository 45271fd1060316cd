"""Encoding a list block by block, and the fingerprint of what was encoded."""

import dataclasses

import numpy as np
import pytest
import torch
from fakes import image_list, picture

from retrieval.features import Encoder, fingerprint
from utils.errors import InputError

CPU = torch.device("cpu")


def encode(method, images, size=3, keep=("retrieval",), workers=0, skip_bad=False):
    encoder = Encoder(method, picture, CPU, workers=workers, skip_bad=skip_bad, keep=keep)
    with torch.no_grad():
        return list(encoder.blocks(images, size, "images"))


def test_blocks_number_the_images_in_list_order(method):
    blocks = encode(method, image_list("photo", [0] * 7))
    assert [numbers for numbers, _, _ in blocks] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [faults for _, _, faults in blocks] == [[], [], []]
    assert method.encoded == {"sketch": [], "photo": list(range(7))}


def test_only_the_features_asked_for_are_kept(method):
    images = image_list("sketch", [0, 0])
    ((_, features, _),) = encode(method, images, keep=("retrieval", "tokens"))
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
    assert [numbers for numbers, _, _ in blocks] == [[0, 2], [], [6]]
    assert [len(faults) for _, _, faults in blocks] == [1, 3, 0]
    assert blocks[1][1] == {}
    with pytest.raises(InputError, match=r"1-broken\.png: unreadable .* photos\.txt, line 2"):
        encode(method, images)


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
    method.settings = {"width": 7}
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
