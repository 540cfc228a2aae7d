"""Whatever the code asks of `xp` exists in CuPy, with the parameters that the code gives.

The real CuPy is looked at where it can be imported (a GPU is not needed); elsewhere reference/cupy_api.json, which
holds its names and parameters. Write that file anew, with CuPy installed, by `python
tests/kernels/test_gpu_surface.py`.

A signature is written as its names alone, `a axis dtype * blocking`: what stands before `/` cannot be given by name,
what follows `*` only so; `*args` and `**kwargs` take everything.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strict_cupy
import strict_nccl

ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).parents[1] / "oracles/reference" / "cupy_api.json"
# these never see a device array
HOST_ONLY = "backend/cpu/numpy_kernels.py backend/cpu/threads.py backend/cpu/numba_kernels.py backend/memory.py"
NAMESPACES = (
    "",
    "cuda",
    "cuda.nccl",
    "cuda.runtime",
    "lib.stride_tricks",
    "linalg",
)  # of cupy, in the snapshot
CLASSES = ("ndarray", "cuda.Device", "cuda.Stream", "cuda.nccl.NcclCommunicator")
VALUE = "value"  # instead of a signature: not callable, or a class


# ---- what is there ----


def real_cupy() -> Any:
    """The real CuPy, or None."""
    if importlib.util.find_spec("cupy") is None:
        return None
    import cupy

    assert cupy is not strict_cupy.cupy
    with warnings.catch_warnings(action="ignore"):  # that NCCL is not installed
        importlib.import_module("cupy.cuda.nccl")
    return cupy


def signature_of(function: Any) -> str:
    """A signature as its names alone, from inspect or from the first line of a docstring (Cython's functions)."""
    if type(function).__name__ == "ufunc":
        if isinstance(function, strict_cupy.ufunc):
            return " ".join([*("x", "y")[: function.nin], "/", "out", "*", "casting", "dtype"])
    else:
        try:
            return _names(inspect.signature(function))
        except (ValueError, TypeError):
            pass
    line = (function.__doc__ or "").strip().split("\n")[0].replace("\\", "")
    match = re.match(r"[\w.]+\((.*?)\)( ->.*)?$", line)
    if not match:
        return "*args **kwargs"  # nothing is known
    names = []
    for part in re.split(r",(?![^(\[]*[)\]])", match[1]):  # "Py_ssize_t axis1, out=None" -> axis1, out
        name = part.split("=")[0].split()
        names += [name[-1].strip("[]")] if name else []
    return " ".join(name for name in names if name != "self")


def _names(signature: inspect.Signature) -> str:
    kinds = inspect.Parameter
    names: list[str] = []
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    for i, p in enumerate(parameters):
        if p.kind is kinds.KEYWORD_ONLY and not any(n.startswith("*") for n in names):
            names.append("*")
        stars = {kinds.VAR_POSITIONAL: "*", kinds.VAR_KEYWORD: "**"}.get(p.kind, "")
        names.append(stars + p.name)
        last = i + 1 == len(parameters) or parameters[i + 1].kind is not kinds.POSITIONAL_ONLY
        if p.kind is kinds.POSITIONAL_ONLY and last:
            names.append("/")
    return " ".join(names)


def call_faults(text: str, count: int, names: tuple[str, ...]) -> list[str]:
    """Why a call with so many positional arguments and these keywords cannot work."""
    try:
        parse(text).bind_partial(*range(count), **dict.fromkeys(names))
    except TypeError as error:
        return [str(error)]
    return []


def parse(text: str) -> inspect.Signature:
    """The signature of a text. What is a value takes anything."""
    words = ["*args", "**kwargs"] if text == VALUE else text.split()
    return inspect.signature(eval(f"lambda {', '.join(words)}: None"))


def api_of(module: Any, namespaces: tuple[str, ...] = NAMESPACES) -> dict[str, str]:
    """{"sum": "a axis dtype out keepdims", "cuda.Device.use": "", "float32": "value", ...}"""
    found: dict[str, str] = {}
    for path in namespaces + CLASSES:
        where = module
        for part in path.split(".") if path else ():
            where = getattr(where, part, None)
        for name in dir(where) if where is not None else ():
            value = getattr(where, name, None)
            if name.startswith("_") or inspect.ismodule(value):
                continue
            call = callable(value) and not isinstance(value, type)
            found[f"{path}.{name}" if path else name] = signature_of(value) if call else VALUE
    return found


def real_api() -> tuple[str, dict[str, str]]:
    """(version, names) of the real CuPy where it is installed, else of the snapshot."""
    cupy = real_cupy()
    if cupy is not None:
        return cupy.__version__, api_of(cupy)
    content = json.loads(SNAPSHOT.read_text())
    return content["cupy"], content["api"]


def write_snapshot() -> None:
    """The names and parameters of the installed CuPy to reference/cupy_api.json."""
    cupy = real_cupy()
    if cupy is None:
        raise SystemExit("CuPy is not installed here: pip install cupy-cuda12x (a GPU is not needed)")
    SNAPSHOT.write_text(json.dumps({"cupy": cupy.__version__, "api": api_of(cupy)}, indent=0, sort_keys=True) + "\n")
    print(f"{SNAPSHOT}: cupy {cupy.__version__}, {len(api_of(cupy))} names")


DOUBLE = api_of(strict_nccl.install({}))
VERSION, REAL = real_api()


# ---- what the code uses ----


USE = re.compile(r"(?:.*\.)?(?:xp|cupy)\.([a-zA-Z][\w.]*)")  # "cuda.Device" of `self.k.xp.cuda.Device`


def uses_in(source: str) -> Iterator[tuple[int, str, ast.Call | None]]:
    """(line, name below the array library, its call or None) of each use in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Call):
            call = node if isinstance(node, ast.Call) else None
            found = USE.fullmatch(ast.unparse(call.func if call else node))
            if found:
                yield node.lineno, found[1], call


def modules() -> dict[str, str]:
    """{"minigrad/tensor.py": source}, of all that may see a device array."""
    found = {}
    for package in ("minigrad", "autoencoders"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.relative_to(ROOT / package).as_posix() not in HOST_ONLY.split():
                found[path.relative_to(ROOT).as_posix()] = path.read_text()
    return found


def faults_in(source: str, api: dict[str, str]) -> list[str]:
    """The uses that cannot work with these names and signatures."""
    faults = []
    for line, name, call in uses_in(source):
        if name in api and call:
            names = tuple(k.arg for k in call.keywords if k.arg)
            faults += [f"{line}: {name}: {fault}" for fault in call_faults(api[name], len(call.args), names)]
        elif not any(known == name or known.startswith(f"{name}.") for known in api):  # no module either
            faults.append(f"{line}: {name} does not exist")
    return faults


# ---- tests ----


def test_uses_are_seen() -> None:
    uses = {name for source in modules().values() for _, name, _ in uses_in(source)}
    assert {"zeros", "where", "exp", "cuda.is_available", "cuda.Device", "cuda.runtime.getDeviceCount"} <= uses


@pytest.mark.parametrize(("name", "api"), [("double", DOUBLE), (f"cupy {VERSION}", REAL)], ids=["double", "real"])
def test_what_the_code_uses_exists(name: str, api: dict[str, str]) -> None:
    faults = [f"{place}:{fault} ({name})" for place, source in modules().items() for fault in faults_in(source, api)]
    assert not faults, "\n".join(faults)


def test_the_double_promises_nothing_that_cupy_does_not_have() -> None:
    faults = []
    for name, text in DOUBLE.items():
        if name not in REAL:
            faults.append(f"{name}: CuPy {VERSION} does not have it")
            continue
        if VALUE in (text, REAL[name]):
            if text != REAL[name]:
                faults.append(f"{name}: {text!r} here and {REAL[name]!r} in CuPy")
            continue
        parameters = parse(text).parameters.values()
        positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        by_name = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        faults += [f"{name}: {fault} in CuPy" for fault in call_faults(REAL[name], 0, tuple(by_name))]
        faults += [f"{name}: {fault} in CuPy" for fault in call_faults(REAL[name], len(positional), ())]
        there = parse(REAL[name]).parameters.values()
        pairs = zip(positional, (p for p in there if p.kind is not p.KEYWORD_ONLY), strict=False)
        for here, p in pairs:
            if here in by_name and p.kind is p.POSITIONAL_OR_KEYWORD and p.name != here:
                faults.append(f"{name}: parameter {p.name} of CuPy is {here} here")
    assert not faults, "\n".join(faults)


def test_snapshot_is_of_a_supported_version() -> None:
    content = json.loads(SNAPSHOT.read_text())
    assert int(content["cupy"].split(".")[0]) >= 14
    assert len(content["api"]) > 500


# the checks themselves can fail


@pytest.mark.parametrize(
    "line",
    [
        "xp.no_such_function(x)",
        "self.k.xp.random.rand(3)",
        "xp.sum(x, where=mask)",
        "k.xp.exp(x, where=mask)",
        "xp.clip(x, min=0, max=1)",
        "xp.linalg.no_such_norm(x)",
        "xp.max(x, 0, None, True, 1)",
    ],
)
def test_a_wrong_use_is_found(line: str) -> None:
    assert faults_in(line, REAL)
    assert faults_in(line, DOUBLE)


# the real CuPy without a GPU, where it is installed


@pytest.fixture
def real_array() -> Any:
    """A real cupy.ndarray over a made-up address; nothing may be launched on it."""
    cupy = real_cupy()
    if cupy is None:
        pytest.skip("CuPy is not installed")
    memory = cupy.cuda.UnownedMemory(0x7F0000000000, 1 << 20, None, device_id=0)
    return cupy.ndarray((4, 6), "float32", cupy.cuda.MemoryPointer(memory, 0))


def test_snapshot_is_that_of_the_installed_cupy() -> None:
    cupy = real_cupy()
    content = json.loads(SNAPSHOT.read_text())
    if cupy is None or cupy.__version__ != content["cupy"]:
        pytest.skip("another CuPy, or none, is installed")
    missing = () if cupy.cuda.nccl.available else ("cuda.nccl.",)
    assert api_of(cupy) == {name: text for name, text in content["api"].items() if not name.startswith(missing)}


REFUSALS = {
    "np.asarray(x)": TypeError,
    "x @ np.ones((6, 2))": TypeError,
    "np.ones((2, 4)) @ x": TypeError,
    "xp.matmul(x, [1.0])": TypeError,
    "xp.broadcast_to(np.ones(1), (3,))": TypeError,
    "xp.exp(x, bogus=1)": TypeError,
    "xp.exp(x, x, x)": TypeError,
    "xp.where([True], x, x)": (AttributeError, TypeError),
    "x.sum(where=x)": TypeError,
    "x.__setitem__(Ellipsis, np.ones((4, 6), 'float32'))": (ValueError, TypeError),
    "x[7]": IndexError,
    "x.squeeze(axis=0)": ValueError,
    "hash(x)": TypeError,
    "bool(x)": ValueError,
    "next(iter(x[0, 0]))": TypeError,
}
VIEWS = """
x[0]; x[0, 0]; x[:, ::2]; x[::-1]; x[None, ..., 0]; x[1:1]; x.T; x.transpose([1, 0]); x.swapaxes(0, 1); x.reshape(3, 8);
x.reshape((2, -1)); x.T.reshape(6, 4); x[:, 2:3].reshape(4); x.ravel(); xp.broadcast_to(x[0], (5, 6));
next(iter(x)); x.view('int32')
"""


@pytest.mark.parametrize("expression", REFUSALS)
@pytest.mark.parametrize("library", ["double", "real"])
def test_refusals_of_the_double_are_those_of_cupy(expression: str, library: str, request: Any) -> None:
    if library == "real":
        x, xp = request.getfixturevalue("real_array"), real_cupy()
    else:
        x, xp = strict_cupy.cupy.zeros((4, 6), "float32"), strict_cupy.cupy
    with pytest.raises(REFUSALS[expression]):
        eval(expression, {"x": x, "xp": xp, "np": np})


@pytest.mark.parametrize("expression", [view.strip() for view in VIEWS.split(";")])
def test_views_of_the_double_are_those_of_cupy(expression: str, real_array: Any) -> None:
    double = strict_cupy.cupy.zeros((4, 6), "float32")
    strict_cupy.reset()
    mine = eval(expression, {"x": double, "xp": strict_cupy.cupy})
    theirs = eval(expression, {"x": real_array, "xp": real_cupy()})
    assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
    if mine.size:
        assert mine.data.ptr - double.data.ptr == theirs.data.ptr - real_array.data.ptr
    meaningful = [i for i, size in enumerate(mine.shape) if size > 1 and mine.size]
    assert [mine.strides[i] for i in meaningful] == [theirs.strides[i] for i in meaningful]
    assert mine.flags.c_contiguous == theirs.flags.c_contiguous  # which decide whether the CUDA source gets a copy
    assert mine.flags.f_contiguous == theirs.flags.f_contiguous
    assert not strict_cupy.counters.launches


def test_an_array_defers_to_tensors(real_array: Any) -> None:
    class Other:
        __array_ufunc__ = None

    for x in (real_array, strict_cupy.cupy.zeros((4, 6), "float32")):
        for operator in ("__add__", "__mul__", "__matmul__", "__lt__"):
            assert getattr(x, operator)(Other()) is NotImplemented


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    write_snapshot()
