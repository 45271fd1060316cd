"""Sketchy, TU-Berlin and QuickDraw with their zero-shot splits: published lists, or the folders.

The splits are those that Sketchy-Ext (Liu et al., CVPR 2017), SEM-PCYC (Dutta & Akata, CVPR 2019)
and ZSE-SBIR (Lin et al., CVPR 2023) report on.
"""

from datasets.benchmark import PHOTO, SKETCH
from datasets.layout import Layout

SKETCHY = Layout(
    folder="Sketchy",
    splits={"test_class_sketchy25": "zeroshot1", "test_class_sketchy21": "zeroshot0"},
    lists={
        PHOTO: "all_photo_filelist_{}.txt",
        SKETCH: "sketch_tx_000000000000_ready_filelist_{}.txt",
    },
    images={
        PHOTO: ("256x256/photo/tx_000000000000_ready", "EXTEND_image_sketchy_ready"),
        SKETCH: ("256x256/sketch/tx_000000000000_ready",),
    },
    every={SKETCH: 20, PHOTO: 10},
    unlisted="5,000 of the folders' sketches of seen classes are in no published list",
)
TU_BERLIN = Layout(
    folder="TUBerlin",
    splits={"test_class_tuberlin30": "zeroshot"},
    lists={PHOTO: "ImageResized_ready_filelist_{}.txt", SKETCH: "png_ready_filelist_{}.txt"},
    images={PHOTO: ("ImageResized_ready",), SKETCH: ("png_ready",)},
    every={SKETCH: 3, PHOTO: 20},
    unlisted="2,200 of the folders' sketches of seen classes are in no published list",
)
QUICKDRAW = Layout(
    folder="QuickDraw",
    splits={"Quickdraw": "zeroshot"},
    lists={PHOTO: "all_photo_{}.txt", SKETCH: "sketch_{}.txt"},
    images={PHOTO: ("images",), SKETCH: ("sketches",)},
    every={SKETCH: 120, PHOTO: 30},
)
