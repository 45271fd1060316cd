"""Drawn objects: categories made of named parts, as photos and as sketches."""

from collections.abc import Callable

from datasets.synthetic.drawn import indoors, living, outdoors
from datasets.synthetic.drawn.shapes import Measures, Part

CATEGORIES: dict[str, Callable[[Measures], list[Part]]] = {
    function.__name__: function
    for function in (
        *(indoors.cup, indoors.teapot, indoors.bottle, indoors.wineglass, indoors.lamp),
        *(indoors.candle, indoors.chair, indoors.table, indoors.umbrella, indoors.key),
        *(indoors.scissors, indoors.hammer, indoors.fork, indoors.glasses, indoors.clock),
        *(indoors.guitar, indoors.icecream),
        *(outdoors.house, outdoors.windmill, outdoors.lighthouse, outdoors.castle, outdoors.tent),
        *(outdoors.car, outdoors.bus, outdoors.train, outdoors.bicycle, outdoors.sailboat),
        *(outdoors.airplane, outdoors.rocket, outdoors.balloon, outdoors.kite, outdoors.snowman),
        *(living.fish, living.bird, living.duck, living.butterfly, living.snail, living.rabbit),
        *(living.turtle, living.spider, living.crab, living.octopus, living.cat, living.tree),
        *(living.flower, living.mushroom, living.cactus, living.apple, living.pineapple),
        living.carrot,
    )
}
"""Name of a category -> its parts, back to front, with the measures of an instance."""
