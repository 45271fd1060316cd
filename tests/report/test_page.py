"""The page: one file, nothing from outside, every name escaped, readable without its images."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import pytest
from PIL import Image

from report.page import Photo, Section, write_page

WICKED = '<script>alert("&")</script>/a "b" \'c\' & d.jpg'


def jpeg(colour="red") -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, format="JPEG")
    return file.getvalue()


class Reader(HTMLParser):
    """What a browser reads: tags with attributes, and the text; all tags must be closed."""

    ALONE = ("meta", "link", "img")

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def sections(count=2):
    photos = [Photo("a/b/1.jpg", "0.912", jpeg()), Photo(WICKED, "not scored", None)]
    return [
        Section(f"my sketches/{number}.png", "faint: made dark", jpeg(), jpeg("blue"), photos)
        for number in range(count)
    ]


def written(tmp_path, some, title="Two sketches", facts=None) -> tuple[str, Reader]:
    file = tmp_path / "page.html"
    write_page(file, title, facts or {"gallery": "G"}, iter(some), len(some))
    text, reader = file.read_text(encoding="utf-8"), Reader()
    reader.feed(text)
    assert reader.open == []
    return text, reader


def test_images_are_inside_and_nothing_is_outside(tmp_path):
    text, reader = written(tmp_path, sections())
    images = reader.all("img")
    assert len(images) == 2 * 3
    for image in images:
        kind, data = image["src"].split(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(BytesIO(base64.b64decode(data))).size == (8, 8)
        assert image["alt"]
    assert not re.search(r"https?:|url\(|@import|<script", text)
    links = [tag["href"] for tag in reader.all("a") + reader.all("link")]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert {tag["id"] for tag in reader.all("section")} == {"s1", "s2"}
    assert {link for link in links if link.startswith("#")} == {"#s1", "#s2"}


def test_a_phone_learns_its_width_and_the_language_is_named(tmp_path):
    text, reader = written(tmp_path, sections())
    named = {meta.get("name"): meta.get("content") for meta in reader.all("meta")}
    assert named["viewport"] == "width=device-width, initial-scale=1"
    assert reader.all("html")[0]["lang"] == "en"
    assert "@media (max-width" in text and text.startswith("<!DOCTYPE html>")


def test_names_scores_notes_and_facts_are_text(tmp_path):
    section = Section(WICKED, WICKED, jpeg(), jpeg(), [Photo(WICKED, WICKED, jpeg())])
    text, reader = written(tmp_path, [section], WICKED, {WICKED: WICKED})
    assert reader.all("script") == [] and "<script" not in text
    shown = "".join(reader.text)
    assert shown.count("a \"b\" 'c' & d.jpg") == 8  # title, fact: twice; sketch, note, path, score
    alts = [image["alt"] for image in reader.all("img")]
    assert all(WICKED in alt for alt in alts) and len(set(alts)) == 3


def test_ranks_scores_and_a_photo_that_is_gone(tmp_path):
    _, reader = written(tmp_path, sections(1))
    shown = " ".join(" ".join(reader.text).split())
    assert "1 0.912 1.jpg a/b/" in shown
    assert "not there any more" in shown and "not scored" in shown
    assert "faint: made dark" in shown
    assert reader.all("nav") == []  # one sketch needs no menu


def test_a_name_that_is_no_text_does_not_stop_the_page(tmp_path):
    odd = "caf\udce9.jpg"  # a name of bytes that are no UTF-8
    section = Section(odd, "", jpeg(), jpeg(), [Photo(odd, "1", jpeg())])
    text, _ = written(tmp_path, [section])
    assert "caf?.jpg" in text


def test_a_page_that_is_not_finished_leaves_the_former_one(tmp_path):
    text, _ = written(tmp_path, sections())

    def stopped():
        yield sections()[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_page(tmp_path / "page.html", "other", {}, stopped(), 2)
    assert (tmp_path / "page.html").read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
