"""ONNX files, checked by onnx.checker and run by onnxruntime: every operation, and whole networks."""

from __future__ import annotations

import doctest
import sys

import numpy as np
import pytest
from op_cases import CASES

import minigrad
from minigrad import Tensor, nn, ops
from minigrad.interop.graph import Call
from minigrad.interop.onnx import Classes, to_onnx
from minigrad.interop.onnx_nodes import TRANSLATIONS, Translation

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.onnx


def session(content: bytes):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def assert_close(found, expected):
    """Within 1e-5 of the largest number."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1e-30, np.abs(expected).max(initial=0)))


def run_once(call: Call) -> np.ndarray:
    """The result of a call, computed by onnxruntime from the nodes of this one call."""
    graph = Translation(call)
    for i, x in enumerate(call.inputs):
        graph.input(f"x{i}", x)
    graph.run(call.outputs)
    (y,) = call.outputs
    graph.result("y", y)
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    body = make.make_graph(
        [make.make_node(n.kind, n.inputs, [n.output], n.name, **n.attributes) for n in graph.nodes],
        "one call",
        [make.make_tensor_value_info(f"x{i}", kind, x.shape) for i, x in enumerate(call.inputs)],
        [make.make_tensor_value_info("y", kind, y.shape)],
        [onnx.numpy_helper.from_array(x, name) for name, x in graph.constants.items()],
    )
    model = make.make_model(body, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return session(model.SerializeToString()).run(None, {f"x{i}": x.numpy() for i, x in enumerate(call.inputs)})[0]


def is_written(case) -> bool:
    """Whether the case has a translation, and onnxruntime runs it: it refuses pooling of images without channels."""
    if case.op == "getitem":
        key = case.constants[0] if isinstance(case.constants[0], tuple) else case.constants
        arrays = [np.asarray(part) for part in key if isinstance(part, np.ndarray | list)]
        others = [part for part in key if not isinstance(part, np.ndarray | list)]
        plain = all(part is Ellipsis or part == slice(None) for part in others)
        return not arrays or (len(arrays) == 1 and arrays[0].dtype.kind != "b" and plain)
    return not (case.op in ("max_pool2d", "avg_pool2d") and 0 in case.shapes[0])


@pytest.mark.parametrize("case", list(filter(is_written, CASES)), ids=str)
def test_an_operation_computes_the_same(case):
    call = Call(case.run, [np.asarray(x, np.float32) for x in case.inputs()])
    assert_close(run_once(call), call.outputs[0].numpy())


@pytest.mark.parametrize("case", [c for c in CASES if c.op == "getitem" and not is_written(c)], ids=str)
def test_a_key_of_several_arrays_is_refused(case):
    with pytest.raises(ValueError, match="to_onnx: GetItem has no translation to ONNX for more than one array"):
        run_once(Call(case.run, case.inputs()))


# ---- whole networks ----


def check(function, inputs, outputs=("output",), weights=None, rows=(1, 3, 8)):
    """onnxruntime computes the same for several numbers of rows."""
    run = session(to_onnx(function, inputs, outputs, weights=weights))
    rng = np.random.default_rng(0)
    for count in rows:
        arrays = {
            name: rng.integers(0, shape.count, count) if isinstance(shape, Classes)
            else rng.random((count, *shape), np.float32)
            for name, shape in inputs.items()
        }  # fmt: skip
        given = [np.eye(3, dtype="f")[x] if x.dtype.kind == "i" else x for x in arrays.values()]
        with minigrad.evaluation():
            expected = function(*map(Tensor, given))
        expected = expected if isinstance(expected, tuple) else (expected,)
        for found, y in zip(run.run(list(outputs), arrays), expected, strict=True):
            assert_close(found, y.numpy())
    return run


def perturbed(model: nn.Module) -> nn.Module:
    """Biases and statistics that matter."""
    rng = np.random.default_rng(1)
    for name, x in model.named_tensors():
        if name.endswith(("bias", "beta", "mean")):
            x.data[...] = 0.2 * rng.standard_normal(x.shape)
        elif name.endswith(("gamma", "variance")):
            x.data[...] = rng.uniform(0.5, 2, x.shape)
    return model


def test_a_classifier():
    layers = [nn.Conv2D(3, 8, (3, 2), stride=(2, 1)), nn.ReLU(), nn.BatchNorm(8), nn.MaxPool2D(2), nn.Dropout(0.5)]
    layers += [nn.Conv2D(8, 8, 3, groups=8, dilation=2), nn.LeakyReLU(), nn.GroupNorm(4, 8), nn.Flatten()]
    model = perturbed(nn.Sequential(*layers, nn.Dense(8 * 4 * 5, 10), nn.LayerNorm(10), nn.GELU()))
    check(model, {"images": (15, 11, 3)}, ["scores"])


def test_a_model_on_a_gpu_gives_the_same_file(cupy_double):
    model = perturbed(nn.Sequential(nn.Conv2D(1, 2, 3), nn.BatchNorm(2), nn.ReLU(), nn.Flatten(), nn.Dense(50, 3)))
    content = to_onnx(model, {"x": (5, 5, 1)})
    minigrad.use("cuda", kernels="plain")
    model.to("cuda")
    assert to_onnx(model, {"x": (5, 5, 1)}) == content


class Skips(nn.Module):
    """A U-Net of one level."""

    def __init__(self):
        self.down = nn.Conv2D(2, 4, 3, stride=2)
        self.up = nn.Conv2DTranspose(4, 4, 3, stride=2, output_size=(9, 7))
        self.last = nn.Conv2D(6, 2, 1)
        self.large = nn.UpSample2D(2, "bilinear")

    def forward(self, x):
        y = ops.concatenate([self.up(ops.silu(self.down(x))), x], axis=3)
        return self.large(ops.sigmoid(self.last(y)) + x)


def test_skip_connections():
    run = check(perturbed(Skips()), {"x": (9, 7, 2)})
    assert run.get_inputs()[0].shape == ["N", 9, 7, 2]


class Attention(nn.Module):
    def __init__(self):
        self.q, self.k, self.v = (nn.Dense(6, 6) for _ in range(3))

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        return ops.softmax(q @ k.swapaxes(1, 2) * 0.4) @ v


def test_attention():
    check(Attention(), {"words": (5, 6)})


class Swish(minigrad.Function):
    """The operation of the README, which nobody has translated."""

    def __init__(self, slope):
        self.slope = slope

    def forward(self, x):
        self.x = x
        self.gate = self.k.sigmoid(self.slope * x)
        return x * self.gate


def test_an_operation_of_ones_own_needs_no_translation():
    check(lambda x: (Swish(1.5)(x), Swish(0.5)(x * x)), {"x": (4,)}, ["a", "b"])


def test_classes_come_as_numbers():
    model = nn.Dense(7, 2)
    check(lambda x, y: model(ops.concatenate([x, y], axis=1)), {"x": (4,), "label": Classes(3)}, weights=model)


def test_a_chain_of_convolutions_has_one_transpose_at_each_end():
    layers = {f"conv_{i}": nn.Conv2D(2, 2, 3) for i in range(3)}
    model = nn.Sequential({**layers, "relu": nn.ReLU(), "norm": nn.BatchNorm(2)})
    graph = onnx.load_from_string(to_onnx(model, {"x": (6, 5, 2)})).graph
    kinds = ["Transpose", "Conv", "Conv", "Conv", "Relu", "BatchNormalization", "Transpose"]
    assert [n.op_type for n in graph.node] == kinds
    assert [n.name for n in graph.node][1:4] == ["conv_0", "conv_1", "conv_2"]
    weights = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
    for name, x in model.state_dict().items():
        assert np.array_equal(weights[name], x.transpose(3, 2, 0, 1) if x.ndim == 4 else x), name


class Rounded(minigrad.Function):
    def forward(self, x):
        return self.k.xp.rint(x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (Rounded(), "Rounded has no translation to ONNX, and its forward cannot be read .*: xp.rint is not known"),
        (lambda x: ops.where(x > 0.5, x, -x), "Where depends on the number of rows or on the values"),
        (lambda x: x - x.mean(axis=0), "Mul depends on the number of rows or on the values"),
        (lambda x: x * x.data.flat[0].item(), "Mul depends on the number of rows or on the values"),
        (lambda x: x + ops.dropout(x, np.random.default_rng(0), rate=0.5), "Dropout depends on the number of rows"),
        (lambda x: x if x.data.min() >= 0 else x * 2, "Mul depends on the number of rows or on the values"),
        (lambda x: x if x.data[:, 0].max() > 0 else -x, "Neg depends on the number of rows or on the values"),
        (lambda x: ops.where(x.data.sum(axis=0) > 0, x, x * -3), "Where depends on the number of rows"),
        (lambda x: ops.concatenate([x[:, :0], x], axis=1), "GetItem gives an array without elements"),
        (lambda x: ops.concatenate([x[:, :0].reshape(len(x.data), 0), x], axis=1), "GetItem gives an array"),
        (lambda x: x.reshape(-1), r"output is \(6,\) for 2 rows, but must have a row for each"),
        (lambda x: (x, x), "2 results need as many names"),
        (lambda x: x, "inputs and results need names of their own"),
        (lambda x: ops.batch_norm(x, [1.0] * 3, [0.0] * 3), "BatchNorm depends on the number of rows"),
    ],
)  # fmt: skip
def test_what_a_graph_cannot_hold_is_named(function, message):
    make = (lambda x: Rounded()(x)) if isinstance(function, Rounded) else function
    with pytest.raises(ValueError, match=f"to_onnx: {message}"):
        to_onnx(make, {"x": (3,)}, ["x" if "names of" in message else "output"])


def test_a_result_may_be_an_input_or_come_twice():
    check(lambda x: (x, x, (y := x + x), y), {"x": (3,)}, ["a", "b", "Add output", "constant"])


class Same(minigrad.Function):
    """An operation that changes nothing."""

    def forward(self, x):
        return x


@pytest.mark.parametrize("turned", [False, True])
def test_an_operation_that_returns_its_input_may_be_a_result_too(turned):
    layers = nn.Dense(3, 3), nn.Conv2D(2, 2, 3)
    for layer, shape in zip(layers, [(3,), (5, 4, 2)], strict=True):

        def function(x, layer=layer):
            y = layer(x)
            results = (Same()(y), y, Same()(y) + y)
            return results[::-1] if turned else results

        check(function, {"x": shape}, ["a", "b", "c"], weights=layer)


def test_names_of_inputs_and_results_are_not_given_to_other_values():
    check(lambda x, y: x + y, {"x": Classes(3), "off and on": (3,)}, ["OneHot output"])
    check(lambda x, y: x + y * 2, {"x": (3,), "constant": (3,)}, ["Mul output"])


@pytest.mark.filterwarnings("error")
def test_numbers_that_have_no_logarithm_do_not_matter():
    check(lambda x: ops.log(x) + x**0.5, {"x": (4,)})


def test_a_choice_by_the_class_is_refused():
    with pytest.raises(ValueError, match="Mul depends on the number of rows or on the values"):
        to_onnx(lambda x: x * x.data[0].argmax().item(), {"x": Classes(3)})


def test_a_choice_between_inputs_is_refused():
    with pytest.raises(ValueError, match="to_onnx: a result depends on the number of rows or on the values"):
        to_onnx(lambda x, y: x if x.data.max() > 0 else y, {"x": (3,), "y": (3,)})


def test_results_are_tensors():
    with pytest.raises(TypeError, match="the results must be Tensors, found ndarray"):
        to_onnx(lambda x: (x, ops.argmax(x, axis=1)), {"x": (3,)}, ["a", "b"])


def test_a_layer_that_is_used_twice_is_written_once():
    conv = nn.Conv2D(2, 2, 3)
    graph = onnx.load_from_string(to_onnx(nn.Sequential(conv, nn.ReLU(), conv), {"x": (6, 5, 2)})).graph
    assert [x.name for x in graph.initializer] == ["0.weight", "0.bias"]


def test_the_example_is_right():
    assert doctest.testmod(sys.modules[to_onnx.__module__], extraglobs={"nn": nn}) == (0, 1)


def test_inside_no_grad_there_is_no_graph():
    with minigrad.no_grad(), pytest.raises(RuntimeError, match="inside no_grad none is recorded"):
        to_onnx(nn.Dense(3, 2), {"x": (3,)})


def test_every_translation_belongs_to_an_operation_that_a_case_uses():
    used = set()
    for case in filter(is_written, CASES):
        graph = Translation(call := Call(case.run, case.inputs()))
        for i, x in enumerate(call.inputs):
            graph.input(f"x{i}", x)
        original = dict(TRANSLATIONS)
        try:
            for kind, translate in original.items():
                TRANSLATIONS[kind] = lambda *args, kind=kind, translate=translate: (used.add(kind), translate(*args))
            graph.run(call.outputs)
        finally:
            TRANSLATIONS.update(original)
    assert {kind.__name__ for kind in set(TRANSLATIONS) - used} == {"Convolution", "TransposedConvolution"}
