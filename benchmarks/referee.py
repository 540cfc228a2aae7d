"""cuDNN's convolutions beside ours on a CUDA GPU, as a referee: `python benchmarks/referee.py`.

The eight convolutions of the default VAE and their gradients, in fp32, TF32 and bf16, each as a CUDA graph of 20 calls
that CuPy records. In bf16 images and their gradients are stored as such, cuDNN's weights too. cuDNN comes through
`nvidia-cudnn-frontend` and takes CuPy's arrays, stream and workspace; plans that are not deterministic are refused, and
in fp32 those that use the tensor cores. Ours alone: without the normalisation, bias, ReLU and sums that a layer of ours
has in the same kernel.

    pip install nvidia-cudnn-frontend==1.23.0 nvidia-cudnn-cu13
    python benchmarks/referee.py [--batches 1024,128] [--seconds 50] [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import driver
import numpy as np
from gpu import CALLS, LAYERS, Clock, recorded, stored

import minigrad
from minigrad import DeviceError
from minigrad.backend.geometry import ConvGeometry

OPERATIONS = "forward", "input gradient", "weight gradient"
PRECISIONS = "tf32", "bf16", "fp32"


class Convolution:
    """One of cuDNN's. operation: of OPERATIONS. Arrays are NHWC, weights (F, KH, KW, C)."""

    def __init__(
        self, handle: Any, operation: str, geometry: ConvGeometry, batch: int, C: int, F: int, precision: str
    ) -> None:
        import cudnn

        self.handle = handle
        kind, single = cudnn.data_type.BFLOAT16 if precision == "bf16" else cudnn.data_type.FLOAT, cudnn.data_type.FLOAT
        graph = cudnn.pygraph(handle=handle, io_data_type=kind, intermediate_data_type=single, compute_data_type=single)
        (top, bottom), (left, right) = geometry.pads
        options = {"pre_padding": [top, left], "post_padding": [bottom, right]}
        options |= {"stride": list(geometry.stride), "dilation": [1, 1]}
        shapes = {
            "x": (batch, C, *geometry.input_size),
            "y": (batch, F, *geometry.output_size),
            "weight": (F, C, *geometry.kernel_size),
        }

        def tensor(name: str) -> Any:
            return graph.tensor(dim=list(shapes[name]), stride=channels_last(shapes[name]), data_type=kind)

        self.names = {
            "forward": ("x", "weight", "y"),
            "input gradient": ("y", "weight", "x"),
            "weight gradient": ("x", "y", "weight"),
        }[operation]
        first, second = tensor(self.names[0]), tensor(self.names[1])
        if operation == "forward":
            result = graph.conv_fprop(image=first, weight=second, **options)
        elif operation == "input gradient":
            result = graph.conv_dgrad(loss=first, filter=second, **options)
        else:
            result = graph.conv_wgrad(image=first, loss=second, **options)
        shape = shapes[self.names[2]]
        result.set_output(True).set_dim(list(shape)).set_stride(channels_last(shape))
        result.set_data_type(single if operation == "weight gradient" else kind)
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        note = cudnn.numerical_note
        refused = [note.NONDETERMINISTIC]
        refused += [note.TENSOR_CORE, note.WINOGRAD, note.FFT] if precision == "fp32" else []
        refused += [note.DOWN_CONVERT_INPUTS] if precision != "tf32" else []
        graph.deselect_numeric_notes(refused)
        graph.check_support()
        graph.build_plans()
        self.graph, self.tensors = graph, (first, second, result)
        self.sizes = [int(np.prod(shapes[name])) for name in self.names]

    def __call__(self, arrays: list[Any], workspace: Any, stream: int) -> None:
        import cudnn

        cudnn.set_stream(handle=self.handle, stream=stream)
        places = {tensor: array.data.ptr for tensor, array in zip(self.tensors, arrays, strict=True)}
        self.graph.execute(places, workspace.data.ptr, handle=self.handle)


def channels_last(shape: tuple[int, ...]) -> list[int]:
    """The strides of (N, C, H, W) whose numbers lie as (N, H, W, C)."""
    _, C, H, W = shape
    return [C * H * W, 1, W * C, C]


def seconds_of_cudnn(cupy: Any, call: Convolution, precision: str) -> dict[str, Any]:
    """Of one call, as CuPy replays it."""
    numbers = [cupy.random.standard_normal(size, dtype="float32") for size in call.sizes]
    numbers = [stored(x, precision) for x in numbers[:2]] + numbers[2:]
    workspace = cupy.empty(max(call.graph.get_workspace_size(), 1), dtype="uint8")
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        call(numbers, workspace, stream.ptr)
        stream.synchronize()
        stream.begin_capture()
        try:
            for _ in range(CALLS):
                call(numbers, workspace, stream.ptr)
        finally:
            graph = stream.end_capture()
        seconds = Clock(cupy).median(lambda _: graph.launch(stream), warm=1, count=1) / CALLS
    return {"seconds": seconds, "workspace_bytes": workspace.nbytes}


def seconds_of_ours(cupy: Any, geometry: ConvGeometry, batch: int, C: int, F: int, precision: str) -> dict[str, float]:
    """Of one call of each operation."""
    k = minigrad.use("cuda", precision=precision)

    def array(*shape: int) -> Any:
        return cupy.random.standard_normal(shape, dtype="float32")

    x, y = (
        stored(array(batch, *size, channels), precision)
        for size, channels in ((geometry.input_size, C), (geometry.output_size, F))
    )
    weight = array(*geometry.kernel_size, C, F)
    calls: dict[str, Callable[[int], Any]] = {
        "forward": lambda _: k.conv2d(x, weight, None, geometry),
        "input gradient": lambda _: k.conv2d_grad_input(y, weight, geometry),
        "weight gradient": lambda _: k.conv2d_grad_weight(x, y, geometry),
    }
    return {name: Clock(cupy).median(recorded(k, call), count=2) / CALLS for name, call in calls.items()}


def main(argv: list[str] | None = None) -> int:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1024,128", help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=50, help="after which nothing is begun (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="(default: benchmarks/results/referee.json)")
    args = parser.parse_args(argv)
    try:
        import cudnn

        cupy = minigrad.use("cuda", precision="tf32").xp
    except (DeviceError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    handle, started = cudnn.create_handle(), time.perf_counter()
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    for batch in map(int, args.batches.split(",")):
        for precision in PRECISIONS:
            for name, geometry, C, F, _ in LAYERS:
                if time.perf_counter() - started > args.seconds:
                    faults.append(f"{name}, {precision}, batch {batch}: not measured, {args.seconds:.0f} s had passed")
                    continue
                ours = seconds_of_ours(cupy, geometry, batch, C, F, precision)
                for operation in OPERATIONS:
                    flops = 2 * batch * int(np.prod(geometry.output_size)) * 9 * C * F
                    row = {
                        "batch": batch,
                        "precision": precision,
                        "layer": name,
                        "operation": operation,
                        "flops": flops,
                    }
                    try:
                        call = Convolution(handle, operation, geometry, batch, C, F, precision)
                        found = seconds_of_cudnn(cupy, call, precision)
                    except Exception as error:
                        faults.append(f"{name}, {operation}, {precision}, batch {batch}: {error}".splitlines()[0][:200])
                        found = {"seconds": None, "workspace_bytes": None}
                    rows.append({**row, **found, "ours_seconds": ours.get(operation)})
    release = str(cudnn.backend_version())
    record = driver.record_of(
        "referee.py",
        sys.argv[1:] if argv is None else argv,
        versions={"gpu": {"CuPy": cupy.__version__, "CuDNN": release, "Frontend of cuDNN": cudnn.__version__}},
        settings={"calls in a graph": CALLS},
        device=cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(),
        rows=rows,
        faults=faults,
    )
    driver.write_record(args.out or driver.RESULTS / "referee.json", record)
    print(f"{len(rows)} rows, {len(faults)} faults")
    return 0


if __name__ == "__main__":
    sys.exit(main())
