"""Any folder of images: found at any depth, in the same order, whatever else lies there."""

import os

import pytest
from PIL import Image

from datasets.unlabelled import folder_images, image_list, named_images
from utils.errors import InputError


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(root / name, format="PNG")


def paths(root, **settings):
    return folder_images(root, "photo", **settings).path.tolist()


def test_images_at_any_depth_and_of_any_spelling_in_order(tmp_path):
    write(tmp_path, "b.JPG", "a/z.png", "a/b/c/1.webp", "10.jpeg", "9.jpeg", "ä ö.Png")
    write(tmp_path, ".hidden.jpg", ".folder/1.jpg", "notes.txt", "jpg")
    expected = ["10.jpeg", "9.jpeg", "a/b/c/1.webp", "a/z.png", "b.JPG", "ä ö.Png"]
    assert paths(tmp_path) == expected
    images = folder_images(tmp_path, "photo")
    assert images.file(2) == tmp_path / "a/b/c/1.webp"
    assert set(images.modality) == {"photo"} and set(images.target) == {-1}


def test_links_are_followed_each_folder_once(tmp_path):
    write(tmp_path, "photos/1.jpg", "elsewhere/2.jpg")
    (tmp_path / "photos/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/circle").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/3.jpg").symlink_to(tmp_path / "elsewhere/2.jpg")
    assert paths(tmp_path / "photos") == ["1.jpg", "3.jpg", "linked/2.jpg"]


def test_a_folder_can_be_left_out(tmp_path):
    write(tmp_path, "1.jpg", "G/2.jpg", "G/deep/3.jpg")
    assert paths(tmp_path, leave_out=tmp_path / "G") == ["1.jpg"]
    assert paths(tmp_path, leave_out=tmp_path / "absent") == ["1.jpg", "G/2.jpg", "G/deep/3.jpg"]


@pytest.mark.skipif(os.name != "posix", reason="names of arbitrary bytes are POSIX's")
def test_a_name_that_is_no_text_is_an_image_too(tmp_path):
    file = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(file, "wb") as stream:
        Image.new("RGB", (4, 4)).save(stream, format="PNG")
    assert paths(tmp_path) == [os.fsdecode(b"caf\xe9.png")]


def test_what_is_wrong_is_told_by_the_path_alone(tmp_path):
    images = image_list(tmp_path, ["1.jpg"], "sketch")

    def refuse(file, modality):
        raise InputError(f"{file}: {modality} unreadable.")

    with pytest.raises(InputError) as told:
        images.read(0, refuse)
    assert str(told.value) == f"{tmp_path / '1.jpg'}: sketch unreadable."


def test_no_folder_and_no_image_are_sentences(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        folder_images(tmp_path / "absent", "photo")
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(InputError, match=r"holds no image.*\.jpg"):
        folder_images(tmp_path, "photo")
    with pytest.raises(InputError, match="holds no image"):
        named_images([tmp_path])


def test_named_files_and_folders_in_the_order_given_each_once(tmp_path):
    write(tmp_path, "z.png", "folder/b.png", "folder/a.png", "folder/c.svg", "odd.name")
    given = [tmp_path / "z.png", tmp_path / "folder", tmp_path / "odd.name", tmp_path / "z.png"]
    names = [path.relative_to(tmp_path).as_posix() for path in named_images(given, [".svg"])]
    assert names == ["z.png", "folder/a.png", "folder/b.png", "folder/c.svg", "odd.name"]
    assert len(named_images(given)) == 4
    with pytest.raises(InputError, match="no such file or folder"):
        named_images([tmp_path / "absent.png"])
