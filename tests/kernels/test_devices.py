"""Devices: what is refused and how the message helps; moving; the CUDA code path, run on the strict CuPy double.

A training that uses the layers, losses and optimisers runs on the double and must give what NumPy gives, bit for bit,
without a float64 number that nobody asked for and without a transfer or a wait that the host does not need.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import strict_cupy

import minigrad
from minigrad import Backend, DeviceError, Tensor, nn, ops, optim
from minigrad.backend import to_device
from minigrad.backend.cpu.threads import usable_cores
from minigrad.random import generator

# The only places where float32 inputs may give float64 numbers, each a sum over many values that goes back to float32.
ACCUMULATORS = {"reference.channel_sum", "reference.moments", "optim.clip_grad_norm", "optim.<genexpr>"}


CPU_KERNELS = ("numba",) * bool(importlib.util.find_spec("numba")) + ("numpy", "plain")


# ---- what `use` refuses ----


WITHOUT_CUDA: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "needs CuPy": lambda patch: patch.setitem(sys.modules, "cupy", None),
    "no usable GPU": lambda patch: strict_cupy.reset(devices=0),
}


@pytest.mark.parametrize("what", WITHOUT_CUDA)
def test_cuda_that_cannot_be_used_names_the_fix(what: str, cupy_double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    WITHOUT_CUDA[what](monkeypatch)
    before = minigrad.backend.default_backend()
    for call in (lambda: minigrad.use(device="cuda"), lambda: to_device(np.ones(3), "cuda")):
        with pytest.raises(DeviceError, match=rf"(?s){what}.*cuda13.*cuda12"):
            call()
    assert minigrad.backend.default_backend() is before
    assert minigrad.available() == {"cpu": CPU_KERNELS}


def test_available_lists_cuda_with_a_device(cupy_double: Any) -> None:
    assert minigrad.available()["cuda"][-1] == "plain"


@pytest.mark.parametrize("device", ["gpu", "", "cuda0", "cuda:x", "cuda:-1", "cpu:0", "CUDA", "tpu:1"])
def test_unknown_devices_are_refused(device: str, cupy_double: Any) -> None:
    for call in (lambda: minigrad.use(device=device), lambda: to_device(np.ones(3, "float32"), device)):
        with pytest.raises(DeviceError, match=r"choose cpu, cuda or cuda:<index>"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu", "kernels": "cuda"}, r"kernels 'cuda' on cpu: choose auto.*; cuda needs a GPU \("),
        ({"device": "cpu", "kernels": ""}, "kernels ''.*auto"),
        ({"device": "cuda", "kernels": "numpy"}, "kernels 'numpy'.*auto"),
        ({"threads": 0}, "threads is 0"),
        ({"precision": "tf32"}, r"\w+ with kernels \w+ has fp32 only; tf32 needs a GPU \(--device cuda\)"),
        ({"kernels": "plain", "precision": "tf32x3"}, "kernels plain has fp32 only; tf32x3 needs a GPU"),
        ({"precision": "bf16"}, r"\w+ with kernels \w+ has fp32 only; bf16 needs a GPU \(--device cuda\)"),
        ({"precision": "fp16"}, "precision 'fp16': cpu with kernels auto has fp32 only$"),
        ({"device": "cuda", "kernels": "plain", "precision": "tf32"}, "cuda with kernels plain has fp32 only$"),
        ({"device": "cuda", "precision": "fp16"}, "'fp16': cuda with kernels auto has fp32, tf32, tf32x3, bf16 only$"),
    ],
)
def test_unknown_choices_are_refused(options: dict[str, Any], message: str, cupy_double: Any) -> None:
    with pytest.raises(DeviceError, match=message):
        minigrad.use(**options)


def test_an_index_out_of_range_is_refused(cupy_double: Any) -> None:
    strict_cupy.reset(devices=2)
    minigrad.use(device="cuda:1")
    for call in (lambda: minigrad.use(device="cuda:2"), lambda: to_device(np.ones(3), "cuda:7")):
        with pytest.raises(DeviceError, match="this machine has 2"):
            call()
    assert cupy_double.cuda.Device().id == 1, "a refused request leaves the current device alone"


def test_use_chooses_where_new_parameters_are_made(backend: Backend) -> None:
    layer = nn.Dense(2, 3)
    kind = "cpu" if backend.on_host else "cuda:0"
    assert layer.weight.device == kind
    assert Tensor([1.0, 2.0]).device == kind
    assert type(layer.weight.data) is backend.xp.ndarray
    for said in (f"device {kind}", f"kernels {backend.kernels}", f"threads {backend.threads}"):
        assert said in backend.describe()


def test_a_gpu_that_must_be_there_is_not_skipped(cupy_double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernel_sets import require_gpu

    require_gpu()  # found: nothing happens
    for hide in (lambda: strict_cupy.reset(devices=0), lambda: monkeypatch.setitem(sys.modules, "cupy", None)):
        hide()
        monkeypatch.delenv("MINIGRAD_REQUIRE_GPU", raising=False)
        with pytest.raises(pytest.skip.Exception):
            require_gpu()
        monkeypatch.setenv("MINIGRAD_REQUIRE_GPU", "1")
        with pytest.raises(pytest.fail.Exception, match="MINIGRAD_REQUIRE_GPU"):
            require_gpu()


# ---- arrays of different devices ----


MIXED = """
a + b; b * a; a @ b.reshape(3, 2); ops.mse(a, b); ops.dense(a, b.reshape(3, 2)); ops.gaussian_nll(a, a, b); a * b.data;
b.data * a; ops.softmax_cross_entropy(a, b.data[:, 0].astype('int64'));
ops.batch_norm_inference(a, a.data[0], a.data[1], b.data[0], b.data[1])
"""


@pytest.mark.parametrize("operation", [text.strip() for text in MIXED.split(";")])
def test_mixed_devices_name_each_input(operation: str, cupy_double: Any) -> None:
    on_cpu = Tensor(np.ones((2, 3), np.float32))
    minigrad.use(device="cuda")
    on_cuda = Tensor(cupy_double.ones((2, 3), dtype="float32"))
    for a, b in ((on_cpu, on_cuda), (on_cuda, on_cpu)):
        with pytest.raises(TypeError, match=r"input 0 \(.* on c.*input 1 \(.* on c") as error:
            eval(operation, {"ops": ops, "a": a, "b": b})
        assert {" on cpu", " on cuda:0"} == set(re.findall(r" on c\w+(?::0)?", str(error.value)))


def test_two_cuda_devices_are_different_devices(cupy_double: Any) -> None:
    strict_cupy.reset(devices=2)
    a = Tensor(to_device(np.ones((2, 3), np.float32), "cuda:0"))
    b = Tensor(to_device(np.ones((2, 3), np.float32), "cuda:1"))
    assert (a.device, b.device) == ("cuda:0", "cuda:1")
    with pytest.raises(TypeError, match=r"Add: .*input 0 \(2, 3\) on cuda:0, input 1 \(2, 3\) on cuda:1"):
        a + b


def test_gradients_and_optimisers_refuse_other_devices(cupy_double: Any) -> None:
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    minigrad.use(device="cuda")
    with pytest.raises(TypeError, match="different devices"):
        (x * 2).backward(cupy_double.ones(3, dtype="float32"))
    there = nn.Dense(2, 2)
    minigrad.use(device="cpu")
    here = nn.Dense(2, 2)
    with pytest.raises(TypeError, match=r"optimizer: .*different devices"):
        optim.SGD(here.parameters() + there.parameters(), 0.1)


def test_an_array_of_no_known_library_is_refused() -> None:
    class Strange:
        shape, dtype = (), "float32"

    with pytest.raises(TypeError, match="Strange"):
        minigrad.backend_of(Strange())


# ---- moving ----


def test_a_model_moves_to_cuda_and_back(cupy_double: Any) -> None:
    minigrad.use(device="cuda", kernels="plain")
    minigrad.use(device="cpu", kernels="plain")
    model = make_model()
    model.initialize(3)
    images = inputs()[0]
    before, expected = model.state_dict(), forward(model, images)
    assert model.to("cpu") is None
    model.to("cuda")
    for name, x in model.named_tensors():
        assert x.device == "cuda:0", name
        assert type(x.data) is cupy_double.ndarray
    assert all(type(p.grad) is cupy_double.ndarray for p in model.parameters())
    np.testing.assert_array_equal(forward(model, images), expected)
    state = model.state_dict()
    assert all(type(x) is np.ndarray and (x == before[name]).all() for name, x in state.items())
    model.load_state_dict(before)  # NumPy arrays into a model on the device
    model.to("cpu")
    assert {x.device for _, x in model.named_tensors()} == {"cpu"}
    assert all(type(p.grad) is np.ndarray for p in model.parameters())
    np.testing.assert_array_equal(forward(model, images), expected)


def test_to_device_keeps_what_is_there_already(cupy_double: Any) -> None:
    host = np.ones(3, np.float32)
    there = to_device(host, "cuda")
    assert to_device(there, "cuda") is to_device(there, "cuda:0") is there
    there += 1
    assert (host == 1).all(), "a copy"


def test_to_device_chooses_no_kernels_for_the_host(cupy_double: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of Numba may have to be compiled first, for a run on a GPU that only loads its weights."""
    monkeypatch.setattr(minigrad.backend, "_backends", {})
    monkeypatch.setattr(minigrad.backend, "_cpu_backend", None)  # cannot be called
    host = np.ones(3, np.float32)
    there = to_device(host, "cuda")
    assert to_device(host, "cpu") is host
    assert (to_device(there, "cpu") == 1).all()


# ---- the CUDA code path on the double ----

N, STEPS = 5, 4


def make_model() -> nn.Sequential:
    """A small autoencoder with every kind of layer."""
    return nn.Sequential(
        {
            "conv": nn.Conv2D(1, 3, 3, stride=2),
            "bn": nn.BatchNorm(3, momentum=0.9),
            "relu": nn.ReLU(),
            "flatten": nn.Flatten(),
            "dense": nn.Dense(48, 4),
            "leaky": nn.LeakyReLU(0.1),
            "decoder": nn.Dense(4, 32),
            "tanh": nn.Tanh(),
            "reshape": nn.Reshape(4, 4, 2),
            "transpose": nn.Conv2DTranspose(2, 1, 3, stride=2),
            "softplus": nn.Softplus(),
        }
    )


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) on the host."""
    rng = generator(1, "test_devices")
    return rng.uniform(size=(STEPS, N, 8, 8, 1)).astype("float32"), rng.integers(0, 64, (STEPS, N))


def forward(model: nn.Sequential, images: np.ndarray) -> np.ndarray:
    """The model's output for the first batch in evaluation mode, on the host."""
    k = minigrad.backend_of(model.parameters()[0].data)
    model.eval()
    with minigrad.no_grad():
        return model(Tensor(k.from_host(images[0]))).numpy()


def loss_of(model: nn.Sequential, x: Tensor, labels: Any) -> Tensor:
    """Every loss, and operations that the layers do not use."""
    y = model(x)
    rows = y.reshape(N, 64)
    loss = ops.bce_with_logits(y, x) + 0.3 * ops.kl_to_standard_normal(rows, 0.1 * rows)
    loss = loss + ops.mse(ops.sigmoid(y), x) / 2 + ops.gaussian_nll(y, x, 0.1)
    loss = loss + ops.softmax_cross_entropy(rows, labels) - ops.logsumexp(rows, axis=1).mean()
    loss = loss + (rows @ rows.transpose()).mean() + ops.exp(0.5 * rows).sum()
    return loss + ops.clip(abs(rows), 0.1, 1.0).sum() * 1e-2 + (ops.sqrt(x + 1.0) ** 2 - ops.log(x + 1.0)).mean()


OPTIMISERS: dict[str, Callable[[list[nn.Parameter]], optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, 0.01),
    "momentum": lambda p: optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, optim.cosine_schedule(0.01, STEPS, warmup=1)),
    "AdamW": lambda p: optim.AdamW(p, 0.01),
}


class Training:
    """A whole training on one backend, with everything it needs already on the device after construction."""

    def __init__(self, k: Backend, optimiser: str) -> None:
        self.k = k
        self.model = make_model()
        self.model.initialize(7)
        self.optimizer = OPTIMISERS[optimiser](self.model.parameters())
        self.images, self.labels = (k.from_host(a) for a in inputs())
        self.losses: list[Any] = []

    def run(self) -> None:
        self.model.train()
        for i in range(STEPS):
            self.optimizer.zero_grad()
            loss = loss_of(self.model, Tensor(self.images[i]), self.labels[i])
            loss.backward()
            norm = optim.clip_grad_norm(self.optimizer, 5.0)
            self.optimizer.step()
            self.losses += [loss.data, norm]

    def results(self) -> dict[str, np.ndarray]:
        """All that a training leaves, on the host."""
        found = {f"loss {i}": np.array(self.k.to_host(x)) for i, x in enumerate(self.losses)}
        state = {name: np.asarray(x) for name, x in self.optimizer.state_dict().items()}
        return found | self.model.state_dict() | state


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_training_on_the_double_gives_what_numpy_gives(optimiser: str, cupy_double: Any) -> None:
    plain = Training(minigrad.use(device="cpu", kernels="plain"), optimiser)
    plain.run()
    training = Training(minigrad.use(device="cuda", kernels="plain"), optimiser)
    counters = strict_cupy.reset()
    training.run()

    assert counters.to_device == STEPS  # one row of scalars in the optimiser
    assert (counters.to_host, counters.synchronisations) == (0, 0)
    assert {place for place, _ in counters.float64} == ACCUMULATORS, counters.float64
    assert counters.launches.total() > 100 * STEPS

    expected, found = plain.results(), training.results()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    fresh = Training(minigrad.use(device="cpu", kernels="plain"), optimiser).results()
    unchanged = [name for name, value in fresh.items() if name.endswith("weight") and (expected[name] == value).all()]
    assert not unchanged, "the training trains"


def test_inference_needs_nothing_of_the_host(cupy_double: Any) -> None:
    """In evaluation mode as well: no transfers, no waits, no float64."""
    k = minigrad.use(device="cuda", kernels="plain")
    model = make_model()
    model.eval()
    x = Tensor(k.from_host(inputs()[0][0]))
    counters = strict_cupy.reset()
    with minigrad.no_grad():
        model(x)
    assert (counters.to_device, counters.to_host, counters.synchronisations) == (0, 0, 0)
    assert not counters.float64
    assert counters.launches


# ---- precision ----


def test_the_precision_is_that_asked_for_and_named(cupy_double: Any) -> None:
    fp32, tf32 = minigrad.use("cuda"), minigrad.use("cuda", precision="tf32")
    assert (fp32.precision, tf32.precision, "tf32" in fp32.describe()) == ("fp32", "tf32", False)
    assert tf32.describe() == f"{fp32.describe()}, precision tf32"


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_tensor_cores_need_a_gpu_that_has_them(precision: str, cupy_double: Any, monkeypatch: Any) -> None:
    before = minigrad.backend.default_backend()
    monkeypatch.setattr(strict_cupy.Device, "compute_capability", "75")
    with pytest.raises(DeviceError, match=rf"precision {precision} needs a GPU of compute capability 8\.0"):
        minigrad.use("cuda", precision=precision)
    assert minigrad.backend.default_backend() is before


# ---- CPU kernels and threads ----


def test_auto_takes_the_best_that_is_installed_and_says_why(restored_backends: None, monkeypatch: Any) -> None:
    k = minigrad.use()
    assert k.kernels == CPU_KERNELS[0]
    assert f"kernels {k.kernels} (the fastest" in k.describe()
    monkeypatch.setitem(sys.modules, "numba", None)
    for name in ("numba_kernels", "compiling", "layer_loops", "micro_kernels", "row_loops"):  # as if not imported yet
        monkeypatch.delitem(sys.modules, f"minigrad.backend.cpu.{name}", raising=False)
        monkeypatch.delattr(minigrad.backend.cpu, name, raising=False)
    assert minigrad.use().kernels == "numpy"
    assert "without Numba, the extra fast" in minigrad.use().describe()
    with pytest.raises(DeviceError, match=r"kernels numba need Numba: pip install .*\[fast\]"):
        minigrad.use(kernels="numba")
    assert minigrad.available()["cpu"] == ("numpy", "plain")


def test_the_number_of_threads_can_be_set_and_stays(restored_backends: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minigrad.backend, "_threads", None)
    cores = usable_cores()
    minigrad.use(kernels="numpy")
    assert minigrad.get_num_threads() == cores
    minigrad.set_num_threads(3)
    assert minigrad.get_num_threads() == minigrad.use(kernels="numpy").threads == 3
    assert minigrad.use(kernels="numpy", threads=2).threads == 2
    minigrad.set_num_threads(None)
    assert minigrad.get_num_threads() == cores
    for bad in (0, -2):
        with pytest.raises(DeviceError, match=f"threads is {bad}"):
            minigrad.set_num_threads(bad)
    minigrad.use(kernels="plain")
    minigrad.set_num_threads(2)  # they have no threads of their own
    assert minigrad.get_num_threads() == 1


def test_the_kernels_are_chosen_at_their_first_use_and_work_after_a_fork() -> None:
    """Importing chooses nothing; a child process gets threads of its own."""
    code = """if True:
        import os, sys, numpy as np, minigrad
        from minigrad import ops
        assert 'numba' not in sys.modules
        x, w = np.ones((8, 8, 8, 8), 'float32'), np.ones((3, 3, 8, 8), 'float32')
        minigrad.set_num_threads(3)
        y = ops.conv2d(x, w).numpy()
        child = os.fork()
        assert (ops.conv2d(x, w).numpy() == y).all()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)
    """
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
