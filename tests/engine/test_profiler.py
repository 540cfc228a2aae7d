"""The profiler: what it counts, that it changes nothing, and that nothing of it stays."""

from __future__ import annotations

import gc
import math
import operator
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import strict_cupy

import minigrad
from autoencoders import VAE
from minigrad import Function, Tensor, nn, no_grad, ops, optim
from minigrad.tools import profiler
from minigrad.tools.profiler import OUTSIDE, Profile, Row


class Square(Function):
    """A user's operation."""

    def forward(self, x: Any) -> Any:
        self.x = x
        return x * x

    def backward(self, gy: Any) -> Any:
        return (2 * self.x * gy,)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).random(shape, dtype=np.float32)


def leaf(*shape: int, requires_grad: bool = True) -> Tensor:
    return Tensor(floats(*shape), requires_grad=requires_grad)


def find(p: Profile, operation: str, direction: str = "forward", layer: str | None = None) -> Row:
    """The only such row."""
    rows = [r for r in p.rows if (r.operation, r.direction) == (operation, direction) and layer in (None, r.layer)]
    assert len(rows) == 1, p.table()
    return rows[0]


def run(work: Callable[[], Tensor]) -> Profile:
    """A profile of work, forward and, where there is a gradient, backward."""
    with minigrad.profile() as p:
        y = work()
        if y.requires_grad:
            y.backward(np.ones(y.shape, y.dtype))
    return p


def default_vae() -> VAE:
    vae = VAE((28, 28, 1), (32, 64, 64, 64), (3, 3, 3, 3), (1, 2, 2, 1), 2)
    vae.compile(5e-4)
    return vae


@pytest.fixture(scope="module")
def vae_profile() -> Profile:
    vae = default_vae()
    with minigrad.profile() as p:
        vae.train(floats(12, 28, 28, 1), 4, 1, progress=False, clip_norm=1.0)
    return p


# ---- what is counted ----


def test_calls_of_a_known_model() -> None:
    model = nn.Sequential({"a": nn.Dense(3, 4), "act": nn.ReLU(), "b": nn.Dense(4, 2)})
    optimizer = optim.SGD(model.parameters(), 0.1)
    with minigrad.profile() as p:
        for _ in range(3):
            loss = ops.mse(model(floats(5, 3)), floats(5, 2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    calls = {(r.layer, r.operation, r.direction): r.calls for r in p.rows}
    both = [("a", "Dense"), ("act", "ReLU"), ("b", "Dense"), ("", "MSE")]
    expected = {(*name, direction): 3 for name in both for direction in ("forward", "backward")}
    assert calls == {**expected, ("", "SGD", "update"): 3, ("", OUTSIDE, ""): 0}


def test_step_and_update_and_clipping_count_once() -> None:
    class Halved(optim.Adam):
        def update(self, scalars: Any) -> None:
            super().update(scalars * 0.5)

    class Still(optim.AdamW):
        def update(self, scalars: Any) -> None:
            pass

    still, optimizer = Still([nn.Parameter((10,))]), Halved([nn.Parameter((10,))])
    with minigrad.profile() as p:
        still.step()
        optimizer.step()
        optimizer.update(np.float32([0.1, 1, 1]))
        optim.clip_grad_norm(optimizer, limit=1.0)
    assert {(r.operation, r.calls, r.bytes) for r in p.rows if r.direction == "update"} == {
        ("Still", 1, 40 * 7),
        ("Halved", 2, 2 * 40 * 7),  # reads values, gradients, mean and variance; writes all but the gradients
        ("clip_grad_norm", 1, 2 * 40),
    }


def fused(transposed: bool, needs_input: bool) -> Tensor:
    conv = (nn.Conv2DTranspose if transposed else nn.Conv2D)(3, 5, 3, stride=2)
    model = nn.fuse({"conv": conv, "relu": nn.ReLU(), "norm": nn.BatchNorm(5)})
    return model(leaf(2, 6, 8, 3, requires_grad=needs_input))


def constant(*shape: int) -> Tensor:
    return leaf(*shape, requires_grad=False)


# what runs, the name of the operation, its multiply-adds, and how often as many the gradients take
FLOPS: list[tuple[Callable[[], Tensor], str, int, int]] = [
    (lambda: ops.conv2d(leaf(2, 7, 6, 3), leaf(3, 2, 3, 5), leaf(5)), "Conv2D", 2 * 5 * 5 * 6 * 3 * 5, 2),
    (lambda: ops.conv2d(constant(2, 7, 6, 3), leaf(3, 2, 3, 5), stride=2, padding="same"), "Conv2D", 2160, 1),
    (lambda: ops.conv2d(leaf(2, 7, 6, 3), constant(3, 2, 3, 5), stride=(2, 1), padding=1), "Conv2D", 5040, 1),
    (lambda: ops.conv2d_transpose(leaf(2, 5, 5, 5), leaf(3, 2, 3, 5)), "Conv2DTranspose", 2 * 5 * 5 * 6 * 3 * 5, 2),
    (lambda: ops.conv2d_transpose(constant(2, 4, 3, 5), leaf(3, 2, 3, 5), stride=2), "Conv2DTranspose", 2160, 1),
    (lambda: fused(False, False), "ConvChain", 2 * 3 * 4 * 9 * 3 * 5, 1),
    (lambda: fused(False, True), "ConvChain", 2 * 3 * 4 * 9 * 3 * 5, 2),
    (lambda: fused(True, False), "ConvChain", 2 * 6 * 8 * 9 * 3 * 5, 1),
    (lambda: fused(True, True), "ConvChain", 2 * 6 * 8 * 9 * 3 * 5, 2),
    (lambda: ops.dense(leaf(5, 3), leaf(3, 4), leaf(4)), "Dense", 5 * 3 * 4, 2),
    (lambda: ops.dense(leaf(7, 5, 3), leaf(3, 4)), "Dense", 7 * 5 * 3 * 4, 2),
    (lambda: leaf(7, 5, 3) @ constant(3, 4), "MatMul", 7 * 5 * 3 * 4, 1),
    (lambda: ops.exp(leaf(5)), "Exp", 0, 1),
]


@pytest.mark.parametrize(("work", "operation", "products", "gradients"), FLOPS)
def test_flops(work: Callable[[], Tensor], operation: str, products: int, gradients: int) -> None:
    p = run(work)
    layer = "conv" if operation == "ConvChain" else None
    assert find(p, operation, layer=layer).flops == 2 * products
    assert find(p, operation, "backward", layer=layer).flops == 2 * products * gradients


def test_bytes() -> None:
    p = run(lambda: ops.dense(floats(5, 3), leaf(3, 4), leaf(4)))
    inputs, output = 4 * (15 + 12 + 4), 4 * 20
    assert find(p, "Dense").bytes == inputs + output
    assert find(p, "Dense", "backward").bytes == output + inputs + 4 * (12 + 4)  # x needs no gradient
    p = run(lambda: ops.mul(Tensor(np.ones((2, 3)), requires_grad=True), 2.0))
    assert (find(p, "Mul").bytes, find(p, "Mul", "backward").bytes) == (2 * 48 + 8, 3 * 48 + 8)  # float64
    p = run(lambda: ops.reshape(leaf(6), 2, 3))
    assert (find(p, "Reshape").bytes, find(p, "Reshape", "backward").bytes) == (0, 0)


def test_seconds_are_those_of_the_operation_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(profiler, "_now", lambda: clock[0])

    class Inner(Function):
        def forward(self, x: Any) -> Any:
            clock[0] += 5
            return x + 1

    class Outer(Function):
        def forward(self, x: Any) -> Any:
            clock[0] += 2
            return Inner()(x).data + 0

    with minigrad.profile() as p:
        Outer()(floats(3))
        clock[0] += 3
    rows = find(p, "Inner"), find(p, "Outer"), find(p, OUTSIDE, "")
    assert [p.seconds, *(row.seconds for row in rows)] == [10, 5, 2, 3]


def test_shares_sum_to_one(vae_profile: Profile) -> None:
    assert math.fsum(r.share for r in vae_profile.rows) == pytest.approx(1, abs=1e-12)
    assert math.fsum(r.seconds for r in vae_profile.rows) == pytest.approx(vae_profile.seconds)
    assert all(r.share == r.seconds / vae_profile.seconds and r.seconds >= 0 for r in vae_profile.rows)
    assert [r.seconds for r in vae_profile.rows] == sorted((r.seconds for r in vae_profile.rows), reverse=True)
    with pytest.raises(AttributeError):
        vae_profile.rows[0].calls = 2  # type: ignore[misc]


def test_a_second_use_measures_anew() -> None:
    p = minigrad.profile()
    for _ in range(2):
        with p:
            assert not p.rows
            ops.exp(floats(3))
    assert find(p, "Exp").calls == 1


# ---- layers ----


def test_a_kept_graph_keeps_the_names_of_its_layers() -> None:
    net = nn.Sequential({"first": nn.Dense(3, 2)})
    with minigrad.profile() as p:
        y = ops.sum(net(floats(2, 3)))
        y.backward(retain_graph=True)
        y.backward()
    assert find(p, "Dense", "backward", layer="first").calls == 2


def test_layers_of_the_vae_in_both_directions(vae_profile: Profile) -> None:
    both, rows = ("forward", "backward"), vae_profile.rows
    layers = {d: {(r.layer, r.operation) for r in rows if r.direction == d and r.layer} for d in both}
    blocks = [f"encoder_conv_layer_{i}" for i in (1, 2, 3, 4)]
    blocks += [f"decoder_conv_transpose_layer_{i}" for i in (1, 2, 3)]
    expected = {(name, "ConvChain") for name in blocks}
    expected |= {(name, "Dense") for name in ("mu", "log_variance", "decoder_dense")}
    expected |= {(name, "Reshape") for name in ("encoder_flatten", "decoder_reshape")}
    expected |= {("decoder_conv_transpose_layer_4", "Conv2DTranspose"), ("log_variance", "SoftBound")}
    looked = {pair for pair in layers["forward"] if pair[1] == "ConvChainInference"}  # once an epoch, to evaluate
    assert layers == {"forward": expected | looked, "backward": expected}
    assert find(vae_profile, "ConvChain", layer="encoder_conv_layer_1").calls == 3
    assert find(vae_profile, "ConvChainInference", layer="encoder_conv_layer_1").calls == 1
    assert find(vae_profile, "Adam", "update").calls == find(vae_profile, "clip_grad_norm", "update").calls == 3
    assert find(vae_profile, "BCEWithLogits").layer == ""


def test_layers_in_evaluation() -> None:
    vae = default_vae()
    with minigrad.profile() as p:
        vae.reconstruct(floats(3, 28, 28, 1))
    assert {r.direction for r in p.rows} == {"forward", ""}
    block = find(p, "ConvChainInference", layer="encoder_conv_layer_2")
    assert block.flops == 2 * 3 * 14 * 14 * 64 * 9 * 32
    assert find(p, "Dense", layer="mu").calls == 1


def test_names_of_nested_and_unnamed_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            self.body = nn.Sequential(nn.Dense(3, 3), nn.Sequential({"deep": nn.Dense(3, 3)}))
            self.more = [nn.Dense(3, 3)]
            self.hidden = {nn.Dense(3, 3)}  # in a set, which has no order: no part of the model for anyone

        def forward(self, x: Any) -> Tensor:
            return ops.exp(next(iter(self.hidden))(self.more[0](self.body(x))))

    net = Net()
    p = run(lambda: net(floats(2, 3)))
    for direction in ("forward", "backward"):
        names = {r.layer for r in p.rows if (r.operation, r.direction) == ("Dense", direction)}
        assert names == {"body.0", "body.1.deep", "more.0", ""}
    p = run(lambda: nn.Sequential({"net": net})(floats(2, 3)))
    names = {r.layer for r in p.rows if r.operation == "Dense"}  # what has no name goes by that of its caller
    assert names == {"net.body.0", "net.body.1.deep", "net.more.0", "net"}
    p = run(lambda: net.body(floats(2, 3)))  # a part by itself
    assert {r.layer for r in p.rows if r.operation == "Dense"} == {"body.0", "body.1.deep"}
    p = run(lambda: net.body.layers["0"](floats(2, 3)))
    assert find(p, "Dense").layer == "body.0"
    p = run(lambda: nn.Dense(3, 3)(floats(2, 3)))
    assert find(p, "Dense").layer == ""


def test_layers_of_a_model_made_inside_and_of_one_that_is_half_built() -> None:
    half = nn.Sequential.__new__(nn.Sequential)  # as an exception in a constructor leaves it
    with minigrad.profile() as p:
        model = nn.Sequential({"x": nn.Dense(3, 3)})
        model.layers["x"](floats(2, 3))
    assert half is not None
    assert find(p, "Dense").layer == "x"


def test_backward_of_what_was_made_before() -> None:
    model = nn.Sequential({"x": nn.Dense(3, 3)})
    y = model(floats(2, 3))
    with minigrad.profile() as p:
        y.backward(floats(2, 3))
    assert find(p, "Dense", "backward").layer == ""
    assert len(p.rows) == 2


def test_a_profile_keeps_nothing_alive() -> None:
    models = [nn.Sequential({"x": nn.Dense(3, 3)})]
    layer = weakref.ref(models[0].layers["x"])
    p = run(lambda: models[0](floats(2, 3)))
    models.clear()
    gc.collect()
    assert layer() is None
    assert find(p, "Dense").layer == "x"


# ---- nothing else changes ----


PATCHED = "Function.__call__ Function.run_backward nn.Module.__call__ optim.SGD.update optim.Adam.update"


def patched() -> list[Any]:
    """What the profiler replaces while it is active, as it is now."""
    names = [*PATCHED.split(), "optim.AdamW.update", "optim.clip_grad_norm"]
    return [operator.attrgetter(name)(minigrad) for name in names]


def test_off_costs_nothing() -> None:
    """All objects are those of before, after a normal end, after an exception and after a refused second profile."""
    before = patched()
    with minigrad.profile():
        assert all(now is not then for now, then in zip(patched(), before, strict=True))
        ops.exp(leaf(3)).backward(floats(3))
    assert patched() == before

    with pytest.raises(ValueError, match="dense"), minigrad.profile() as p:
        nn.Sequential(nn.Dense(3, 4))(floats(2, 5))
    assert patched() == before
    assert find(p, "Dense").layer == "0"

    with pytest.raises(KeyboardInterrupt), minigrad.profile():
        raise KeyboardInterrupt
    assert patched() == before


def test_a_nested_profile_is_refused() -> None:
    with minigrad.profile() as p:
        another = pytest.raises(RuntimeError, match="another profile, detect_anomaly or explain is active")
        with another as error, minigrad.profile():
            pass
        ops.exp(floats(3))  # the first one goes on
    assert "\n" not in str(error.value)
    assert find(p, "Exp").calls == 1
    run(lambda: ops.exp(leaf(3)))


def test_results_are_the_same_to_the_bit(restored_backends: None) -> None:
    """With the plain kernels: on threads, a chain adds in another order than its links run one by one."""
    minigrad.use(kernels="plain")
    images = floats(8, 28, 28, 1)

    def trained() -> tuple[dict[str, np.ndarray], np.ndarray]:
        vae = default_vae()
        vae.train(images, 4, 1, progress=False, clip_norm=1.0)
        return vae.network.state_dict(), vae.reconstruct(images)[0]

    state, pictures = trained()
    with minigrad.profile():
        profiled_state, profiled_pictures = trained()
    assert all(np.array_equal(x, profiled_state[name]) for name, x in state.items())
    assert np.array_equal(pictures, profiled_pictures)


def test_errors_are_those_of_the_engine() -> None:
    x = leaf(3)
    with minigrad.profile() as p:
        y = Square()(x)
        y.backward(floats(3))
        with pytest.raises(RuntimeError, match="was used before"):
            y.backward(floats(3))
        with pytest.raises(TypeError, match="different dtypes"):
            ops.add(x, Tensor(np.ones(3)))
    assert find(p, "Square", "backward").calls == 1


def test_an_unhashable_function_without_a_graph() -> None:
    class Odd(Square):
        __hash__ = None  # type: ignore[assignment]

    with minigrad.profile() as p, no_grad():
        Odd()([1.0, 2.0])
    assert (find(p, "Odd").calls, find(p, "Odd").bytes) == (1, 16)


def test_other_threads_are_not_recorded() -> None:
    with minigrad.profile() as p:
        model = nn.Sequential(nn.Dense(3, 3))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: model(floats(2, 3)).backward(floats(2, 3))).result()
        Square()(floats(3))
    assert {r.operation for r in p.rows} == {"Square", OUTSIDE}
    assert model.layers["0"].weight.grad.any()  # it did run


def test_the_device_is_waited_for(cupy_double: Any) -> None:
    minigrad.use(device="cuda")
    x = Tensor(cupy_double.ones((2, 3), dtype="float32"), requires_grad=True)
    gy = cupy_double.ones((2, 3), dtype="float32")
    strict_cupy.reset()
    ops.exp(x).backward(gy)
    assert strict_cupy.counters.synchronisations == 0
    with minigrad.profile() as p:
        ops.exp(x).backward(gy)
    assert strict_cupy.counters.synchronisations == 6  # at both ends of two operations and of the profile
    assert (find(p, "Exp").bytes, find(p, "Exp", "backward").bytes) == (2 * 24, 3 * 24)


def test_a_captured_step_is_seen(cupy_double: Any) -> None:
    """Its replays would hide what is inside; and to wait for the device would break the recording."""
    k = minigrad.use(device="cuda")
    x, take_step = k.from_host(floats(2, 3)), k.capture(lambda x: ops.exp(Tensor(x)).data)
    with minigrad.profile() as p:
        for _ in range(5):
            take_step(x)
    assert find(p, "Exp").calls == 5
    for _ in range(5):
        take_step(x)
    strict_cupy.reset()
    take_step(x)
    assert strict_cupy.counters.launches["graph"] == 1, "afterwards it is captured as before"


# ---- table and picture ----


def test_the_table() -> None:
    p = Profile()
    p.seconds = 2.0
    p.rows = [
        Row("encoder." + "very_long_name_" * 5 + "end", "Conv2D", "forward", 1234, 1.5, 0.75, 3 * 10**9, 6 * 10**9),
        Row("", OUTSIDE, "", 0, 0.5, 0.25, 0, 0),
    ]
    assert str(p) == p.table()
    assert str(p).split("\n") == [
        "layer                                 operation           direction  calls    time ms  share %  GFLOP/s"
        "         MB  GB/s",
        "-" * 120,
        "encoder.very_lo...very_long_name_end  Conv2D              forward    1,234  1,500.000     75.0      2.0"
        "  6,000.000   4.0",
        "                                      outside operations                      500.000     25.0",
        "-" * 120,
        "total                                                                1,234  2,000.000    100.0      1.5"
        "  6,000.000   3.0",
    ]


def test_the_picture(vae_profile: Profile, tmp_path: Any) -> None:
    from matplotlib.image import imread

    vae_profile.plot(tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    picture = imread(tmp_path / "p.png")[..., :3]
    height, width = picture.shape[:2]
    assert 1000 < min(width, height) <= max(width, height) < 3000
    assert len(set(profiler.COLOURS.values())) == 4
    for colour in profiler.COLOURS.values():  # each direction has its bars
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(picture - rgb).max(axis=2) < 0.01).sum() > 500, colour
    vae_profile.plot(tmp_path / "few.svg", most=2)
    assert "<svg" in (tmp_path / "few.svg").read_text()
    with pytest.raises(ValueError, match="most is 0"):
        vae_profile.plot(tmp_path / "p.png", most=0)


def test_an_empty_profile(tmp_path: Any) -> None:
    p = minigrad.profile()
    assert "no operation" in str(p)
    with p:
        assert "no operation" in str(p)
    assert p.rows == []
    assert p.seconds > 0
    assert str(p) == "profile: no operation was recorded"
    with pytest.raises(ValueError, match=r"^plot: no operation was recorded$"):
        p.plot(tmp_path / "p.png")
    assert not list(tmp_path.iterdir())
