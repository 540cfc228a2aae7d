"""The rules of the source tree: who imports whom, how much there is to read, what may be in it.

`backend <- tensor <- ops <- nn, optim <- tools, interop <- autoencoders <- scripts, benchmarks`; tensor.py, ops/ and
nn/ see no array library; the core path stays readable in one evening; nothing loads code from data; `import minigrad`
is light.
"""

import ast
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("minigrad", "autoencoders", "scripts", "benchmarks")
MODULES = {p.relative_to(ROOT).as_posix(): p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))}
SOURCES = {place: path.read_text() for place, path in MODULES.items()}

CORE_LINES, CORE_FILE_LINES = 1600, 250
TOP_LEVEL = {"minigrad", "autoencoders", "scripts", "tests", "benchmarks", "pyproject.toml", "README.md", "LICENSE"}
ARRAY_FREE = ("minigrad/tensor.py", "minigrad/ops/", "minigrad/nn/", "minigrad/nn.py")
ARRAY_LIBRARIES = {"numpy", "cupy", "numba", "threading", "concurrent", "multiprocessing"}

# what a part of the tree may import
LAYERS: list[tuple[str, set[str]]] = [
    ("backend", set()),
    ("checks", set()),
    ("context", set()),
    ("init", set()),
    ("random", set()),
    ("serialize", set()),
    ("tensor", {"backend", "checks", "context"}),
    ("ops", {"backend", "tensor"}),
    ("nn", {"backend", "context", "tensor", "ops", "init", "random"}),
    ("optim", {"backend", "tensor", "nn"}),
    ("higher_order", {"backend", "tensor", "ops"}),
    ("testing", {"backend", "tensor", "random", "higher_order"}),
    ("tools", {"backend", "tensor", "ops", "nn", "optim", "serialize", "higher_order"}),
    ("interop", {"backend", "tensor", "ops", "nn", "random", "serialize", "higher_order"}),
]


def is_core(place: str) -> bool:
    """Whether a file belongs to what a newcomer reads: not the catalogue, the fast path, tables and lists of names."""
    folder, _, name = place.rpartition("/")
    if folder in ("minigrad/ops", "minigrad/nn"):
        return name not in ("catalogue.py", "conv_chain.py", "summary.py", "__init__.py")
    files = ["tensor.py", "checks.py", "context.py", "optim.py", "random.py", "init.py"]
    files += [f"backend/{name}.py" for name in ("__init__", "geometry", "reference", "device", "errors")]
    return place in [f"minigrad/{file}" for file in files]


# ---- imports ----


def imports_of(source: str, place: str) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of each import; `from a import b` gives a.b, whether that is a module or not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = place.split("/")[:-1]
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*start, node.module]))
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((node.lineno, str(word.value)) for word in node.args[:1] if isinstance(word, ast.Constant))


def layer_of(module: str) -> str:
    """`minigrad.ops.conv` -> ops, `minigrad` -> minigrad, `autoencoders.data` -> autoencoders."""
    parts = module.split(".")
    return parts[1] if parts[0] == "minigrad" and len(parts) > 1 else parts[0]


def direction_faults(place: str, source: str) -> list[str]:
    """The imports in a module that go the wrong way."""
    me = layer_of(place.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    outer = {"minigrad": 0, "autoencoders": 1, "scripts": 2, "benchmarks": 2, "tests": 3}
    my_rank = outer[place.split("/")[0]]
    known = {name for name, _ in LAYERS}
    faults = []
    for line, module in imports_of(source, place):
        top, layer = module.split(".")[0], layer_of(module)
        if outer.get(top, -1) > my_rank:
            faults.append(f"{place}:{line}: imports {module}, which is above it")
        elif top == "scripts" and place.startswith("benchmarks/"):
            faults.append(f"{place}:{line}: imports {module}; what both need belongs to a package")
        elif top == "minigrad" and me in known and place != "minigrad/__init__.py" and layer != me:
            allowed = dict(LAYERS)[me]
            if layer not in allowed and layer in known:
                faults.append(f"{place}:{line}: {me} imports {module}, but may import only {sorted(allowed)}")
        if place.startswith(ARRAY_FREE) and top in ARRAY_LIBRARIES:
            faults.append(f"{place}:{line}: imports {module}; array work goes through the backend")
    return faults


@pytest.mark.parametrize("place", SOURCES)
def test_imports_go_one_way(place: str) -> None:
    faults = direction_faults(place, SOURCES[place])
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("minigrad/tensor.py", "from .ops import add"),
        ("minigrad/tensor.py", "import numpy as np"),
        ("minigrad/ops/conv.py", "from ..nn.layers import Dense"),
        ("minigrad/nn/layers.py", "import threading"),
        ("minigrad/nn/layers.py", "import importlib\ndef f():\n    return importlib.import_module('cupy')"),
        ("minigrad/backend/reference.py", "from ..ops.conv import Conv2D"),
        ("minigrad/backend/cpu/plan.py", "from ...tensor import Tensor"),
        ("minigrad/optim.py", "import autoencoders.data"),
        ("minigrad/optim.py", "from .tools.watch import Watcher"),
        ("minigrad/higher_order.py", "from . import tools"),
        ("minigrad/tools/watch.py", "import autoencoders.data"),
        ("minigrad/interop/graph.py", "from ..tools.watch import Watcher"),
        ("minigrad/nn/layers.py", "from ..interop import graph"),
        ("autoencoders/data.py", "from scripts.evaluate import main"),
        ("benchmarks/ops.py", "import scripts.evaluate"),
    ],
)
def test_a_wrong_import_is_found(place: str, line: str) -> None:
    assert direction_faults(place, line)


def circle(sources: dict[str, str]) -> list[str]:
    """Files that import each other in a circle, imports inside functions and for types included."""
    modules = {place.removesuffix(".py").removesuffix("/__init__").replace("/", "."): place for place in sources}
    graph: dict[str, set[str]] = {}
    for place, source in sources.items():  # a name is a module, or what the module before its last point defines
        found = [modules.get(name, modules.get(name.rpartition(".")[0])) for _, name in imports_of(source, place)]
        graph[place] = set(filter(None, found))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_there_is_no_circle() -> None:
    assert circle(SOURCES) == []


def test_a_circle_is_found() -> None:
    sources = {
        "a/__init__.py": "from . import x",
        "a/x.py": "def f():\n    from .y import g",
        "a/y.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a.x import f",
        "a/z.py": "from . import y",
    }
    assert set(circle(sources)) == {"a/x.py", "a/y.py"}


def test_import_of_minigrad_is_light() -> None:
    """A fresh process: besides the standard library it holds NumPy alone."""
    program = "import sys; before = set(sys.modules); import minigrad; print(*(set(sys.modules) - before))"
    command = [sys.executable, "-W", "error", "-c", program]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    others = {name for name in loaded if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert others - {"cython_runtime"} == {"minigrad", "numpy"}  # numpy.random brings the former


# ---- size ----


def code_lines(source: str) -> int:
    """Lines with code: docstrings, comments and blank lines do not count."""
    tree = ast.parse(source)
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                docstrings.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate(source.split("\n"), 1)
    return sum(1 for i, line in lines if line.strip() and not line.strip().startswith("#") and i not in docstrings)


def test_the_core_can_be_read_in_one_evening() -> None:
    sizes = {place: code_lines(source) for place, source in SOURCES.items() if is_core(place)}
    assert {"minigrad/tensor.py", "minigrad/backend/reference.py", "minigrad/ops/conv.py"} <= set(sizes)
    assert sum(sizes.values()) <= CORE_LINES, f"{sum(sizes.values())} lines of code: {sizes}"
    assert max(sizes.values()) <= CORE_FILE_LINES, sizes


def test_code_lines_are_counted_right() -> None:
    text = '"""Module.\n\nMore."""\n\nimport os  # yes\n\n# no\ndef f():\n    """No."""\n    return """a\n    b"""\n'
    assert code_lines(text) == 4


# ---- nothing runs code from data ----

FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "runpy"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def unsafe_in(source: str, place: str) -> list[str]:
    """What in a module could run code that comes from a file or a user."""
    faults = [
        f"{place}:{line}: imports {module}"
        for line, module in imports_of(source, place)
        if module.split(".")[0] in FORBIDDEN_MODULES
    ]
    for node in ast.walk(ast.parse(source)):
        where = f"{place}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_CALLS:
            faults.append(f"{where}: {node.id}")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name.split(".")[-1] == "import_module" and not isinstance(node.args[0], ast.Constant):
            faults.append(f"{where}: {name} of a name that is not written here")
        if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords):
            faults.append(f"{where}: allow_pickle")
        if name in ("np.load", "numpy.load") and len(node.args) > 2:
            faults.append(f"{where}: allow_pickle by position")
        if name.startswith("builtins."):
            faults.append(f"{where}: {name}")
        if name in ("os.system", "os.popen") or any(
            k.arg == "shell" and ast.unparse(k.value) != "False" for k in node.keywords
        ):
            faults.append(f"{where}: a shell")
    return faults


@pytest.mark.parametrize("place", SOURCES)
def test_nothing_runs_code_from_data(place: str) -> None:
    faults = unsafe_in(SOURCES[place], place)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "def f():\n    import marshal",
        "eval(text)",
        "__import__(name)",
        "importlib.import_module(name)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, None, True)",
        "builtins.eval(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
    ],
)
def test_unsafe_code_is_found(line: str) -> None:
    assert unsafe_in(line, "minigrad/planted.py")
    assert not unsafe_in("importlib.import_module('cupy')", "minigrad/planted.py")


# ---- the tree ----


def top_level_faults(files: list[str]) -> set[str]:
    return {name.split("/")[0] for name in files if not name.startswith(".")} - TOP_LEVEL


@pytest.mark.skipif(not shutil.which("git"), reason="there is no git")
def test_nothing_new_at_the_top_level() -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        pytest.skip("not a git checkout")
    files = [name for name in run.stdout.split("\0") if name]
    assert "pyproject.toml" in files
    assert not top_level_faults(files)
    assert top_level_faults(["setup.py", "notes/x.md", ".github/x"]) == {"setup.py", "notes"}


def unpacked(files: dict[str, list[str]], patterns: dict[str, list[str]]) -> set[str]:
    """The files of each package, without its code, that no pattern of its package data names."""
    found = {f"{package}/{name}" for package, names in files.items() for name in names}
    globs = [f"{package}/{pattern}" for package, several in patterns.items() for pattern in several]
    as_words = [re.compile(re.escape(glob).replace(r"\*", "[^/]*")) for glob in globs]
    return {name for name in found if not any(words.fullmatch(name) for words in as_words)}


def test_the_wheel_holds_every_file_that_is_not_code() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    files = {}
    for package in ("minigrad", "autoencoders"):
        paths = [path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        names = [path.relative_to(ROOT / package).as_posix() for path in paths if path.suffix != ".py"]
        files[package] = [name for name in names if name != "README.md"]  # for readers of the repository
    assert {"data/sample_data/LICENSE", "models/index.json"} <= set(files["autoencoders"])
    assert not unpacked(files, patterns)
    assert unpacked({"a": ["b/c.json", "b/d/c.json", "c.json"]}, {"a": ["b/*.json"]}) == {"a/b/d/c.json", "a/c.json"}


# ---- documentation ----


EXEMPT = {"forward", "backward"}  # of Functions and layers: the class or the lower-case function says it
EXEMPT |= {"retained"}  # an attribute that can be called


def undocumented_in(source: str, place: str) -> list[str]:
    """The module, its public functions and its public classes, where they have no docstring."""
    tree = ast.parse(source)
    nodes = {"": tree, **{node.name: node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}}
    return [f"{place}: {name}" for name, x in nodes.items() if name[:1] != "_" and not ast.get_docstring(x)]


def undocumented_methods(cls: type) -> list[str]:
    """Public methods without a docstring, of their own or of the method that they override."""
    methods = [name for name, x in vars(cls).items() if inspect.isroutine(x) or isinstance(x, property)]
    public = [name for name in methods if name[0] != "_" and name not in EXEMPT]
    return [f"{cls.__name__}.{name}" for name in public if not inspect.getdoc(getattr(cls, name))]


@pytest.mark.parametrize("place", [place for place in SOURCES if place.startswith("minigrad/")])
def test_public_names_have_docstrings(place: str) -> None:
    faults = undocumented_in(SOURCES[place], place)
    module = pytest.importorskip(place.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    classes = [x for x in vars(module).values() if isinstance(x, type) and x.__module__ == module.__name__]
    faults += [fault for cls in classes if cls.__name__[0] != "_" for fault in undocumented_methods(cls)]
    assert not faults, "\n".join(faults)


def test_a_missing_docstring_is_found() -> None:
    source = '"""M."""\ndef f(): pass\nclass A:\n    """A."""\nclass B: pass\n'
    assert undocumented_in(source, "x.py") == ["x.py: f", "x.py: B"]

    class Bare:
        def g(self) -> None: ...

        @property
        def p(self) -> None: ...

    assert undocumented_methods(Bare) == ["Bare.g", "Bare.p"]
