"""Views of an image: what each shows, and how they make one retrieval vector."""

import pytest
import torch
from torch.nn import functional as F

from retrieval.views import VIEWS, encode_views, see


class Recorder:
    """Encodes an image as its own pixels, and keeps what it was shown."""

    def __init__(self):
        self.shown = []

    def encode(self, images, modality):
        self.shown.append(images)
        return {"retrieval": images.flatten(1), "tokens": images}


@pytest.fixture
def images():
    return torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(0)) + 0.1


def blob(row: int, column: int) -> torch.Tensor:
    """White with a dark spot, (1, 1, 41, 41)."""
    image = torch.ones(1, 1, 41, 41)
    image[0, 0, row - 1 : row + 2, column - 1 : column + 2] = -1
    return image


def place(image: torch.Tensor) -> tuple[float, float]:
    """Row and column of the middle of what is dark."""
    ink = 1 - image[0, 0]
    numbers = torch.arange(41.0)
    return (
        (ink.sum(dim=1) @ numbers / ink.sum()).item(),
        (ink.sum(dim=0) @ numbers / ink.sum()).item(),
    )


@pytest.mark.parametrize("modality", ["sketch", "photo"])
def test_plain_is_what_the_method_encodes(images, modality):
    method = Recorder()
    made = encode_views(method, images, modality, "plain")
    assert len(method.shown) == 1
    assert torch.equal(made["retrieval"], images.flatten(1))


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("modality", ["sketch", "photo"])
def test_the_vector_is_the_mean_direction_and_the_rest_is_plain(images, modality, views):
    method = Recorder()
    made = encode_views(method, images, modality, views)
    assert len(method.shown) == len(VIEWS[views][modality])
    assert torch.equal(method.shown[0], images) and torch.equal(made["tokens"], images)
    wanted = sum(F.normalize(shown.flatten(1), dim=-1) for shown in method.shown)
    got = F.normalize(made["retrieval"], dim=-1)
    torch.testing.assert_close(got, F.normalize(wanted, dim=-1))


def test_the_mirror_view_is_the_mirrored_image(images):
    for modality in ("sketch", "photo"):
        method = Recorder()
        encode_views(method, images, modality, "mirror")
        torch.testing.assert_close(method.shown[1], images.flip(-1), rtol=1e-4, atol=1e-5)


def test_each_image_is_seen_alone(images):
    together = encode_views(Recorder(), images, "sketch", "many")["retrieval"]
    alone = [encode_views(Recorder(), i[None], "sketch", "many")["retrieval"] for i in images]
    torch.testing.assert_close(together, torch.cat(alone))


def test_many_views_of_a_sketch_turn_shrink_and_lean():
    """A spot above the middle, right of it, and what becomes of its place, in pixels."""
    up, right = blob(8, 20), blob(20, 32)
    places = [(place(see(up, view)), place(see(right, view))) for view in VIEWS["many"]["sketch"]]
    sine, tangent = 12 * 0.139, 12 * 0.141  # of 8 degrees
    for number, wanted in {
        1: ((8, 20), (20, 8)),
        2: ((8, 20 - sine), (20 - sine, 32)),
        3: ((8, 20 + sine), (20 + sine, 32)),
        4: ((20 - 12 * 0.92, 20), (20, 20 + 12 * 0.92)),
        5: ((20 - 12 * 0.85, 20), (20, 20 + 12 * 0.85)),
        6: ((8, 20 + tangent), (20, 32)),
        7: ((8, 20 - tangent), (20, 32)),
    }.items():
        for got, expected in zip(places[number], wanted, strict=True):
            assert got == pytest.approx(expected, abs=0.35), number


def test_the_third_view_of_a_photo_is_cropped():
    view = VIEWS["many"]["photo"][2]
    row, column = place(see(blob(8, 20), view))
    assert (row, column) == pytest.approx((20 - 12 * 1.14, 20), abs=0.35)


def test_paper_goes_on_beyond_the_edge():
    white = torch.full((1, 3, 16, 16), 2.5)
    for view in VIEWS["many"]["sketch"]:
        torch.testing.assert_close(see(white, view), white)
