"""Who may import whom: imports point strictly down, and tables of names load no torch.

5  scripts, benches/                        import all below; nothing imports a script
4  report/                                  draws and writes what the rooms below record
3  options.py | training/ | retrieval/      never each other
2  model/ | datasets/                       never each other
1  utils/                                   nothing of ours

A method (model/zse/) and a source of images (datasets/synthetic/) are known to level 5 alone: the
others reach them through the tables METHODS and DATASETS. None imports another one.
"""

import ast
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from datasets import DATASETS
from model import METHODS

ROOT = Path(__file__).parents[1]
ROOMS = ("benches", "report", "training", "retrieval", "model", "datasets", "utils")
LEVELS = {"benches": 5, "report": 4, "options": 3, "training": 3, "retrieval": 3}
LEVELS |= {"model": 2, "datasets": 2, "utils": 1}
SCRIPT = 5
IN_TABLES = {name.split(":")[0] for row in METHODS.values() for name in row}
IN_TABLES |= {row.loader.split(":")[0] for row in DATASETS.values()}
DRAWN = "datasets.synthetic.drawn"
WITHOUT_TORCH = ("options", "model", "datasets")
LOAD_TORCH = {"torch", "torchvision", "timm", "safetensors"}


def test_imports_point_down():
    assert breaches(_our_sources()) == []


def test_every_file_has_its_place():
    """Nothing of ours escapes the check by lying elsewhere."""
    names = set(_our_sources())
    assert {"train", "test", "options", "training.loop", "model.zse.method", DRAWN} <= names
    here = {path for path in ROOT.glob("**/*.py") if not _is_foreign(path.relative_to(ROOT))}
    assert {_dotted(path.relative_to(ROOT)) for path in here} == names


def _is_foreign(path: Path) -> bool:
    """Whether a file is a test, or of an environment that lies in the folder."""
    return path.parts[0] == "tests" or any(part.startswith(".") for part in path.parts)


def test_tables_import_no_torch_even_through_others():
    sources = _our_sources()
    scripts = [name for name in sources if "." not in name and _level(name) == SCRIPT]
    for name in (*WITHOUT_TORCH, *scripts):
        assert not loaded_with(name, sources) & LOAD_TORCH, name


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_tables_load_no_torch_when_run(name):
    code = f"import {name}, sys; assert 'torch' not in sys.modules"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("importer", "line", "imported"),
    [
        ("utils.logs", "import model.zse.method", "model.zse.method"),
        ("utils.logs", "import options", "options"),
        ("model.method", "from datasets.benchmark import Benchmark", "datasets.benchmark"),
        ("model.zse.method", "from retrieval import ranking", "retrieval.ranking"),
        ("datasets.images", "def f():\n    from model import METHODS", "model"),
        ("retrieval.evaluate", "import training.loop", "training.loop"),
        ("training.loop", "from retrieval.evaluate import evaluate", "retrieval.evaluate"),
        ("training.run", "def f():\n    import retrieval.evaluate", "retrieval.evaluate"),
        ("training.loop", "import options", "options"),
        ("options", "import training.loop", "training.loop"),
        ("options", "import train", "train"),
        ("training.run", "from report.curves import draw_curves", "report.curves"),
        ("retrieval.gallery", "from report import page", "report.page"),
        ("report.pictures", "import benches.noise", "benches.noise"),
        ("train", "from test import main", "test"),
        ("test", "import train as other", "train"),
        ("benches.plain", "import bench", "bench"),
        ("retrieval.metrics", "from utils.errors import InputError", "utils.errors"),
        ("retrieval.metrics", "from retrieval.ranking import Order", "retrieval.ranking"),
        ("retrieval.metrics", "from . import ranking", "retrieval.ranking"),
        ("model.tvt.method", "from model.zse.method import ZSE", "model.zse.method"),
        ("model.tvt.method", "from model.zse import tokenizer", "model.zse.tokenizer"),
        ("model.tvt.method", "from ..zse.method import ZSE", "model.zse.method"),
        ("model.frozen", "from .zse import pairs", "model.zse.pairs"),
        ("model.zse.method", "from model.frozen import Frozen", "model.frozen"),
        ("model.method", "from model.zse.settings import ZSESettings", "model.zse.settings"),
        ("retrieval.encoder", "from model.zse.pairs import PairScorer", "model.zse.pairs"),
        ("datasets.folder", "import datasets.zeroshot", "datasets.zeroshot"),
        ("datasets.zeroshot", f"from {DRAWN} import pose", f"{DRAWN}.pose"),
        ("datasets.layout", f"from {DRAWN} import shapes", f"{DRAWN}.shapes"),
        (f"{DRAWN}.photo", "from model import METHODS", "model"),
        (DRAWN, "from retrieval import ranking", "retrieval.ranking"),
        (f"{DRAWN}.photo", "from datasets.zeroshot import SKETCHY", "datasets.zeroshot"),
        (f"{DRAWN}.photo", "from .. import benchmark", "datasets.synthetic.benchmark"),
        (f"{DRAWN}.photo", "from ...layout import Layout", "datasets.layout"),
        ("model.zse.method", f"from {DRAWN} import shapes", f"{DRAWN}.shapes"),
    ],
)
def test_a_planted_breach_is_caught(importer, line, imported):
    in_tables = {*IN_TABLES, "model.tvt.method", "model.frozen", "datasets.folder"}
    planted = {"model.frozen": "", **_our_sources(), importer: line}
    assert breaches(planted, in_tables, {importer}) == [f"{importer} imports {imported}"]


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("train", "import options, training.run, retrieval.evaluate, model.zse.method, utils.logs"),
        ("bench", "import benches.training"),
        ("benches.training", "from options import train_options\nimport report.pictures"),
        ("benches.evaluation", "from model.zse.settings import ZSESettings\nimport benches.plain"),
        ("report.found", "from retrieval.gallery import Gallery\nimport datasets.images"),
        ("retrieval.evaluate", "from retrieval.ranking import Order\nimport model.method"),
        ("options", "from datasets import DATASETS\nfrom model import METHODS"),
        ("model.zse.method", "from model.zse.tokenizer import Tokenizer\nimport torch, timm"),
        ("model.zse.method", "from model.backbone import build_vit\nimport model.losses"),
        ("retrieval.metrics", "import numpy"),
        ("datasets.synthetic.benchmark", f"from {DRAWN}.pose import Pose\nimport datasets.layout"),
        (DRAWN, f"from . import shapes\nfrom {DRAWN} import living"),
        (f"{DRAWN}.living", "from .shapes import Part\nfrom utils.errors import InputError"),
        ("utils.logs", "from utils.errors import InputError\nfrom .errors import InputError"),
    ],
)
def test_what_points_down_is_no_breach(importer, line):
    assert breaches({**_our_sources(), importer: line}, only={importer}) == []


def test_planted_torch_is_found_through_others():
    sources = {
        "options": "from model import METHODS",
        "model": "import model.names",
        "model.names": "if True:\n    import utils.tensors",
        "utils.tensors": "from torch import nn",
    }
    assert "torch" in loaded_with("options", sources)
    later = "def f():\n    import torch\nif TYPE_CHECKING:\n    import torch"
    assert loaded_with("options", {**sources, "utils.tensors": later}) == set()


def breaches(
    sources: Mapping[str, str], in_tables: set[str] = IN_TABLES, only: set[str] | None = None
) -> list[str]:
    """Every import that the rules forbid. sources: text of each of our modules by dotted name.

    in_tables: modules of methods and sources of images. only: modules to look at; None: all.
    """
    places = {_place(module) for module in in_tables}
    found = []
    for name in only or sources:
        imports = _imports(name, ast.walk(_tree(sources[name])), sources)
        for imported in sorted(set(imports)):
            if imported in sources and not _may_import(name, imported, places):
                found.append(f"{name} imports {imported}")
    return found


def _may_import(name: str, imported: str, places: set[str]) -> bool:
    """places: the folders, or files, of methods and sources of images."""
    same_room = "." in imported and _room(name) == _room(imported)
    if _level(imported) == SCRIPT and _room(imported) != "benches":
        return False
    if not (same_room or _level(imported) < _level(name) or _room(imported) == "benches"):
        return False
    if _room(imported) == "benches" and _level(name) != SCRIPT:
        return False
    if name == "retrieval.metrics":
        return False
    if _is_within(name, DRAWN) and not _is_within(imported, DRAWN):
        return _room(imported) == "utils"
    owner = next((place for place in places if _is_within(imported, place)), None)
    return owner is None or _is_within(name, owner) or _level(name) == SCRIPT


def _place(module: str) -> str:
    """The folder of a method or a source of images where it has one, else its file."""
    return module if module.count(".") == 1 else module.rpartition(".")[0]


def _is_within(name: str, place: str) -> bool:
    return name == place or name.startswith(f"{place}.")


def loaded_with(name: str, sources: Mapping[str, str]) -> set[str]:
    """Packages of others that come with importing a module of ours, through ours too."""
    packages, waiting, done = set(), [name], set()
    while waiting:
        module = waiting.pop()
        if module in done:
            continue
        done.add(module)
        if module not in sources:
            packages.add(module.split(".")[0])
            continue
        waiting += [module.rpartition(".")[0]] if module.rpartition(".")[0] in sources else []
        waiting += _imports(module, _at_once(_tree(sources[module])), sources)
    return packages - set(ROOMS) - set(sys.stdlib_module_names)


def _imports(name: str, nodes, sources: Mapping[str, str]) -> list[str]:
    """Dotted names that these nodes of module `name` import; `from a import b` is a.b if a file."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = name.split(".") + ["__init__"] * _is_folder(name, sources)
                module = ".".join([*parents[: -node.level], *filter(None, [module])])
            inner = [f"{module}.{alias.name}" for alias in node.names]
            found += [full if full in sources else module for full in inner]
    return found


def _at_once(tree: ast.AST):
    """The nodes that run when a module is imported: no functions, no `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _at_once(node)


@cache
def _our_sources() -> dict[str, str]:
    """Text of each of our modules by dotted name; a room's __init__ has the room's name."""
    inside = [(ROOT / room).glob("**/*.py") for room in ROOMS]
    paths = [*ROOT.glob("*.py"), *(path for files in inside for path in files)]
    return {_dotted(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _is_folder(name: str, sources: Mapping[str, str]) -> bool:
    return name in ROOMS or any(other.startswith(f"{name}.") for other in sources)


@cache
def _tree(text: str) -> ast.AST:
    return ast.parse(text)


def _room(name: str) -> str:
    return name.split(".")[0]


def _level(name: str) -> int:
    return LEVELS.get(_room(name), SCRIPT)
