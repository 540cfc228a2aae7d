"""The three ONNX files of a model, run by onnxruntime."""

from __future__ import annotations

import json

import numpy as np
import pytest
from exchange_cases import MODELS, assert_heads, assert_images, expected_of, images_of, model_of

from autoencoders import VAE, export

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.onnx


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", MODELS)
def test_the_files_compute_the_same(name, tmp_path):
    model = model_of(name)
    paths = export(model, "onnx", tmp_path)
    assert [path.name for path in paths] == ["encoder.onnx", "decoder.onnx", "autoencoder.onnx"]
    for path in paths:
        onnx.checker.check_model(str(path), full_check=True)
    encoder, decoder, whole = map(session, paths)
    assert encoder.get_inputs()[0].shape == ["N", *model.input_shape]
    for count in (12, 1, 5):
        images, labels = images_of(name, count)
        given = {} if labels is None else {"labels": labels}
        heads, reconstructed = expected_of(name, images, labels)
        names = ["mu", "log_variance"] if isinstance(model, VAE) else ["latents"]
        assert_heads(encoder.run(names, {"images": images, **given}), heads)
        assert_images(decoder.run(["images"], {"latents": heads[0], **given})[0], reconstructed)
        again, latents = whole.run(["reconstructed", "latents"], {"images": images, **given})
        assert_heads([latents], heads[:1])
        assert_images(again, reconstructed)


def test_the_files_carry_the_weights_and_the_configuration(tmp_path):
    model = model_of("wide_stride")
    (path, *_) = export(model, "onnx", tmp_path)
    file = onnx.load(path)
    config = json.loads({x.key: x.value for x in file.metadata_props}["config"])
    assert config["variance"] == pytest.approx(np.exp(-1.234))
    weights = {x.name: onnx.numpy_helper.to_array(x) for x in file.graph.initializer}
    for name, x in model.network.state_dict().items():
        if name.startswith(("encoder", "mu", "log_variance")):
            assert weights[name].tobytes() == (x.transpose(3, 2, 0, 1) if x.ndim == 4 else x).tobytes(), name
    assert [n.op_type for n in file.graph.node].count("Transpose") == 2


@pytest.mark.parametrize("name", MODELS)
def test_a_program_that_draws_the_graph_finds_names_and_shapes(name, tmp_path):
    model = model_of(name)
    for path in export(model, "onnx", tmp_path):
        graph = onnx.load(path).graph
        shapes = {
            x.name: [size.dim_param or size.dim_value for size in x.type.tensor_type.shape.dim]
            for x in (*graph.input, *graph.value_info, *graph.output)
        }
        layers = {x.name.rpartition(".")[0] for x in graph.initializer} - {""}
        assert {x for node in graph.node for x in node.output} <= set(shapes)
        assert all(shape[0] == "N" and all(type(size) is int and size > 0 for size in shape[1:])
                   for shape in shapes.values())  # fmt: skip
        assert layers <= {node.name for node in graph.node}
        assert len({node.name for node in graph.node}) == len(graph.node)


def test_float64_models_are_written_as_float32(tmp_path):
    model = VAE((8, 8, 1), (3,), (3,), (2,), 2)
    model.to(dtype="float64")
    (path, *_) = export(model, "onnx", tmp_path)
    images = np.random.default_rng(0).random((3, 8, 8, 1))
    mu, _ = session(path).run(["mu", "log_variance"], {"images": images.astype("f4")})
    assert_heads([mu], [model.encode(images)])
