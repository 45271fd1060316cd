"""The results of an evaluation: a table, JSON, rankings as arrays, a picture."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from datasets.images import open_image
from report.pictures import Strip, draw_sheet, save_picture
from retrieval.evaluate import Evaluation
from utils.files import written_whole

COLUMNS = ("map_all", "average_precision", "precision_100", "accuracy@1")
DRAWN = 10  # photos of each sketch in the picture


def table(evaluation: Evaluation) -> str:
    """Metrics for people: all classes, a random ranking, then each class."""
    sketches = len(evaluation.queries)
    rows = [("all classes", sketches, evaluation.metrics)]
    rows += [("random ranking", sketches, evaluation.chance)]
    rows += [(name, values["queries"], values) for name, values in evaluation.by_class.items()]
    wide = max(len(name) for name, _, _ in rows)
    head = f"{'':{wide}}  sketches  " + "  ".join(f"{name:>17}" for name in COLUMNS)
    lines = [
        f"{name:{wide}}  {count:8}  "
        + "  ".join(f"{values[c]:17.4f}" if c in values else f"{'-':>17}" for c in COLUMNS)
        for name, count, values in rows
    ]
    return "\n".join([head, *lines])


def shortlist_line(evaluation: Evaluation, count: int) -> str:
    """The loss of re-ranking a shortlist of `count` photos, in a sentence."""
    measured = evaluation.shortlist
    found = ", ".join(
        f"{name} {measured['reranked'][name]:.4f} (all pairs {measured['all_pairs'][name]:.4f})"
        for name in ("average_precision", "precision_100", "accuracy@1")
    )
    return f"shortlist of {count}, on {measured['queries']} sketches: {found}"


def as_json(evaluation: Evaluation, skipped: list[str]) -> dict:
    """What a program may want to know of an evaluation. skipped: images that were not scored."""
    return {
        "counts": {
            "sketches": len(evaluation.queries),
            "photos": len(evaluation.gallery),
            "classes": len(evaluation.by_class),
            "skipped": len(skipped),
        },
        **evaluation.metrics,
        "chance": evaluation.chance,
        "shortlist": evaluation.shortlist,
        "by_class": evaluation.by_class,
        "skipped": skipped,
        "seconds": evaluation.seconds,
    }


def write_rankings(evaluation: Evaluation, file: Path) -> None:
    """Write the best photos of every sketch as numpy arrays, whole or not at all."""
    with written_whole(file) as stream:
        np.savez_compressed(
            stream,
            queries=evaluation.queries.path.astype(str),
            gallery=evaluation.gallery.path.astype(str),
            ranking=evaluation.rankings,
            similarity=evaluation.similarities,
        )


def draw_rankings(evaluation: Evaluation, count: int, title: str, file: Path) -> None:
    """Draw `count` sketches, spread evenly over the list, with their best photos.

    title: a phrase, to which mean average precision and the legend are added.
    """
    sketches = len(evaluation.queries)
    drawn = spread(count, sketches)
    title = (
        f"{title}: mAP (average_precision) {evaluation.metrics['average_precision']:.3f}; "
        f"{len(drawn)} of {sketches} sketches, spread evenly. Green: right class, red: wrong."
    )
    save_picture(draw_sheet(_strips(evaluation, drawn), title), file)


def spread(count: int, total: int) -> list[int]:
    """The middles of `count` equal parts of the numbers below `total`; all where count is more."""
    count = min(count, total)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def _strips(evaluation: Evaluation, numbers: list[int]) -> Iterator[Strip]:
    """Each of these queries with its best photos; the images of one are open at a time."""
    queries, gallery = evaluation.queries, evaluation.gallery
    for query in numbers:
        photos = evaluation.rankings[query, :DRAWN]
        yield Strip(
            query=open_image(queries.file(query)),
            query_name=str(queries.class_name[query]),
            photos=[open_image(gallery.file(photo)) for photo in photos],
            photo_names=[str(name) for name in gallery.class_name[photos]],
            relevant=(gallery.target[photos] == queries.target[query]).tolist(),
        )
