"""Animals and plants, drawn from named parts, back to front; `m` measures one instance."""

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
    rod,
    solid,
    tube,
    turned,
)


def fish(m: Measures) -> list[Part]:
    long, tall, spread = m(0.58, 0.7), m(0.28, 0.42), m(0.3, 0.45)
    tail = polygon((-long + 0.15, 0), (-0.95, -spread), (-0.8, 0), (-0.95, spread))
    fin = blob((-0.3, -tall * 0.7), (m(-0.1, 0.1), -tall - m(0.15, 0.28)), (0.3, -tall * 0.75))
    belly = polygon((-0.05, tall * 0.8), (-0.3, tall + m(0.12, 0.25)), (0.15, tall * 0.85))
    gill = curve((long * 0.55, -tall * 0.5), (long * 0.42, 0), (long * 0.55, tall * 0.5))
    side = blob((0.1, 0.02), (-0.2, 0.16), (-0.22, -0.02))
    return [
        solid("tail", "skin", tail, colour="fin"),
        solid("fin", "skin", fin),
        solid("fin", "skin", belly),
        solid("body", "skin", ellipse(0, 0, long, tall), gill),
        solid("fin", "skin", side),
        solid("eye", "dark", ellipse(long * 0.72, -tall * 0.25, 0.06)),
    ]


def bird(m: Measures) -> list[Part]:
    long, tall, head = m(0.42, 0.55), m(0.26, 0.34), m(0.18, 0.24)
    x, y = long * 0.85, -tall - m(0.02, 0.15)
    beak = polygon(
        (x + head * 0.8, y - 0.07), (x + head + m(0.15, 0.28), y + 0.03), (x + head * 0.8, y + 0.08)
    )
    tail = polygon((-long * 0.7, 0.05), (-0.95, m(-0.25, 0.0)), (-0.92, 0.1), (-long * 0.6, 0.2))
    wing = blob((0.2, -0.05), (-0.1, -0.15), (-long - 0.1, 0.1), (-0.1, tall * 0.8))
    stand = m(0.55, 0.75)
    legs = [
        line((a, tall * 0.8), (a + 0.02, stand), (a + 0.14, stand + 0.03)) for a in (-0.14, 0.14)
    ]
    return [
        *(rod("leg", "dark", leg, 0.045) for leg in legs),
        solid("tail", "fur", tail, colour="wing"),
        solid("beak", "fruit", beak),
        solid("body", "fur", ellipse(0, 0, long, tall)),
        solid("head", "fur", ellipse(x, y, head), colour="body"),
        solid("wing", "fur", wing),
        solid("eye", "dark", ellipse(x + 0.06, y - 0.05, 0.035)),
    ]


def duck(m: Measures) -> list[Part]:
    long, head, neck = m(0.6, 0.72), m(0.19, 0.24), m(-0.6, -0.45)
    body = blob(
        (-0.9, m(-0.1, 0.05)),
        (-0.5, 0.12),
        (0.1, 0.02),
        (long, 0.1),
        (long - 0.1, 0.5),
        (0, 0.66),
        (-0.6, 0.5),
    )
    throat = curve((long - 0.22, 0.25), (long - 0.22, neck * 0.4), (long - 0.18, neck))
    wing = blob((0.2, 0.2), (-0.3, 0.1), (-0.6, 0.25), (-0.1, 0.48))
    beak = blob((long, neck), (long + m(0.16, 0.26), neck + 0.06), (long, neck + 0.12))
    return [
        solid("beak", "fruit", beak),
        solid("neck", "fur", tube(throat, 0.3, 0.22), colour="body"),
        solid("body", "fur", body),
        solid("head", "fur", ellipse(long - 0.15, neck, head), colour="body"),
        solid("wing", "fur", wing),
        solid("eye", "dark", ellipse(long - 0.08, neck - 0.05, 0.035)),
    ]


def butterfly(m: Measures) -> list[Part]:
    wide, high, low = m(0.7, 0.92), m(0.6, 0.8), m(0.5, 0.75)
    spot = m(0.1, 0.16)
    parts = []
    for side in (-1, 1):
        upper = blob(
            (side * 0.04, -0.05),
            (side * wide * 0.5, -high),
            (side * wide, -high * 0.8),
            (side * wide * 0.7, 0),
        )
        lower = blob(
            (side * 0.04, 0.02),
            (side * wide * 0.7, 0.05),
            (side * wide * 0.65, low),
            (side * 0.2, low * 0.9),
        )
        parts.append(solid("hindwing", "petal", lower))
        parts.append(solid("forewing", "petal", upper))
        parts.append(solid("spot", "petal", ellipse(side * wide * 0.68, -high * 0.55, spot)))
        feeler = curve((side * 0.03, -0.38), (side * 0.12, -0.65), (side * m(0.2, 0.3), -0.75))
        parts.append(rod("antenna", "dark", feeler, 0.03))
    return [*parts, solid("body", "dark", ellipse(0, 0.02, 0.07, m(0.38, 0.5)))]


def snail(m: Measures) -> list[Part]:
    size, x = m(0.42, 0.55), m(-0.25, -0.1)
    y = 0.5 - size
    foot = blob(
        (-0.92, 0.72),
        (-0.4, 0.5),
        (0.35, 0.5),
        (0.5, m(-0.2, 0.0)),
        (0.72, -0.12),
        (0.75, 0.2),
        (0.62, 0.72),
    )
    turns = np.linspace(0, m(3.5, 5) * np.pi, 70)
    reach = size * (1 - turns / turns[-1] * 0.95)
    spiral = np.stack([x + reach * np.cos(turns), y + reach * np.sin(turns)], axis=1)
    feelers = [line((0.6, -0.05), (0.6 + s, m(-0.5, -0.35))) for s in (-0.02, 0.2)]
    return [
        *(rod("feeler", "skin", feeler, 0.05, colour="foot") for feeler in feelers),
        solid("foot", "skin", foot),
        solid("shell", "shell", ellipse(x, y, size), spiral),
        solid("eye", "dark", ellipse(*feelers[1][1], 0.04)),
    ]


def rabbit(m: Measures) -> list[Part]:
    head, long, tall = m(0.23, 0.28), m(0.3, 0.42), m(0.4, 0.48)
    x, y = 0.35, m(-0.2, -0.08)
    ears = [
        turned(ellipse(x, y - head - long * 0.8, m(0.08, 0.12), long), a, x, y)
        for a in (m(-30, -15), m(0, 18))
    ]
    return [
        solid("tail", "snow", ellipse(-0.72, 0.55, m(0.1, 0.17))),
        *(solid("ear", "fur", ear, colour="body") for ear in ears),
        solid("body", "fur", ellipse(-0.2, 0.43, m(0.48, 0.56), tall)),
        solid("head", "fur", ellipse(x, y, head * 1.1, head), colour="body"),
        solid("haunch", "fur", ellipse(-0.4, 0.62, 0.26, 0.24), colour="body"),
        solid("paw", "fur", ellipse(0.22, 0.84, m(0.14, 0.2), 0.08), colour="body"),
        solid("eye", "dark", ellipse(x + 0.08, y - 0.04, 0.04)),
        solid("nose", "dark", ellipse(x + head * 1.05, y + 0.04, 0.04)),
    ]


def turtle(m: Measures) -> list[Part]:
    wide, tall, head = m(0.55, 0.66), m(0.45, 0.6), m(0.14, 0.19)
    shell = ellipse(-0.1, 0.35, wide, tall, 180, 360)
    ribs = [
        curve((-0.1 + a * wide, 0.35), (-0.1 + a * wide * 0.8, 0.35 - tall * 0.9))
        for a in (-0.45, 0, 0.45)
    ]
    belt = curve(
        (-0.1 - wide * 0.85, 0.35 - tall * 0.45),
        (-0.1, 0.35 - tall * 0.55),
        (wide * 0.8 - 0.1, 0.35 - tall * 0.45),
    )
    throat = curve((wide - 0.25, 0.3), (wide + 0.05, 0.2), (0.72, m(-0.05, 0.1)))
    legs = [box(a, 0.3, a + m(0.16, 0.22), m(0.62, 0.72), rounded=0.06) for a in (-0.5, 0.12)]
    return [
        solid("tail", "skin", polygon((-wide, 0.25), (-0.92, 0.4), (-wide, 0.38)), colour="head"),
        *(solid("leg", "skin", leg, colour="head") for leg in legs),
        solid("neck", "skin", tube(throat, 0.16), colour="head"),
        solid("head", "skin", ellipse(0.76, throat[-1][1], head, head * 0.8)),
        solid("shell", "shell", shell, *ribs, belt),
        solid("eye", "dark", ellipse(0.81, throat[-1][1] - 0.03, 0.03)),
    ]


def spider(m: Measures) -> list[Part]:
    body, head, reach = m(0.28, 0.36), m(0.15, 0.2), m(0.75, 0.92)
    parts = []
    for side in (-1, 1):
        for height, end in zip((-0.55, -0.25, 0.1, 0.35), (-0.7, -0.2, 0.55, 0.92), strict=True):
            end = end + m(-0.08, 0.08)
            knee = (side * reach * 0.62, height - 0.15)
            leg = line((side * 0.1, -0.1), knee, (side * reach, end))
            parts.append(rod("leg", "dark", leg, 0.055))
    return [
        *parts,
        solid("abdomen", "fur", ellipse(0, 0.25, body, body * m(1.05, 1.3)), colour="body"),
        solid("head", "fur", ellipse(0, -0.2, head), colour="body"),
        *(solid("eye", "flame", ellipse(s * 0.06, -0.26, 0.035)) for s in (-1, 1)),
    ]


def crab(m: Measures) -> list[Part]:
    wide, tall, claw = m(0.42, 0.52), m(0.28, 0.36), m(0.2, 0.26)
    parts = []
    for side in (-1, 1):
        for i, y in enumerate((0.25, 0.4, 0.52)):
            leg = line(
                (side * wide * 0.7, y),
                (side * (0.82 - i * 0.06), y + 0.02),
                (side * (0.92 - i * 0.1), y + 0.3),
            )
            parts.append(rod("leg", "shell", leg, 0.07, colour="body"))
        x, y = side * m(0.62, 0.74), m(-0.5, -0.35)
        arm = curve((side * wide * 0.8, 0.1), (side * 0.72, 0), (x, y + claw * 0.5))
        jaw = ellipse(x, y, claw, claw * 1.15, -60, 240)
        parts.append(solid("arm", "shell", tube(arm, 0.12), colour="body"))
        pincer = np.concatenate([jaw, [[x, y - claw * 0.1]]])
        parts.append(solid("claw", "shell", turned(pincer, side * 15, x, y), colour="body"))
        stalk = line((side * 0.14, 0), (side * 0.17, -0.25))
        parts.append(rod("stalk", "shell", stalk, 0.05, colour="body"))
        parts.append(solid("eye", "dark", ellipse(side * 0.17, -0.28, 0.06)))
    return [*parts, solid("body", "shell", ellipse(0, 0.25, wide, tall))]


def octopus(m: Measures) -> list[Part]:
    wide, tall, reach = m(0.36, 0.46), m(0.42, 0.52), m(0.65, 0.9)
    arms = []
    for side in (-1, 1):
        for share in (1.0, 0.68, 0.25):
            x, curl = side * reach * share, side * m(0.05, 0.15)
            foot = m(0.75, 0.93) - 0.25 * share
            bend = (x * 0.75 - curl, 0.3 + (foot - 0.3) * 0.6)
            arm = curve((side * wide * share * 0.7, 0.05), bend, (x, foot), (x + curl, foot - 0.1))
            arms.append(solid("arm", "skin", tube(arm, m(0.17, 0.22), 0.06), colour="head"))
    smile = curve((-0.12, 0.08), (0, 0.14), (0.12, 0.08))
    return [
        *arms,
        solid("head", "skin", ellipse(0, -0.35, wide, tall), smile),
        *(solid("eye", "snow", ellipse(s * wide * 0.4, -0.2, 0.09, 0.12)) for s in (-1, 1)),
        *(solid("pupil", "dark", ellipse(s * wide * 0.4, -0.17, 0.045)) for s in (-1, 1)),
    ]


def cat(m: Measures) -> list[Part]:
    wide, tall, ear = m(0.55, 0.68), m(0.5, 0.6), m(0.35, 0.5)
    parts = []
    for side in (-1, 1):
        tip = polygon(
            (side * wide * 0.95, -0.05),
            (side * wide * 0.85, -tall - ear + 0.25),
            (side * wide * 0.2, -tall + 0.15),
        )
        parts.append(solid("ear", "fur", tip, colour="head"))
    parts.append(solid("head", "fur", ellipse(0, 0.1, wide, tall)))
    for side in (-1, 1):
        parts.append(solid("eye", "flame", ellipse(side * wide * 0.42, -0.02, m(0.09, 0.13), 0.1)))
        parts.append(solid("pupil", "dark", ellipse(side * wide * 0.42, -0.02, 0.035, 0.09)))
        for y in (0.22, 0.36):
            hair = line((side * 0.2, 0.28), (side * (wide + m(0.15, 0.3)), y))
            parts.append(rod("whisker", "dark", hair, 0.02))
    mouth = curve((-0.16, 0.4), (-0.06, 0.44), (0, 0.3), (0.06, 0.44), (0.16, 0.4))
    return [
        *parts,
        solid("nose", "petal", polygon((-0.08, 0.2), (0.08, 0.2), (0, 0.3))),
        rod("mouth", "dark", mouth, 0.025),
    ]


def tree(m: Measures) -> list[Part]:
    trunk, bough = m(0.1, 0.18), m(0.2, 0.4)
    root = trunk * 1.5
    stem = polygon((-trunk, bough - 0.3), (trunk, bough - 0.3), (root, 0.93), (-root, 0.93))
    if m.maybe(0.4):
        tiers = m.count(2, 3)
        wide = m(0.5, 0.7)
        crown = []
        for i in reversed(range(tiers)):
            base = bough - 0.45 * i
            reach = wide * (1 - 0.22 * i)
            crown.append(polygon((-reach, base), (0, base - 0.7), (reach, base)))
        return [solid("trunk", "bark", stem), *(solid("crown", "leaf", c) for c in reversed(crown))]
    wide, tall = m(0.55, 0.75), m(0.5, 0.65)
    middle, bumps = bough - tall, m.count(6, 9)
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    reach = 0.8 + 0.2 * np.abs(np.sin(angles * bumps / 2 + m(0, np.pi)))
    rim = np.stack([reach * wide * np.cos(angles), middle + reach * tall * np.sin(angles)], axis=1)
    return [solid("trunk", "bark", stem), solid("crown", "leaf", rim)]


def flower(m: Measures) -> list[Part]:
    y, core, count = m(-0.45, -0.3), m(0.12, 0.18), m.count(5, 8)
    long, wide, start = m(0.26, 0.34), m(0.11, 0.17), m(0, 60)
    stem = curve((0, y), (m(-0.1, 0.1), 0.4), (0, 0.95))
    petals = [
        turned(ellipse(0, y - core * 0.7 - long / 1.6, wide, long / 1.5), start + a, 0, y)
        for a in np.arange(count) * 360 / count
    ]
    leaves = []
    for side in (-1, 1)[: m.count(1, 2)]:
        leaves.append(
            blob(
                (0, 0.7),
                (side * 0.25, m(0.35, 0.5)),
                (side * m(0.4, 0.55), 0.4),
                (side * 0.3, 0.65),
            )
        )
    return [
        rod("stem", "leaf", stem, 0.07, colour="leaf"),
        *(solid("leaf", "leaf", leaf) for leaf in leaves),
        *(solid("petal", "petal", petal) for petal in petals),
        solid("core", "flame", ellipse(0, y, core)),
    ]


def mushroom(m: Measures) -> list[Part]:
    wide, tall, rim = m(0.65, 0.88), m(0.55, 0.85), m(0.0, 0.15)
    stalk, foot = m(0.16, 0.24), m(0.22, 0.34)
    cap = np.concatenate(
        [ellipse(0, rim, wide, tall, 180, 360), ellipse(0, rim, wide, 0.12, 0, 180)]
    )
    spots = [(-0.45, -0.25, 0.09), (0.0, -0.5, 0.13), (0.42, -0.2, 0.1), (-0.1, -0.1, 0.08)]
    dots = [solid("spot", "snow", ellipse(x * wide, rim + y * tall * 1.2, r)) for x, y, r in spots]
    return [
        solid("stem", "wax", mirrored((stalk, rim - 0.05), (stalk, 0.5), (foot, 0.85), (0, 0.93))),
        solid("cap", "fruit", cap),
        *(dots if m.maybe(0.7) else []),
    ]


def cactus(m: Measures) -> list[Part]:
    wide, top, rim = m(0.16, 0.24), m(-0.93, -0.75), m(0.4, 0.5)
    ribs = [line((x, top + 0.15), (x, rim)) for x in (-wide * 0.4, wide * 0.4)]
    parts = []
    for side in (-1, 1)[: m.count(1, 2)]:
        low, reach = m(-0.15, 0.15), m(0.42, 0.58)
        arm = curve(
            (side * wide * 0.5, low),
            (side * reach, low),
            (side * (reach + 0.02), low - m(0.35, 0.5)),
        )
        parts.append(solid("arm", "leaf", tube(arm, m(0.16, 0.22)), colour="stem"))
    pot = polygon((-0.36, rim), (0.36, rim), (m(0.22, 0.28), 0.93), (-0.25, 0.93))
    stem = box(-wide, top, wide, rim + 0.05, rounded=wide * 0.95)
    return [*parts, solid("stem", "leaf", stem, *ribs), solid("pot", "brick", pot)]


def apple(m: Measures) -> list[Part]:
    wide, tall, dip = m(0.58, 0.7), m(0.6, 0.7), m(0.3, 0.42)
    body = mirrored(
        (0, -dip),
        (wide * 0.5, -0.5),
        (wide, -0.15),
        (wide * 0.85, 0.4),
        (wide * 0.35, tall + 0.05),
        (0, tall - 0.05),
    )
    stem = curve((0, -dip + 0.03), (m(-0.05, 0.1), -0.85))
    leaf = blob((0.05, -0.6), (m(0.2, 0.3), -0.85), (m(0.42, 0.55), -0.82), (0.3, -0.62))
    return [
        solid("body", "fruit", body),
        rod("stem", "bark", stem, 0.07),
        *([solid("leaf", "leaf", leaf)] if m.maybe(0.75) else []),
    ]


def pineapple(m: Measures) -> list[Part]:
    wide, tall = m(0.36, 0.46), m(0.5, 0.58)
    y = 0.93 - tall
    hatch = []
    for slope in (-1, 1):
        for shift in (-0.3, 0, 0.3):
            hatch.append(
                line(
                    (-wide * 0.7, y + shift * tall - slope * 0.2),
                    (wide * 0.7, y + shift * tall + slope * 0.2),
                )
            )
    crown = []
    for angle in (-50, 50, -28, 28, 0):
        top = y - tall
        long = m(0.5, 0.65)
        leaf = polygon((-0.1, top + 0.1), (0, top - long), (0.1, top + 0.1))
        crown.append(solid("leaf", "leaf", turned(leaf, angle, 0, top + 0.1)))
    return [*crown, solid("body", "rind", ellipse(0, y, wide, tall), *hatch)]


def carrot(m: Measures) -> list[Part]:
    wide, top = m(0.2, 0.3), m(-0.4, -0.25)
    root = mirrored((wide * 0.6, top - 0.06), (wide, top + 0.1), (wide * 0.6, 0.35), (0, 0.95))
    rings = [
        curve((-wide * a, y), (-wide * a * 0.4, y + 0.04)) for a, y in ((0.85, 0.0), (0.6, 0.3))
    ]
    rings += [curve((wide * 0.8, 0.12), (wide * 0.35, 0.16))]
    leaves = []
    for angle in (-m(25, 38), m(25, 38), 0):
        leaf = mirrored((0, top - m(0.45, 0.6)), (0.1, top - 0.3), (0.03, top), (0, top))
        leaves.append(solid("leaf", "leaf", turned(leaf, angle, 0, top)))
    return [*leaves, solid("root", "root", root, *rings)]
