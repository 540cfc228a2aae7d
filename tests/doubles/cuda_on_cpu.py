"""Runs CUDA kernels on the CPU, from the very source that a GPU gets: g++ compiles it behind cuda_on_cpu.h.

`compile_kernels(source, macros)` gives the kernels by name. A call takes what CuPy's RawKernel takes, but strictly:
every argument must have the type that the kernel declares, because a GPU would read a wrong one's bytes without a word.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
KERNEL = re.compile(r'extern "C" KERNEL void\s+(?:__launch_bounds__\([^{;]*?\)\s+)?(\w+)\(([^{;]*?)\)\s*\{')
DTYPES = {"float": np.float32, "double": np.float64, "int": np.int32, "unsigned char": np.uint8, "long long": np.int64}
DTYPES["bf16"] = np.uint16  # CuPy has no name for it

WAITS = {1: "threads of a block reached a barrier", 2: "lanes of a warp reached an exchange"}


def compiler() -> str | None:
    """The C++ compiler, or None."""
    return shutil.which("g++")


@dataclass(frozen=True)
class Parameter:
    """Of a kernel, e.g. `const float *x`. A struct has no dtype."""

    name: str
    kind: str
    dtype: Any
    pointer: bool
    constant: bool


@dataclass
class Kernel:
    """A compiled kernel. `seed` orders the threads; see cuda_on_cpu.h."""

    name: str
    parameters: list[Parameter]
    function: Any
    sizes: dict[str, int]  # of the source's structs in bytes
    seed: int = 0

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        """Run it. An array is a NumPy array; np.uint64(0) is a null pointer; an array of one record is a struct.

        Raises:
            TypeError: an argument's type is not the parameter's. RuntimeError: a barrier or an exchange missed threads.
        """
        if len(arguments) != len(self.parameters):
            raise TypeError(f"{self.name}: takes {len(self.parameters)} arguments, found {len(arguments)}")
        sizes = [*grid, 1, 1][:3] + [*block, 1, 1][:3]
        if min(sizes) < 1 or np.prod(sizes[3:]) > 1024 or max(sizes[1:3]) > 65535:
            raise TypeError(f"{self.name}: CUDA refuses grid {grid} of blocks {block}")
        kept, addresses = [], (ctypes.c_void_p * len(arguments))()
        for i, (parameter, value) in enumerate(zip(self.parameters, arguments, strict=True)):
            self._check(parameter, value)
            if isinstance(value, np.ndarray) and parameter.pointer:
                value = np.uint64(value.ctypes.data)
            kept.append(np.array(value))  # in memory of its own: the kernel gets the addresses of its arguments
            addresses[i] = kept[-1].ctypes.data
        if fault := self.function((ctypes.c_uint * 6)(*sizes), ctypes.c_uint(self.seed), addresses):
            raise RuntimeError(f"{self.name}: not all {WAITS[fault]}")

    def _check(self, parameter: Parameter, value: Any) -> None:
        wanted = f"{parameter.kind}{' array' if parameter.pointer else ''}"
        if parameter.pointer and isinstance(value, np.ndarray):
            fits = value.dtype == parameter.dtype and value.flags.c_contiguous
        elif parameter.pointer:
            fits = isinstance(value, np.uint64) and value == 0
        elif parameter.dtype is None:
            fits = isinstance(value, np.ndarray) and value.dtype.names and value.nbytes == self.sizes[parameter.kind]
        else:
            fits = isinstance(value, np.generic) and value.dtype == parameter.dtype
        if not fits:
            found = repr(value)
            if isinstance(value, np.ndarray):
                found = f"{value.dtype} {value.shape} of strides {value.strides}"
            raise TypeError(f"{self.name}: {parameter.name} must be {wanted}, found {found}")


@cache
def compile_kernels(source: str, macros: tuple[str, ...] = ()) -> dict[str, Kernel]:
    """The kernels of a CUDA source by name. Without a compiler, the test that comes here is skipped.

    Raises:
        RuntimeError: the source does not compile.
    """
    if compiler() is None:
        pytest.skip("there is no g++, which the CUDA kernels need to run on the CPU")
    folder = _private_folder()
    options = ["-std=c++17", "-O1", "-fPIC", "-w", *macros]
    parts = Path(__file__).read_text(), HEADER.read_text(), source, *options
    key = hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()
    expanded = _run([compiler(), "-E", "-P", "-x", "c++", *macros, "-D__global__=KERNEL", "-"], source)
    kinds = {alias: kind for kind, alias in re.findall(r"typedef (\w+) (\w+);", expanded)}
    kernels = {name: _parameters(text, kinds) for name, text in KERNEL.findall(expanded)}
    structs = {p.kind for parameters in kernels.values() for p in parameters if p.dtype is None}
    library = folder / f"{key}.so"
    if not library.exists():
        calls = "".join(_caller(name, parameters) for name, parameters in kernels.items())
        calls += "".join(f'extern "C" unsigned long size_of_{kind} = sizeof({kind});\n' for kind in structs)
        # without a name, because the loader would give libraries of one process the same shared memory
        text = f'#define KERNEL\n#include "{HEADER}"\nnamespace {{\n{expanded}\n}}\n{calls}'
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".so") as made:
            _run([compiler(), *options, "-shared", "-x", "c++", "-", "-o", made.name], text)
            shutil.copy(made.name, f"{made.name}.done")
        Path(f"{made.name}.done").replace(library)
    loaded = ctypes.CDLL(str(library))
    sizes = {kind: ctypes.c_ulong.in_dll(loaded, f"size_of_{kind}").value for kind in structs}
    return {name: Kernel(name, parameters, loaded[f"call_{name}"], sizes) for name, parameters in kernels.items()}


def _private_folder() -> Path:
    """Where the libraries are kept. What is loaded runs: so nobody else may be able to put it there."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minigrad-cuda-on-cpu"
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    except OSError:
        pass
    folder = Path(tempfile.mkdtemp(prefix="minigrad-cuda-on-cpu-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _run(command: list[Any], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr[:4000]}")
    return done.stdout


def _parameters(text: str, kinds: dict[str, str]) -> list[Parameter]:
    parameters = []
    for declaration in text.split(","):
        declaration = declaration.replace("__restrict__", "")
        match = re.fullmatch(r"\s*(const )?\s*([\w ]+?)\s*(\*?)\s*(\w+)\s*", declaration)
        assert match, f"parameter {declaration!r}"
        constant, kind, star, name = match.groups()
        kind = kinds.get(kind, kind)
        parameters.append(Parameter(name, kind, DTYPES.get(kind), bool(star), bool(constant)))
    return parameters


def _caller(name: str, parameters: list[Parameter]) -> str:
    values = ", ".join(f"*({p.kind} {'*' if p.pointer else ''}*)arguments[{i}]" for i, p in enumerate(parameters))
    return (
        f'extern "C" int call_{name}(const unsigned *sizes, unsigned seed, void **arguments) {{\n'
        f"    return emulation::run(sizes, seed, [=] {{ {name}({values}); }});\n}}\n"
    )
