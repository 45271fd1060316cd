"""Buildings, vehicles and what else stands, drives or flies outdoors.

Drawn from named parts, back to front; `m` measures one instance.
"""

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


def house(m: Measures) -> list[Part]:
    wide, eaves, ridge = m(0.55, 0.75), m(-0.15, 0.1), m(-0.85, -0.6)
    door = m(-0.1, 0.1) + m.count(-1, 1) * wide * 0.55
    panes = [x for x in (-0.6 * wide, 0, 0.6 * wide) if abs(x - door) > 0.25]
    roof = polygon((-wide - 0.15, eaves), (0, ridge), (wide + 0.15, eaves))
    if m.maybe(0.35):
        roof = polygon(
            (-wide - 0.12, eaves),
            (-wide * 0.6, ridge + 0.1),
            (wide * 0.6, ridge + 0.1),
            (wide + 0.12, eaves),
        )
    side = m(0.11, 0.15)
    parts = [solid("wall", "plaster", box(-wide, eaves, wide, 0.85))]
    if m.maybe(0.7):
        chimney = wide * m(0.4, 0.6)
        parts.append(solid("chimney", "brick", box(chimney, ridge, chimney + 0.17, eaves)))
    parts.append(solid("roof", "brick", roof))
    parts.append(solid("door", "wood", box(door - 0.13, m(0.3, 0.42), door + 0.13, 0.85)))
    for x in panes:
        y = eaves + 0.28
        cross = (line((x, y - side), (x, y + side)), line((x - side, y), (x + side, y)))
        parts.append(solid("window", "glass", box(x - side, y - side, x + side, y + side), *cross))
    return parts


def windmill(m: Measures) -> list[Part]:
    top, foot, hub = m(0.16, 0.26), m(0.32, 0.48), m(-0.35, -0.2)
    tower = polygon((-top, hub), (top, hub), (foot, 0.93), (-foot, 0.93))
    cap = ellipse(0, hub, top + 0.05, m(0.2, 0.3), 180, 360)
    long, wide, start = m(0.55, 0.68), m(0.14, 0.24), m(0, 90)
    parts = [
        solid("tower", "plaster", tower),
        solid("cap", "brick", cap),
        solid("door", "wood", box(-0.1, m(0.6, 0.7), 0.1, 0.93)),
        solid("window", "dark", ellipse(0, m(0.2, 0.35), 0.07)),
    ]
    tip, root = hub - long, hub - 0.12
    slats = [line((0.02, y), (wide, y)) for y in np.linspace(tip, root, 5)[1:-1]]
    for angle in (start, start + 90, start + 180, start + 270):
        lines = [turned(slat, angle, 0, hub) for slat in slats]
        blade = turned(box(0.02, tip, wide, root), angle, 0, hub)
        arm = turned(line((0, hub), (0, tip)), angle, 0, hub)
        parts.append(solid("blade", "cloth", blade, *lines))
        parts.append(rod("arm", "wood", arm, 0.05))
    return parts


def lighthouse(m: Measures) -> list[Part]:
    top, foot, deck = m(0.16, 0.22), m(0.28, 0.4), m(-0.5, -0.38)
    tower = polygon((-top, deck), (top, deck), (foot, 0.8), (-foot, 0.8))
    parts = [
        solid(
            "rock", "stone", blob((-0.8, 0.93), (-0.5, 0.74), (0, 0.7), (0.55, 0.76), (0.8, 0.93))
        ),
        solid("tower", "plaster", tower),
    ]
    bands = m.count(2, 3)
    for i in range(bands):
        y0 = deck + (0.8 - deck) * (i + 0.35) / bands
        y1 = deck + (0.8 - deck) * (i + 0.8) / bands
        a, b = (top + (foot - top) * (y - deck) / (0.8 - deck) for y in (y0, y1))
        parts.append(solid("band", "paint", polygon((-a, y0), (a, y0), (b, y1), (-b, y1))))
    lantern = top * 0.75
    return [
        *parts,
        solid("gallery", "metal", box(-top - 0.1, deck - 0.06, top + 0.1, deck + 0.02)),
        solid("lantern", "flame", box(-lantern, deck - 0.3, lantern, deck - 0.06)),
        solid(
            "roof", "brick", polygon((-top, deck - 0.28), (0, m(-0.97, -0.88)), (top, deck - 0.28))
        ),
    ]


def castle(m: Measures) -> list[Part]:
    wide, height, keep = m(0.5, 0.62), m(-0.15, 0.1), m(0.16, 0.22)
    parts = [solid("wall", "stone", _battlement(-wide, height, wide, 0.85))]
    parts.append(solid("gate", "dark", mirrored((0, m(0.3, 0.42)), (0.14, 0.5), (0.15, 0.85))))
    top = height - m(0.15, 0.35)
    for x in (-wide, wide):
        parts.append(
            solid("tower", "stone", _battlement(x - keep, top, x + keep, 0.85), colour="wall")
        )
        slit = box(x - 0.04, top + 0.3, x + 0.04, top + 0.5)
        parts.append(solid("window", "dark", slit))
        if m.maybe(0.6):
            flag = polygon((x, top - 0.42), (x + 0.25, top - 0.34), (x, top - 0.24))
            parts.append(rod("pole", "wood", line((x, top), (x, top - 0.45)), 0.04))
            parts.append(solid("flag", "cloth", flag))
    return parts


def tent(m: Measures) -> list[Part]:
    wide, peak, side = m(0.6, 0.8), m(-0.75, -0.5), m(0.1, 0.3)
    front = polygon((-wide, 0.75), (-side, peak), (wide - 2 * side, 0.75))
    cover = polygon((-side, peak), (wide - 0.15, peak + 0.1), (0.93, 0.65), (wide - 2 * side, 0.75))
    half = (wide - side) * 0.35
    door = polygon((-side - half, 0.75), (-side, peak + 0.35), (half - side, 0.75))
    return [
        rod("rope", "wood", line((-side, peak), (-0.95, 0.8)), 0.03),
        solid("cover", "cloth", cover),
        solid("front", "cloth", front, colour="cover"),
        solid("entrance", "dark", door),
    ]


def car(m: Measures) -> list[Part]:
    roof, hood, belt = m(-0.45, -0.25), m(0.0, 0.12), m(0.0, 0.12)
    front, back, wheel = m(0.2, 0.4), m(-0.75, -0.5), m(0.17, 0.23)
    cabin = polygon((back, belt), (back + 0.2, roof), (front - 0.25, roof), (front, belt))
    pillar = (back + front) / 2
    glass = [
        polygon(
            (back + 0.12, belt),
            (back + 0.26, roof + 0.08),
            (pillar - 0.05, roof + 0.08),
            (pillar - 0.05, belt),
        ),
        polygon(
            (pillar + 0.04, belt),
            (pillar + 0.04, roof + 0.08),
            (front - 0.29, roof + 0.08),
            (front - 0.1, belt),
        ),
    ]
    body = blob(
        (-0.9, belt + 0.05),
        (-0.5, belt),
        (front, hood),
        (0.8, hood + 0.1),
        (0.92, 0.3),
        (0.8, 0.42),
        (0.5, 0.42),
        (-0.5, 0.42),
        (-0.82, 0.42),
        (-0.93, 0.28),
    )
    return [
        solid("cabin", "paint", cabin, colour="body"),
        *(solid("window", "glass", outline) for outline in glass),
        solid("body", "paint", body),
        solid("light", "flame", ellipse(0.82, 0.22, 0.07, 0.05)),
        *_wheels((m(-0.6, -0.5), m(0.48, 0.58)), 0.42, wheel),
    ]


def bus(m: Measures) -> list[Part]:
    roof, sill, wheel = m(-0.55, -0.4), m(-0.02, 0.08), m(0.14, 0.2)
    count = m.count(3, 5)
    edges = np.linspace(-0.82, 0.6, count + 1)
    panes = [box(a + 0.03, roof + 0.12, b - 0.03, sill) for a, b in pairwise(edges)]
    return [
        solid("body", "paint", box(-0.92, roof, 0.92, 0.45, rounded=m(0.08, 0.16))),
        *(solid("window", "glass", pane) for pane in panes),
        solid("door", "glass", box(0.66, roof + 0.14, 0.84, 0.38)),
        solid("stripe", "paint", box(-0.9, sill + 0.08, 0.62, sill + m(0.14, 0.2))),
        *_wheels((m(-0.6, -0.5), m(0.4, 0.5)), 0.45, wheel),
    ]


def train(m: Measures) -> list[Part]:
    boiler, cab, wheel = m(-0.2, -0.05), m(-0.6, -0.45), m(0.15, 0.2)
    chimney = m(0.4, 0.55)
    stack = polygon(
        (chimney - 0.08, boiler),
        (chimney - 0.13, boiler - m(0.3, 0.42)),
        (chimney + 0.13, boiler - 0.34),
        (chimney + 0.08, boiler),
    )
    return [
        solid("chimney", "metal", stack),
        solid("boiler", "paint", box(-0.35, boiler, 0.75, 0.4, rounded=0.12)),
        solid("cab", "paint", box(-0.85, cab, -0.3, 0.42)),
        solid("roof", "metal", box(-0.93, cab - 0.08, -0.22, cab + 0.03), colour="chimney"),
        solid("window", "glass", box(-0.72, cab + 0.14, -0.44, cab + 0.42)),
        solid("fender", "metal", polygon((0.72, 0.4), (0.95, 0.62), (0.6, 0.62)), colour="chimney"),
        *_wheels((-0.6, -0.05, 0.45), 0.48, wheel),
    ]


def bicycle(m: Measures) -> list[Part]:
    wheel, axle = m(0.36, 0.42), m(0.4, 0.48)
    rear, front = (-0.52, axle), (0.52, axle)
    seat, head, crank = (
        (m(-0.32, -0.22), m(-0.3, -0.15)),
        (m(0.3, 0.38), m(-0.3, -0.2)),
        (-0.02, axle),
    )
    frame = [(rear, crank), (crank, seat), (seat, head), (head, crank), (rear, seat), (head, front)]
    bar = curve((head[0] - 0.12, head[1] - 0.2), (head[0] + 0.04, head[1] - 0.18), head)
    tyres = [ring(x, y, wheel) for x, y in (rear, front)]
    spokes = [
        line(
            (x - wheel * np.cos(a), y - wheel * np.sin(a)),
            (x + wheel * np.cos(a), y + wheel * np.sin(a)),
        )
        for x, y in (rear, front)
        for a in np.arange(4) * np.pi / 4
    ]
    return [
        *(rod("spoke", "metal", spoke, 0.012) for spoke in spokes),
        *(solid("tyre", "dark", tube(tyre, 0.07)) for tyre in tyres),
        *(rod("frame", "paint", line(*ends), 0.06) for ends in frame),
        rod("handlebar", "metal", bar, 0.06),
        solid("saddle", "dark", ellipse(seat[0], seat[1] - 0.06, 0.17, 0.06)),
    ]


def sailboat(m: Measures) -> list[Part]:
    deck, mast, long = m(0.35, 0.5), m(-0.1, 0.1), m(0.7, 0.92)
    hull = polygon((-long, deck), (long, deck), (long * m(0.55, 0.75), 0.85), (-long * 0.65, 0.85))
    top, boom = m(-0.93, -0.8), deck - 0.12
    main = polygon((mast + 0.05, top + 0.05), (long * m(0.65, 0.9), boom), (mast + 0.05, boom))
    jib = polygon(
        (mast - 0.05, top + m(0.1, 0.3)), (-long * m(0.6, 0.85), boom), (mast - 0.05, boom)
    )
    return [
        rod("mast", "wood", line((mast, top), (mast, deck)), 0.05),
        solid("sail", "cloth", main),
        solid("jib", "cloth", jib, colour="sail"),
        solid("hull", "wood", hull, line((-long * 0.93, deck + 0.12), (long * 0.9, deck + 0.12))),
    ]


def airplane(m: Measures) -> list[Part]:
    thick, nose, sweep = m(0.13, 0.19), m(0.82, 0.95), m(0.3, 0.5)
    body = blob(
        (nose, 0),
        (nose - 0.2, -thick),
        (-0.5, -thick),
        (-0.92, -0.08),
        (-0.92, 0.04),
        (-0.4, thick),
        (nose - 0.2, thick),
    )
    wing = polygon((0.2, 0.05), (0.2 - sweep, m(0.6, 0.8)), (-0.05 - sweep, 0.68), (-0.2, 0.05))
    far = polygon(
        (0.22, -0.1), (0.2 - sweep * 0.8, -m(0.45, 0.6)), (-0.5 * sweep - 0.1, -0.5), (-0.12, -0.1)
    )
    fin = polygon((-0.6, -0.06), (-0.85, -m(0.45, 0.6)), (-0.97, -0.48), (-0.9, -0.04))
    panes = [(x, -thick * 0.35) for x in np.linspace(-0.4, nose - 0.4, m.count(4, 6))]
    return [
        solid("wing", "metal", far, colour="body"),
        solid("tail", "paint", fin),
        solid("body", "metal", body),
        *(solid("window", "dark", ellipse(x, y, 0.04)) for x, y in panes),
        solid("wing", "metal", wing, colour="body"),
    ]


def rocket(m: Measures) -> list[Part]:
    wide, base, nose = m(0.2, 0.3), m(0.4, 0.5), m(-0.5, -0.3)
    reach = m(0.2, 0.35)
    fins = [
        polygon((s * wide, base - 0.35), (s * (wide + reach), base + 0.12), (s * wide, base))
        for s in (-1, 1)
    ]
    flame = mirrored((wide * 0.6, base), (wide * 0.5, base + 0.22), (0, m(0.82, 0.95)))
    tip = mirrored((0, -0.95), (wide * 0.6, nose - 0.2), (wide, nose), (0, nose + 0.03))
    ports = [(0, nose + 0.22), (0, nose + 0.5)][: m.count(1, 2)]
    return [
        solid("flame", "flame", flame),
        *(solid("fin", "paint", fin) for fin in fins),
        solid("body", "metal", box(-wide, nose, wide, base)),
        solid("nose", "paint", tip, colour="fin"),
        *(solid("window", "glass", ellipse(x, y, wide * 0.45)) for x, y in ports),
    ]


def balloon(m: Measures) -> list[Part]:
    wide, middle, mouth = m(0.55, 0.7), m(-0.4, -0.28), m(0.12, 0.18)
    throat, basket = m(0.3, 0.42), m(0.66, 0.74)
    envelope = mirrored(
        (0, -0.95),
        (wide * 0.71, middle - 0.71 * (middle + 0.95)),
        (wide, middle),
        (wide * 0.82, middle + 0.28),
        (mouth, throat),
    )
    gores = [curve((0, -0.95), (x * wide, middle), (x * mouth, throat)) for x in (-0.55, 0, 0.55)]
    ropes = [line((s * mouth, throat), (s * 0.15, basket)) for s in (-1, 1)]
    return [
        *(rod("rope", "dark", rope, 0.025) for rope in ropes),
        solid("envelope", "cloth", envelope, *gores),
        solid(
            "basket", "wood", polygon((-0.17, basket), (0.17, basket), (0.13, 0.93), (-0.13, 0.93))
        ),
    ]


def kite(m: Measures) -> list[Part]:
    wide, cross = m(0.4, 0.55), m(-0.5, -0.35)
    sail = polygon((0, -0.93), (wide, cross), (0, m(0.2, 0.35)), (-wide, cross))
    swing = m(0.15, 0.3)
    tail = curve((0, 0.25), (swing, 0.45), (-swing, 0.65), (swing * 0.6, 0.85), (0, 0.95))
    spars = (line((0, -0.93), (0, 0.25)), line((-wide, cross), (wide, cross)))
    bows = []
    for i in (len(tail) * 2 // 5, len(tail) * 3 // 4):
        x, y = tail[i]
        bows.append(
            polygon(
                (x - 0.12, y - 0.07),
                (x + 0.12, y + 0.07),
                (x + 0.12, y - 0.07),
                (x - 0.12, y + 0.07),
            )
        )
    return [
        rod("tail", "dark", tail, 0.03),
        *(solid("bow", "cloth", bow) for bow in bows),
        solid("sail", "cloth", sail, *spars),
    ]


def snowman(m: Measures) -> list[Part]:
    big, middle, head = m(0.38, 0.46), m(0.28, 0.34), m(0.2, 0.25)
    waist, neck = 0.93 - 1.8 * big, 0.93 - 1.8 * big - 1.7 * middle
    face = neck - head * 0.8
    arms = [
        line((s * middle * 0.8, waist - middle), (s * 0.85, waist - middle - m(0.1, 0.35)))
        for s in (-1, 1)
    ]
    nose = polygon((0, face - 0.04), (m(0.2, 0.32), face + 0.04), (0, face + 0.06))
    buttons = [(0, waist - middle * f) for f in (0.5, 1.0)]
    parts = [
        *(rod("arm", "wood", arm, 0.05) for arm in arms),
        solid("body", "snow", ellipse(0, 0.93 - big, big)),
        solid("body", "snow", ellipse(0, waist - middle * 0.8, middle)),
        solid("head", "snow", ellipse(0, face, head), colour="body"),
        *(solid("button", "dark", ellipse(x, y, 0.04)) for x, y in buttons),
        *(solid("eye", "dark", ellipse(s * 0.08, face - 0.07, 0.03)) for s in (-1, 1)),
        solid("nose", "fruit", nose),
    ]
    if m.maybe(0.7):
        brim = face - head * 0.8
        hat = polygon(
            (-0.28, brim),
            (-0.17, brim),
            (-0.17, brim - 0.26),
            (0.17, brim - 0.26),
            (0.17, brim),
            (0.28, brim),
            (0.28, brim + 0.06),
            (-0.28, brim + 0.06),
        )
        parts.append(solid("hat", "cloth", hat))
    return parts


def _wheels(places, axle: float, radius: float) -> list[Part]:
    """Tyres with hubs at the places along the ground."""
    parts = []
    for x in places:
        parts.append(solid("wheel", "dark", ellipse(x, axle, radius)))
        parts.append(solid("hub", "metal", ellipse(x, axle, radius * 0.45)))
    return parts


def _battlement(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """A wall with three merlons."""
    edges = np.linspace(left, right, 6)
    points = []
    for i, (a, b) in enumerate(pairwise(edges)):
        y = top if i % 2 == 0 else top + 0.1
        points += [(a, y), (b, y)]
    return polygon(*points, (right, bottom), (left, bottom))
