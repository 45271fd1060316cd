"""Things of the house, drawn from named parts, back to front; `m` measures one instance."""

from itertools import pairwise

import numpy as np

from datasets.synthetic.drawn.shapes import (
    Measures,
    Part,
    blob,
    box,
    curve,
    ellipse,
    line,
    mirrored,
    polygon,
    ring,
    rod,
    solid,
    tube,
    turned,
)


def cup(m: Measures) -> list[Part]:
    wide, low, reach = m(0.4, 0.6), m(0.3, 0.5), m(0.25, 0.42)
    top, bottom = m(-0.75, -0.45), m(0.5, 0.75)
    handle = curve((wide, top + 0.25), (wide + reach, top + 0.3), (wide + reach, 0.2), (low, 0.35))
    parts = [solid("handle", "ceramic", tube(handle, m(0.1, 0.18)), colour="body")]
    side = polygon((-wide, top), (wide, top), (low, bottom), (-low, bottom))
    parts.append(solid("body", "ceramic", side))
    parts.append(solid("rim", "dark", ellipse(0, top, wide, m(0.08, 0.16))))
    if m.maybe(0.4):
        saucer = ellipse(0, bottom + 0.05, m(0.75, 0.95), m(0.1, 0.16))
        parts.insert(0, solid("saucer", "ceramic", saucer, colour="body"))
    return parts


def teapot(m: Measures) -> list[Part]:
    wide, tall = m(0.5, 0.62), m(0.4, 0.55)
    spout = curve((-wide + 0.1, 0.25), (-wide - 0.15, 0.15), (-wide - 0.3, m(-0.4, -0.1)))
    handle = curve(
        (wide - 0.05, -0.2), (wide + m(0.25, 0.4), -0.25), (wide + 0.25, 0.3), (0.4, 0.4)
    )
    lid = ellipse(0, 0.15 - tall, m(0.25, 0.36), m(0.1, 0.16), 180, 360)
    return [
        solid("spout", "ceramic", tube(spout, m(0.22, 0.3), m(0.1, 0.15)), colour="body"),
        solid("handle", "ceramic", tube(handle, m(0.09, 0.14)), colour="body"),
        solid("body", "ceramic", ellipse(0, 0.15, wide, tall)),
        solid("lid", "ceramic", lid),
        solid("knob", "ceramic", ellipse(0, 0.0 - tall, m(0.06, 0.1)), colour="lid"),
    ]


def bottle(m: Measures) -> list[Part]:
    wide, neck = m(0.26, 0.4), m(0.08, 0.14)
    shoulder, throat = m(-0.3, 0.0), m(-0.6, -0.45)
    body = mirrored(
        (neck, throat),
        (neck, throat + 0.1),
        (wide, shoulder + 0.1),
        (wide, 0.5),
        (wide, 0.85),
        (wide * 0.8, 0.93),
        (0, 0.93),
    )
    top, bottom = m(0.1, 0.25), m(0.5, 0.7)
    parts = [
        solid("neck", "glass", box(-neck, -0.8, neck, throat + 0.1), colour="body"),
        solid("body", "glass", body),
        solid("cap", "paint", box(-neck - 0.03, -0.95, neck + 0.03, m(-0.82, -0.74))),
    ]
    if m.maybe(0.8):
        parts.append(solid("label", "paper", box(-wide, top, wide, bottom)))
    return parts


def wineglass(m: Measures) -> list[Part]:
    wide, mouth, depth = m(0.36, 0.52), m(0.28, 0.42), m(0.0, 0.2)
    bowl = mirrored((mouth, -0.85), (wide, -0.45), (wide * 0.7, depth - 0.15), (0, depth))
    level = m(-0.5, -0.2)
    wine = mirrored((wide * 0.85, level), (wide * 0.62, depth - 0.2), (0, depth - 0.06))
    return [
        solid("foot", "glass", ellipse(0, 0.82, m(0.3, 0.42), m(0.06, 0.1)), colour="bowl"),
        solid("stem", "glass", box(-0.04, depth - 0.05, 0.04, 0.82), colour="bowl"),
        solid("bowl", "glass", bowl),
        solid("wine", "drink", wine),
    ]


def lamp(m: Measures) -> list[Part]:
    top, bottom, hang = m(0.18, 0.35), m(0.45, 0.7), m(-0.2, 0.05)
    foot = ellipse(0, 0.85, m(0.3, 0.5), m(0.08, 0.14))
    if m.maybe(0.4):
        foot = mirrored((0.08, 0.15), (m(0.25, 0.4), 0.5), (0.15, 0.9), (0, 0.9))
    shade = polygon((-top, -0.85), (top, -0.85), (bottom, hang), (-bottom, hang))
    return [
        solid("stem", "metal", box(-0.05, hang, 0.05, 0.85)),
        solid("base", "ceramic", foot),
        solid("shade", "cloth", shade),
    ]


def candle(m: Measures) -> list[Part]:
    wide, top = m(0.14, 0.26), m(-0.4, -0.1)
    tip = m(0.3, 0.42)
    flame = mirrored((0, top - 0.12 - tip), (0.1, top - 0.28), (0.08, top - 0.14), (0, top - 0.1))
    parts = [
        solid("stick", "wax", box(-wide, top, wide, 0.75)),
        rod("wick", "dark", line((0, top), (0, top - 0.14)), 0.04),
        solid("flame", "flame", flame),
    ]
    dish = m(0.45, 0.7)
    if m.maybe(0.5):
        loop = tube(ring(dish + 0.1, 0.72, 0.16, 0.13), 0.07)
        parts.append(solid("handle", "metal", loop, colour="holder"))
    holder = polygon((-dish, 0.65), (dish, 0.65), (dish * 0.6, 0.88), (-dish * 0.6, 0.88))
    return [*parts, solid("holder", "metal", holder)]


def chair(m: Measures) -> list[Part]:
    wide, seat, leg = m(0.36, 0.5), m(0.0, 0.2), m(0.07, 0.12)
    skew = m(0.12, 0.25)
    back = box(-wide, -0.9, wide, m(-0.5, -0.35), rounded=0.08)
    rear = [box(x - leg / 2, -0.6, x + leg / 2, 0.75) for x in (leg / 2 - wide, wide - leg / 2)]
    front = [box(x - leg / 2, seat, x + leg / 2, 0.93) for x in (-wide - skew / 2, wide + skew / 2)]
    top = polygon(
        (-wide, seat - 0.15),
        (wide, seat - 0.15),
        (wide + skew, seat + 0.05),
        (-wide - skew, seat + 0.05),
    )
    cushion = "cloth" if m.maybe(0.5) else "wood"
    return [
        *(solid("leg", "wood", outline) for outline in rear),
        solid("back", "wood", back, colour="leg"),
        *(solid("leg", "wood", outline) for outline in front),
        solid("seat", cushion, top, colour="seat" if cushion == "cloth" else "leg"),
    ]


def table(m: Measures) -> list[Part]:
    wide, top, leg = m(0.75, 0.92), m(-0.4, -0.15), m(0.07, 0.13)
    deep, floor = m(0.15, 0.32), m(0.6, 0.85)
    inner = wide - 0.25
    board = polygon((-inner, top - deep), (inner, top - deep), (wide, top), (-wide, top))
    legs = [(x, floor - 0.2) for x in (0.1 - inner, inner - 0.1)]
    legs += [(x, floor) for x in (0.1 - wide, wide - 0.1)]
    return [
        *(solid("leg", "wood", box(x - leg / 2, top, x + leg / 2, end)) for x, end in legs),
        solid("edge", "wood", box(-wide, top, wide, top + m(0.08, 0.14)), colour="leg"),
        solid("top", "wood", board, colour="leg"),
    ]


def umbrella(m: Measures) -> list[Part]:
    wide, tall, rim = m(0.75, 0.95), m(0.55, 0.8), m(-0.1, 0.1)
    dome = ellipse(0, rim, wide, tall, 180, 360)
    waves = m.count(3, 5)
    edge = np.linspace(wide, -wide, waves + 1)
    scallops = [ellipse((a + b) / 2, rim, abs(a - b) / 2, 0.1, 0, -180) for a, b in pairwise(edge)]
    ribs = [curve((0, rim - tall), (x * 0.7, rim - tall * 0.55), (x, rim)) for x in edge[1:-1]]
    hook = curve((0, 0.7), (0.02, 0.88), (m(0.12, 0.2), 0.92), (m(0.22, 0.3), 0.75))
    return [
        rod("pole", "metal", line((0, rim - tall - 0.1), (0, 0.75)), 0.05),
        solid("handle", "wood", tube(hook, m(0.08, 0.12))),
        solid("canopy", "cloth", np.concatenate([dome, *scallops]), *ribs),
    ]


def key(m: Measures) -> list[Part]:
    bow, end, thick = m(0.25, 0.36), m(0.75, 0.92), m(0.09, 0.14)
    centre = bow - 0.92
    loop = tube(ring(centre, 0, bow - 0.06), m(0.1, 0.16))
    teeth = np.linspace(end - 0.12, end - m(0.32, 0.45), m.count(2, 3))
    long = m(0.2, 0.34)
    return [
        solid("shaft", "metal", box(centre + bow - 0.05, -thick / 2, end, thick / 2), colour="key"),
        *(solid("bit", "metal", box(x, 0.02, x + 0.1, long), colour="key") for x in teeth),
        solid("bow", "metal", loop, colour="key"),
    ]


def scissors(m: Measures) -> list[Part]:
    angle, reach, eye = m(14, 26), m(0.8, 0.95), m(0.18, 0.25)
    blade = polygon((-0.07, 0.1), (0.07, 0.1), (0.02, -reach), (-0.05, -reach + 0.1))
    arm = box(-0.06, 0.05, 0.06, 0.5)
    parts = []
    for side in (-1, 1):
        eyelet = ring(side * -0.04, 0.62, eye, eye * 1.25)
        parts.append(solid("blade", "metal", turned(blade * [side, 1], side * angle)))
        parts.append(solid("handle", "paint", turned(arm, side * angle), colour="handle"))
        parts.append(solid("handle", "paint", tube(turned(eyelet, side * angle), 0.11)))
    return [*parts, solid("pivot", "metal", ellipse(0, 0.08, 0.06), colour="blade")]


def hammer(m: Measures) -> list[Part]:
    wide, tall, grip = m(0.4, 0.55), m(0.22, 0.32), m(0.12, 0.18)
    top = -0.75
    claw = blob(
        (-0.1, top),
        (-wide, top + 0.05),
        (-wide - 0.12, top + tall + 0.12),
        (-wide + 0.1, top + 0.2),
        (-0.1, top + tall),
    )
    if m.maybe(0.4):
        claw = box(-wide, top + 0.04, 0, top + tall - 0.04)
    return [
        solid("handle", "wood", box(-grip / 2, top, grip / 2, 0.92, rounded=0.05)),
        solid("claw", "metal", claw, colour="head"),
        solid("head", "metal", box(-0.12, top, wide - 0.12, top + tall), colour="head"),
        solid(
            "face", "metal", box(wide - 0.14, top - 0.05, wide, top + tall + 0.05), colour="head"
        ),
    ]


def fork(m: Measures) -> list[Part]:
    wide, neck, prongs = m(0.2, 0.28), m(-0.15, 0.05), m.count(3, 4)
    root = m(-0.45, -0.35)
    tines = np.linspace(-wide + 0.04, wide - 0.04, prongs)
    grip = mirrored((0.05, root + 0.15), (0.05, neck), (m(0.08, 0.13), 0.75), (0, 0.93))
    palm = np.concatenate(
        [
            ellipse(0, root, wide, m(0.22, 0.3), 0, 180),
            line((-wide, root - 0.1), (wide, root - 0.1)),
        ]
    )
    return [
        *(
            solid("tine", "metal", box(x - 0.035, -0.9, x + 0.035, root), colour="fork")
            for x in tines
        ),
        solid("handle", "metal", grip, colour="fork"),
        solid("palm", "metal", palm, colour="fork"),
    ]


def glasses(m: Measures) -> list[Part]:
    wide, tall, gap = m(0.3, 0.4), m(0.22, 0.36), m(0.1, 0.18)
    thick, rise = m(0.06, 0.11), m(0.2, 0.45)
    parts = []
    for side in (-1, 1):
        x = side * (gap + wide)
        rim = ring(x, 0.1, wide, tall)
        arm = curve(
            (x + side * wide, 0), (x + side * (wide + 0.08), -rise), (side * 0.55, -rise - 0.2)
        )
        parts.append(rod("arm", "paint", arm, thick, colour="frame"))
        parts.append(solid("lens", "glass", ellipse(x, 0.1, wide, tall)))
        parts.append(solid("frame", "paint", tube(rim, thick)))
    bridge = curve((-gap, 0.05), (0, -0.04), (gap, 0.05))
    return [*parts, solid("bridge", "paint", tube(bridge, thick), colour="frame")]


def clock(m: Measures) -> list[Part]:
    round_, foot = m(0.6, 0.72), m(0.08, 0.13)
    hour, minute = m(0, 360), m(0, 360)
    parts = []
    if m.maybe(0.6):
        for side in (-1, 1):
            bell = turned(ellipse(0, -round_ - 0.08, 0.24, 0.2, 180, 360), side * m(30, 40))
            leg = line((side * 0.35, round_ * 0.7), (side * 0.5, 0.92))
            parts.append(solid("bell", "metal", bell))
            parts.append(solid("leg", "metal", tube(leg, foot), colour="bell"))
    dial = round_ * m(0.75, 0.86)
    marks = [turned(line((0, -dial * 0.85), (0, -dial)), a) for a in range(0, 360, 30)]
    long = line((0, 0), (0, -dial * 0.75))
    short = line((0, 0), (0, -dial * 0.5))
    return [
        *parts,
        solid("case", "paint", ellipse(0, 0, round_)),
        solid("face", "paper", ellipse(0, 0, dial), *marks),
        rod("hand", "dark", turned(long, minute), 0.05),
        rod("hand", "dark", turned(short, hour), 0.07),
    ]


def guitar(m: Measures) -> list[Part]:
    lower, upper, waist = m(0.38, 0.48), m(0.26, 0.34), m(0.18, 0.25)
    neck, thick = m(-0.75, -0.65), m(0.09, 0.13)
    body = mirrored(
        (0, -0.16),
        (upper * 0.75, -0.12),
        (upper, 0.04),
        (waist, 0.28),
        (lower * 0.95, 0.46),
        (lower, 0.7),
        (lower * 0.6, 0.9),
        (0, 0.93),
    )
    head = polygon((-0.1, neck), (-0.12, -0.93), (0.12, -0.93), (0.1, neck))
    strings = [line((x, neck), (x, 0.68)) for x in (-0.025, 0.025)]
    frets = [line((-thick / 2, y), (thick / 2, y)) for y in np.linspace(neck + 0.08, -0.15, 5)]
    return [
        solid("body", "wood", body),
        solid("hole", "dark", ellipse(0, 0.3, m(0.1, 0.14))),
        solid("bridge", "dark", box(-0.15, 0.66, 0.15, 0.72), colour="hole"),
        solid("neck", "wood", box(-thick / 2, neck, thick / 2, 0.2), *frets, *strings),
        solid("head", "wood", head, colour="neck"),
    ]


def icecream(m: Measures) -> list[Part]:
    wide, edge, scoops = m(0.3, 0.4), m(0.0, 0.15), m.count(1, 3)
    cone = polygon((-wide, edge), (wide, edge), (0, 0.95))
    hatch = [
        line((x, edge), (x * 0.2 + s * 0.12, 0.6))
        for x, s in ((-0.2, 1), (0.05, 1), (0.2, -1), (-0.05, -1))
    ]
    size = wide * m(0.95, 1.12)
    spots = {1: [(0, 0)], 2: [(-0.5, 0), (0.5, 0)], 3: [(-0.55, 0), (0.55, 0), (0, -0.85)]}[scoops]
    shrink = {1: 1.0, 2: 0.75, 3: 0.72}[scoops]
    balls = [
        ellipse(x * size * 1.1, edge - size * 0.45 + y * size, size * shrink) for x, y in spots
    ]
    parts = [solid("scoop", "food", ball, colour=f"scoop{i}") for i, ball in enumerate(balls)]
    if m.maybe(0.4):
        top = balls[-1].min(axis=0)[1]
        parts.append(solid("cherry", "fruit", ellipse(balls[-1].mean(axis=0)[0], top - 0.04, 0.09)))
    return [*parts, solid("cone", "wafer", cone, *hatch)]
