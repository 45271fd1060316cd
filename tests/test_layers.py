"""Who may import whom: imports point strictly down, and tables of names load no torch.

5  every other script of the top level       imports all below; nothing imports it
4  benches/                                  what bench.py measures
3  options.py | training.loop.py | retrieval/       never each other
2  model/ | datasets/                        never each other
1  utils/                                    nothing of ours

A folder inside a room (datasets/drawn/) imports nothing of the room around it.
"""

import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from datasets import DATASETS
from model import METHODS

ROOT = Path(__file__).parents[1]
LEVELS = {"benches": 4, "options": 3, "training.loop": 3, "retrieval": 3}
LEVELS |= {"model": 2, "datasets": 2, "utils": 1}
SCRIPT = 5
ROOMS = ("benches", "retrieval", "model", "datasets", "utils")
METHOD_FILES = {place.split(":")[0] for place in METHODS.values()}
SOURCE_FILES = {place.split(":")[0] for place in DATASETS.values()}
ALONE = {"retrieval.metrics", "report.pictures", "report.page"}
WITHOUT_TORCH = ("options", "model", "datasets")
LOAD_TORCH = {"torch", "torchvision", "timm", "safetensors"}


def test_imports_point_down():
    assert breaches(_our_sources()) == []


def test_every_file_has_its_place():
    """Nothing of ours escapes the check by lying elsewhere."""
    names = set(_our_sources())
    assert {
        "train",
        "test",
        "options",
        "training.loop",
        "model.zse.method",
        "utils.errors",
    } <= names
    drawn = {
        f"datasets.synthetic.drawn.{path.stem}" for path in (ROOT / "datasets/drawn").glob("*.py")
    }
    assert len(drawn) > 1 and drawn - {"datasets.synthetic.drawn.__init__"} <= names
    assert "datasets.synthetic.drawn" in names
    folders = {
        path.parent.name
        for path in ROOT.glob("*/*.py")
        if not path.parent.name.startswith(".") and path.parent.name not in ("docs", "tests")
    }
    assert folders <= set(ROOMS)


def test_tables_import_no_torch_even_through_others():
    sources = _our_sources()
    scripts = [name for name in sources if _level(name) == SCRIPT]
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
        ("model.zse.method", "from datasets.benchmark import Benchmark", "datasets.benchmark"),
        ("model.zse.method", "from retrieval import ranking", "retrieval.ranking"),
        ("datasets.images", "def f():\n    from model import METHODS", "model"),
        ("retrieval.evaluate", "import training.loop", "training.loop"),
        ("training.loop", "from retrieval.evaluate import evaluate", "retrieval.evaluate"),
        ("training.loop", "import options", "options"),
        ("options", "import training.loop", "training.loop"),
        ("options", "import train", "train"),
        ("train", "from test import main", "test"),
        ("test", "import train as other", "train"),
        ("retrieval.metrics", "from utils.errors import InputError", "utils.errors"),
        ("retrieval.metrics", "from retrieval.ranking import rank", "retrieval.ranking"),
        ("retrieval.metrics", "from . import ranking", "retrieval.ranking"),
        ("model.tvt", "from model.zse.method import ZSE", "model.zse.method"),
        ("model.tvt", "from model import zse", "model.zse.method"),
        ("model.tvt", "from .zse import ZSE", "model.zse.method"),
        ("datasets.folder", "import datasets.zeroshot", "datasets.zeroshot"),
        (
            "datasets.synthetic.benchmark",
            "from datasets.zeroshot import SKETCHY",
            "datasets.zeroshot",
        ),
        ("datasets.zeroshot", "from datasets import synthetic", "datasets.synthetic.benchmark"),
        ("datasets.synthetic.drawn.photo", "from model import METHODS", "model"),
        ("datasets.synthetic.drawn", "from retrieval import pictures", "report.pictures"),
        (
            "datasets.synthetic.drawn.photo",
            "from datasets.zeroshot import SKETCHY",
            "datasets.zeroshot",
        ),
        (
            "datasets.synthetic.drawn.photo",
            "from .. import synthetic",
            "datasets.synthetic.benchmark",
        ),
        ("datasets.synthetic.drawn", "from ..layout import Layout", "datasets.layout"),
        (
            "model.zse.method",
            "from datasets.synthetic.drawn import shapes",
            "datasets.synthetic.drawn.shapes",
        ),
    ],
)
def test_a_planted_breach_is_caught(importer, line, imported):
    methods = {"model.zse.method", "model.tvt"}
    sources = {"datasets.zeroshot", "datasets.synthetic.benchmark", "datasets.folder"}
    planted = {**_our_sources(), importer: line}
    found = breaches(planted, methods, sources)
    assert found == [f"{importer} imports {imported}"]


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        (
            "train",
            "import training.loop, options, retrieval.evaluate, model.zse.method, utils.logs",
        ),
        ("retrieval.evaluate", "from retrieval.ranking import rank\nimport model.zse.method"),
        ("options", "from datasets import DATASETS\nfrom model import METHODS"),
        ("model.zse.method", "from model.zse.tokenizer import Tokenizer\nimport torch, timm"),
        ("retrieval.metrics", "import numpy"),
        (
            "datasets.synthetic.benchmark",
            "from datasets.synthetic.drawn.pose import Pose\nimport datasets.layout",
        ),
        (
            "datasets.synthetic.drawn",
            "from . import shapes\nfrom datasets.synthetic.drawn import living",
        ),
        (
            "datasets.synthetic.drawn.living",
            "from .shapes import Part\nfrom utils.errors import InputError",
        ),
        ("utils.logs", "from utils.errors import InputError\nfrom .errors import InputError"),
    ],
)
def test_what_points_down_is_no_breach(importer, line):
    assert breaches({**_our_sources(), importer: line}) == []


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
    sources: Mapping[str, str],
    methods: set[str] = METHOD_FILES,
    benchmarks: set[str] = SOURCE_FILES,
) -> list[str]:
    """Every import that the rules forbid. sources: text of each of our modules by dotted name."""
    found = []
    for name, text in sources.items():
        for imported in sorted(set(_imports(name, ast.walk(ast.parse(text)), sources))):
            if imported not in sources:
                continue
            same_room = _room(name) == _room(imported)
            inner = _inner_folder(name, sources)
            if (
                not (same_room or _level(imported) < _level(name))
                or (same_room and inner and _inner_folder(imported, sources) != inner)
                or name in ALONE
                or any({name, imported} <= kind for kind in (methods, benchmarks))
            ):
                found.append(f"{name} imports {imported}")
    return found


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
        waiting += _imports(module, _at_once(ast.parse(sources[module])), sources)
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


def _our_sources() -> dict[str, str]:
    """Text of each of our modules by dotted name; a room's __init__ has the room's name."""
    inside = [(ROOT / room).glob(files) for room in ROOMS for files in ("*.py", "*/*.py")]
    paths = [*ROOT.glob("*.py"), *(path for files in inside for path in files)]
    return {_dotted(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _is_folder(name: str, sources: Mapping[str, str]) -> bool:
    return name in ROOMS or any(other.startswith(f"{name}.") for other in sources)


def _inner_folder(name: str, sources: Mapping[str, str]) -> str | None:
    """The folder inside a room to which a module belongs, as datasets.synthetic.drawn; None: the room."""
    inner = ".".join(name.split(".")[:2])
    return inner if "." in inner and _is_folder(inner, sources) else None


def _room(name: str) -> str:
    return name.split(".")[0]


def _level(name: str) -> int:
    return LEVELS.get(_room(name), SCRIPT)
