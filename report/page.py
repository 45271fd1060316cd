"""The photos found, as one HTML page: images inside, no links outside, for phones and paper."""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from utils.files import written_whole


@dataclass(frozen=True)
class Photo:
    """A photo that was found: path, score as text, a JPEG (None: the file has gone)."""

    path: str
    score: str
    jpeg: bytes | None


@dataclass(frozen=True)
class Section:
    """A sketch, by the path of its file, and the photos found for it, closest first.

    given, seen: JPEGs of the sketch, as its file is and as the network sees it. note: a sentence
    about what was done to it, or "".
    """

    path: str
    note: str
    given: bytes
    seen: bytes
    photos: Sequence[Photo]


def write_page(
    file: Path, title: str, facts: Mapping[str, str], sections: Iterable[Section], total: int
) -> None:
    """Write the page, whole or not at all.

    facts: shown as a table, by name. sections: `total` of them, read one at a time.
    """
    with written_whole(file) as page:
        for piece in _pieces(title, facts, sections, total):
            page.write(piece.encode(errors="replace"))


def _pieces(
    title: str, facts: Mapping[str, str], sections: Iterable[Section], total: int
) -> Iterator[str]:
    rows = "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in facts.items())
    links = [f'<a href="#s{n}">{n}</a>' for n in range(1, total + 1)]
    menu = f'<nav aria-label="sketches">{" ".join(links)}</nav>' if total > 1 else ""
    yield _HEAD.substitute(title=escape(title), style=_STYLE, facts=rows, menu=menu)
    for number, section in enumerate(sections, 1):
        yield _section(number, section)
    yield "</main>\n</body>\n</html>\n"


def _section(number: int, section: Section) -> str:
    return _SECTION.substitute(
        id=f"s{number}",
        path=_path(section.path),
        note=f'<p class="note">{escape(section.note)}</p>' if section.note else "",
        given=_image(section.given, f"sketch {section.path}"),
        seen=_image(section.seen, f"sketch {section.path} as the network sees it"),
        photos="\n".join(_photo(rank, photo) for rank, photo in enumerate(section.photos, 1)),
    )


def _photo(rank: int, photo: Photo) -> str:
    image = '<span class="gone">not there any more</span>'
    if photo.jpeg is not None:
        image = _image(photo.jpeg, f"photo number {rank}: {photo.path}")
    return _PHOTO.substitute(
        image=image, rank=rank, score=escape(photo.score), path=_path(photo.path)
    )


def _path(path: str) -> str:
    """The name of a file, and below it the folder."""
    folder, _, name = path.rpartition("/")
    below = f' <span class="folder">{escape(folder)}/</span>' if folder else ""
    return f'<span class="name">{escape(name)}</span>{below}'


def _image(jpeg: bytes, what: str) -> str:
    data = base64.b64encode(jpeg).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(what)}" loading="lazy">'


_STYLE = """
:root { color-scheme: light dark; --ink: #1d1f23; --soft: #5b616b; --line: #d9dce1;
  --paper: #f6f7f9; --card: #ffffff; --mark: #006e58; }
@media (prefers-color-scheme: dark) { :root { --ink: #eceef1; --soft: #a3aab5; --line: #363b44;
  --paper: #15171b; --card: #1f2228; --mark: #55c9ac; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header, main { max-width: 78rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { margin: 0; font-weight: normal; }
h2 .name { font-size: 1.15rem; font-weight: 600; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr));
  gap: .4rem 1.5rem; margin: 0; }
dl div { border-top: 1px solid var(--line); padding-top: .3rem; min-width: 0; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .35rem; margin-top: 1rem; }
nav a { min-width: 2.2rem; padding: .25rem .5rem; text-align: center; text-decoration: none;
  color: var(--ink); background: var(--card); border: 1px solid var(--line);
  border-radius: .4rem; }
section { display: grid; grid-template-columns: 14rem minmax(0, 1fr); gap: 1.25rem;
  border-top: 1px solid var(--line); padding: 1.25rem 0; }
.query { position: sticky; top: 1rem; align-self: start; min-width: 0; }
.query .pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; margin: .6rem 0; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .8rem; color: var(--soft); }
img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #fff;
  border-radius: .3rem; }
.pair img { border: 1px solid var(--line); }
.note { font-size: .85rem; color: var(--soft); margin: .5rem 0 0; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .4rem; min-width: 0; break-inside: avoid; }
li img, .gone { background: var(--paper); }
.gone { display: grid; place-items: center; aspect-ratio: 1; color: var(--soft);
  font-size: .85rem; text-align: center; }
.line { display: flex; justify-content: space-between; margin-top: .35rem; }
.rank { font-weight: 600; color: var(--mark); }
.score { font-variant-numeric: tabular-nums; color: var(--soft); }
.path { font-size: .8rem; overflow-wrap: anywhere; line-height: 1.3; }
.name, .folder { display: block; }
.folder { color: var(--soft); font-size: .75rem; }
@media (max-width: 44rem) {
  header, main { padding: .75rem; }
  section { grid-template-columns: minmax(0, 1fr); gap: .75rem; }
  .query { position: static; }
  .query .pair { max-width: 20rem; }
  ol { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem; }
}
@media print { .query { position: static; } nav { display: none; } }
"""

_HEAD = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<link rel="icon" href="data:,">
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<dl>$facts</dl>
$menu
</header>
<main>
""")

_SECTION = Template("""<section id="$id">
<div class="query">
<h2 class="path">$path</h2>
<div class="pair">
<figure>$given<figcaption>as drawn</figcaption></figure>
<figure>$seen<figcaption>as the network sees it</figcaption></figure>
</div>
$note
</div>
<ol>
$photos
</ol>
</section>
""")

_PHOTO = Template("""<li>
$image
<div class="line"><span class="rank">$rank</span><span class="score">$score</span></div>
<div class="path">$path</div>
</li>""")
