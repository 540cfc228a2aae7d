"""The seed's VAE, trained 20 steps, against numbers from Keras and against PyTorch: same weights, images and noise."""

from pathlib import Path

import numpy as np
import pytest
from kernel_sets import CPU_KERNELS

from autoencoders import VAE
from autoencoders.training import Trainer, TrainingOptions

GOLDEN = dict(np.load(Path(__file__).parents[1] / "oracles/reference" / "keras_vae_training.npz"))
STEPS = 20
RATE, EPSILON = 5e-4, 1e-7  # Adam's; Keras' epsilon
# Keras trains on 1000 * mse + KL. A Gaussian likelihood of variance 784 / 2000 is that plus a constant.
PIXELS = 28 * 28
VARIANCE = PIXELS / 2000
CONSTANT = 0.5 * PIXELS * np.log(2 * np.pi * VARIANCE)


def minigrad_name(keras_name: str) -> str:
    """encoder_conv_layer_1/kernel -> encoder_conv_layer_1.weight."""
    return keras_name.replace("/kernel", ".weight").replace("/", ".")


def golden(kind: str) -> dict[str, np.ndarray]:
    return {minigrad_name(n.removeprefix(f"{kind}/")): x for n, x in GOLDEN.items() if n.startswith(f"{kind}/")}


def new_model(dtype: str) -> VAE:
    architecture = (28, 28, 1), (4, 8, 8, 8), (3, 3, 3, 3), (1, 2, 2, 1), 2
    # Keras has no bounds, and in one step some log_variance is beyond them.
    model = VAE(*architecture, likelihood="gaussian", variance=VARIANCE, log_variance_bounds=None)
    model.to(dtype=dtype)
    model.network.load_state_dict({name: x.astype(dtype) for name, x in golden("init").items()})
    model.compile(RATE)
    model.optimizer.epsilon = EPSILON
    return model


def train(model: VAE, dtype: str) -> tuple[list[float], dict[str, np.ndarray]]:
    """(20 losses, first gradients) through the training loop's own step."""
    trainer = Trainer(model, GOLDEN["images"][0], TrainingOptions(epochs=1, batch_size=16), progress=False)
    model.network.train()
    losses, first = [], {}
    for i in range(STEPS):
        scalars = np.array([1.0, *model.optimizer.scalars(i + 1)], dtype)
        images, noise = GOLDEN["images"][i].astype(dtype) / 255, GOLDEN["epsilon"][i].astype(dtype)
        reconstruction, kl = trainer.step(images, noise, scalars)
        losses.append(float(reconstruction) - CONSTANT + float(kl))
        if i == 0:
            first = {name: p.grad.copy() for name, p in model.network.named_parameters()}
    return losses, first


@pytest.fixture(scope="module")
def float64_run() -> tuple[list[float], dict[str, np.ndarray], VAE]:
    model = new_model("float64")
    losses, first = train(model, "float64")
    return losses, first, model


def test_first_gradients_are_those_of_keras(float64_run):
    _, first, _ = float64_run
    expected = golden("grad0")
    assert set(first) == set(expected)
    for name, g in expected.items():
        # A bias before BatchNorm's ReLU has a true gradient; relative to the tensor's largest magnitude.
        assert np.abs(first[name] - g).max() <= 1e-10 * np.abs(g).max(), name


def test_twenty_losses_follow_keras(float64_run):
    assert float64_run[0][0] == pytest.approx(GOLDEN["loss"][0], rel=1e-12)
    # 1e-5: Keras' Adam puts epsilon before the bias correction; PyTorch itself is 2e-6 off.
    losses, _, _ = float64_run
    np.testing.assert_allclose(losses, GOLDEN["loss"], rtol=1e-5)


def test_moving_statistics_follow_keras(float64_run):
    *_, model = float64_run
    state = model.network.state_dict()
    for name, x in golden("final").items():
        if "moving" in name:
            # The weights differ by the optimisers' 1e-5, so the statistics do.
            assert np.abs(state[name] - x).max() <= 1e-4 * np.abs(x).max(), name


@pytest.mark.parametrize("kernels", CPU_KERNELS)
def test_float32_training_stays_close(kernels):
    import minigrad

    minigrad.use(kernels=kernels)
    losses, _ = train(new_model("float32"), "float32")
    assert losses[0] == pytest.approx(GOLDEN["loss"][0], rel=1e-5)
    # 5e-3: PyTorch's own two memory layouts differ by 1.4e-3 after 20 steps in float32.
    np.testing.assert_allclose(losses, GOLDEN["loss"], rtol=5e-3)


@pytest.mark.torch
def test_twenty_losses_are_those_of_pytorch(float64_run):
    losses, _, _ = float64_run
    np.testing.assert_allclose(losses, torch_losses(), rtol=1e-9)


def torch_losses() -> list[float]:
    """The same training in PyTorch, float64."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    state = {name: torch.tensor(x) for name, x in golden("init").items()}
    for name in state:
        if "moving" not in name:
            state[name].requires_grad_()
    moving = {name: state[name] for name in state if "moving" in name}
    optimizer = torch.optim.Adam([x for n, x in state.items() if n not in moving], lr=RATE, eps=EPSILON)

    def normalise(x, name):
        weights = (state[f"{name}.gamma"], state[f"{name}.beta"])
        return F.batch_norm(F.relu(x), None, None, *weights, training=True, eps=1e-3)

    def forward(x, noise):
        for i, stride in enumerate((1, 2, 2, 1), 1):
            weight, bias = state[f"encoder_conv_layer_{i}.weight"], state[f"encoder_conv_layer_{i}.bias"]
            x = F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))
            x = normalise(F.conv2d(x, weight.permute(3, 2, 0, 1), bias, stride), f"encoder_bn_{i}")
        h = x.permute(0, 2, 3, 1).reshape(len(x), -1)
        mu, log_variance = (h @ state[f"{n}.weight"] + state[f"{n}.bias"] for n in ("mu", "log_variance"))
        x = (mu + torch.exp(log_variance / 2) * noise) @ state["decoder_dense.weight"] + state["decoder_dense.bias"]
        x = x.reshape(-1, 7, 7, 8).permute(0, 3, 1, 2)
        for i, stride in enumerate((1, 2, 2, 1), 1):
            name = f"decoder_conv_transpose_layer_{i}"
            weight = state[f"{name}.weight"].permute(3, 2, 0, 1)
            if stride == 1:
                x = F.conv_transpose2d(x, weight, state[f"{name}.bias"], 1, padding=1)
            else:  # TensorFlow pads at the bottom and right only: crop there
                x = F.conv_transpose2d(x, weight, state[f"{name}.bias"], 2)[:, :, :-1, :-1]
            x = normalise(x, f"decoder_bn_{i}") if i < 4 else x
        return torch.sigmoid(x), mu, log_variance

    losses = []
    for i in range(STEPS):
        images = torch.tensor(GOLDEN["images"][i]).double().permute(0, 3, 1, 2) / 255
        y, mu, log_variance = forward(images, torch.tensor(GOLDEN["epsilon"][i]))
        kl = 0.5 * (mu**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
        loss = 1000 * ((y - images) ** 2).mean() + kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
