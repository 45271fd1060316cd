"""Training batches: which images are drawn, and how they are read.

Draw number i of epoch e is a pure function of (seed, e, i): it does not matter which worker or
which process makes it, or whether training was interrupted before.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from datasets.benchmark import PHOTO, SKETCH, ImageList
from datasets.images import Preprocessing
from training.augment import augment
from training.picture_cache import PictureCache, open_picture_cache
from utils.errors import InputError
from utils.workers import NOTHING, Loader, note

AUGMENTING, DEALING, MINING = 1, 2, 3  # keep these random numbers apart from those of the draws
ATTEMPTS = 20  # draws in place of one that holds an unreadable file, before giving up


class Draws(Dataset):
    """Draws of images of seen classes, one item a draw; subclasses say which images.

    An item is indexed by (epoch, number) and holds
      sketches, photos                  (K, 3, S, S) uint8, for Preprocessing.normalise
      sketch_targets, photo_targets     (K,)
      sketch_numbers, photo_numbers     (K,) in the list of images, to name their files
      chances                           (K, 2) float32, uniform in [0, 1): for mining, of a sketch
      unreadable                        a sentence for each file that could not be read
    With skip_bad another draw takes the place of one with such a file; else 'sketches' is None.
    augmentation: a key of augment.RANGES. per_class: images of each modality that a draw has.
    own_photo: how often, where file names show it, a sketch comes with the photo it was drawn from.
    cache: of the prepared pictures.
    """

    def __init__(
        self,
        images: ImageList,
        preprocessing: Preprocessing,
        *,
        seed: int,
        skip_bad: bool,
        augmentation: str = "none",
        per_class: int = 1,
        own_photo: float = 0.0,
        cache: PictureCache | None = None,
    ):
        self.images = images
        self.preprocessing = preprocessing
        self.seed = seed
        self.skip_bad = skip_bad
        self.augmentation = augmentation
        self.per_class = per_class
        self.own_photo = own_photo
        self.cache = cache
        self.targets = np.unique(images.target)
        if len(self.targets) < 2:
            raise InputError(f"{images.root}: training needs two classes.")
        self.members = {modality: self._by_class(modality) for modality in (SKETCH, PHOTO)}
        self.own_photos = images.own_photos() if own_photo else np.full(len(images), -1)

    def draw(self, epoch: int, number: int, attempt: int = 0) -> tuple[int, ...]:
        """Indices in the list of images: those of K sketches, then those of K photos."""
        raise NotImplementedError

    def __getitem__(self, key: tuple[int, int]) -> dict:
        unreadable = []
        for attempt in range(ATTEMPTS if self.skip_bad else 1):
            indices = self.draw(*key, attempt)
            random = np.random.default_rng([self.seed, *key, attempt, AUGMENTING])
            try:
                pictures = torch.stack([self._picture(index, random) for index in indices])
            except InputError as error:
                unreadable.append(str(error))
                continue
            finally:
                note(NOTHING)
            half = len(indices) // 2
            numbers = torch.tensor(indices)
            targets = torch.from_numpy(self.images.target[list(indices)])
            chances = np.random.default_rng([self.seed, *key, attempt, MINING])
            return {
                "sketches": pictures[:half],
                "photos": pictures[half:],
                "sketch_targets": targets[:half],
                "photo_targets": targets[half:],
                "sketch_numbers": numbers[:half],
                "photo_numbers": numbers[half:],
                "chances": torch.from_numpy(chances.random((half, 2), dtype=np.float32)),
                "unreadable": unreadable,
            }
        return {"sketches": None, "unreadable": unreadable}

    def _picture(self, index: int, random: np.random.Generator) -> Tensor:
        note(index)
        if self.cache is not None:
            levels = self.cache.read(index)
        else:
            levels = self.images.read(index, self.preprocessing.levels)
        return augment(levels, self.images.modality[index], self.augmentation, random)

    @staticmethod
    def collate(items: list[dict]) -> dict:
        """B draws -> tensors of K B rows: the first of every draw, then the second, ...

        Of triplets, image i of 'sketches' and of 'photos' make pair i; the first B pairs match.
        """
        unreadable = [sentence for item in items for sentence in item["unreadable"]]
        if any(item["sketches"] is None for item in items):
            return {"unreadable": unreadable}
        names = [name for name in items[0] if name != "unreadable"]
        stacked = {n: torch.stack([item[n] for item in items], dim=1).flatten(0, 1) for n in names}
        return {**stacked, "unreadable": unreadable}

    def _by_class(self, modality: str) -> list[np.ndarray]:
        of_modality = self.images.modality == modality
        members = [
            np.flatnonzero((self.images.target == target) & of_modality) for target in self.targets
        ]
        for target, found in zip(self.targets, members, strict=True):
            if not len(found):
                name = self.images.class_name[self.images.target == target][0]
                raise InputError(f"{self.images.root}: the seen class {name} has no {modality}.")
        return members


class Triplets(Draws):
    """The published draws of ZSE-SBIR: sketches [s1, s2], photos [p, n].

    Two classes c and d; sketches s1, s2 and photo p of c, photo n of d. Published faults mended:
    every file can be drawn, s1 and s2 differ where the class has two sketches, and so do c and d.
    """

    def draw(self, epoch: int, number: int, attempt: int = 0) -> tuple[int, ...]:
        """Indices of s1, s2, p and n in the list of images."""
        random = np.random.default_rng([self.seed, epoch, number, attempt])
        c, d = random.choice(len(self.targets), size=2, replace=False)
        sketches, photos = self.members[SKETCH][c], self.members[PHOTO][c]
        s1, s2 = random.choice(sketches, size=2, replace=len(sketches) == 1)
        negatives = self.members[PHOTO][d]
        return int(s1), int(s2), int(random.choice(photos)), int(random.choice(negatives))


class Classes(Draws):
    """A draw is a class: `per_class` of its sketches and as many of its photos (see own_photo).

    The classes are dealt like cards, all once before any comes again, so that any three draws in a
    row have two classes, and a batch of at most C draws hardly has one twice.
    """

    def draw(self, epoch: int, number: int, attempt: int = 0) -> tuple[int, ...]:
        """Indices of sketches, then of photos.

        Each once unless the class has too few; but a photo that own_photo puts beside its sketch
        may also have been drawn for another one.
        """
        deal, position = divmod(number, len(self.targets))
        dealing = np.random.default_rng([self.seed, epoch, deal, 0, DEALING])
        c = dealing.permutation(len(self.targets))[(position + attempt) % len(self.targets)]
        random = np.random.default_rng([self.seed, epoch, number, attempt])
        chosen = []
        for modality in (SKETCH, PHOTO):
            members = self.members[modality][c]
            again = len(members) < self.per_class
            chosen += random.choice(members, size=self.per_class, replace=again).tolist()
        sketches, photos = chosen[: self.per_class], chosen[self.per_class :]
        for i, own in enumerate(self.own_photos[sketches].tolist()):
            if own >= 0 and random.random() < self.own_photo:
                photos[i] = own
        return (*sketches, *photos)


BATCHES = {"triplets": Triplets, "classes": Classes}


class EpochSampler(Sampler):
    """The batches of an epoch as lists of (epoch, number), from draw number `first_draw` on.

    An epoch has `draws` draws, in steps of size * world_size * accumulate; an incomplete last step
    is dropped. A step is `accumulate` batches of every process; rank: which one this is. Steps,
    sizes and processes may change in the midst of an epoch: it goes on at the very next draw.
    """

    def __init__(
        self, draws: int, size: int, rank: int = 0, world_size: int = 1, accumulate: int = 1
    ):
        self.draws, self.size, self.rank, self.world_size = draws, size, rank, world_size
        self.accumulate = accumulate
        self.epoch, self.first_draw = 0, 0
        if self.steps == 0:
            raise InputError(
                f"datasetLen {draws} does not fill one batch of {size} on {world_size} process(es) "
                f"x {accumulate}: a step takes {self.draws_a_step} draws. Lower --batch, or raise "
                "--datasetLen."
            )

    @property
    def draws_a_step(self) -> int:
        """Of all processes together."""
        return self.size * self.world_size * self.accumulate

    @property
    def first_step(self) -> int:
        """The steps of this size that the draws before first_draw make, rounded down."""
        return self.first_draw // self.draws_a_step

    @property
    def steps(self) -> int:
        """The steps of the epoch from its start to its end."""
        return self.first_step + (self.draws - self.first_draw) // self.draws_a_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(len(self)):  # of this process, which the others have as well
            first = self.first_draw + (batch * self.world_size + self.rank) * self.size
            yield [(self.epoch, first + i) for i in range(self.size)]

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.accumulate


def build_batches(
    kind: str,
    images: ImageList,
    preprocessing: Preprocessing,
    sampler: EpochSampler,
    *,
    draw_settings: dict,
    workers: int,
    cache_images: Path | None = None,
    **loader_settings,
) -> Loader:
    """A loader of training batches. kind: a key of BATCHES, as a method names it in `batches`.

    draw_settings: further arguments of Draws. cache_images: the folder that keeps prepared
    pictures. loader_settings: further arguments of torch's DataLoader.
    """
    dataset = BATCHES[kind](
        images,
        preprocessing,
        cache=open_picture_cache(cache_images, images, preprocessing) if cache_images else None,
        **draw_settings,
    )
    return Loader(
        dataset,
        workers,
        images.name,
        batch_sampler=sampler,
        collate_fn=dataset.collate,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # else its seed would come from dropout's random numbers
        **loader_settings,
    )
