"""A training on several processes gives the weights of one, bit for bit. Threads stand for the processes here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernel_sets import NEEDS_NUMBA
from thread_group import in_threads

import minigrad
from autoencoders import VAE, Autoencoder, Callback, TrainingOptions
from autoencoders.training import Trainer, load_checkpoint
from minigrad import DeviceError, Tensor, ops
from minigrad.distributed import ALONE, Group

IMAGES = np.random.default_rng(0).integers(0, 256, (83, 12, 9, 1), dtype=np.uint8)
LABELS = np.arange(83) % 3
NETWORK = (4, 6), (3, 5), (2, 1)
KERNELS = [pytest.param("numpy"), pytest.param("numba", marks=NEEDS_NUMBA)]
# the last batch has 3 images, which no two processes can share
BATCHES: dict[str, Any] = {"batch_size": 16, "epochs": 2}
CASES: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "autoencoder": (Autoencoder, {}, {}),
    "vae": (VAE, {}, {}),
    "clipped, warmed up": (VAE, {}, {"clip_norm": 0.1, "warmup_steps": 4, "kl_warmup": 1.5, "schedule": "cosine"}),
    "stopped early": (VAE, {}, {"validation": 19, "patience": 1, "epochs": 4}),
    "last batch of one": (VAE, {}, {"validation": 18}),
    "conditional, learned variance": (VAE, {"classes": 3, "likelihood": "gaussian-learned"}, {"augment": True}),
    "samples, binarised": (VAE, {}, {"iw_samples": 3, "binarise": True, "validation": 0.2}),
    "denoised": (Autoencoder, {}, {"denoise": 0.3, "batch_size": 8}),
    "one image a shard": (VAE, {}, {"batch_size": 8}),
}


def trainer_of(case: str, group: Group = ALONE, **more: Any) -> Trainer:
    kind, model_options, options = CASES[case]
    model = kind(IMAGES.shape[1:], *NETWORK, 3, momentum=0.9, **model_options)
    model.compile(1e-2)
    more = {"progress": False, "labels": LABELS, **more}
    return Trainer(model, IMAGES, TrainingOptions(**{**BATCHES, **options}), group=group, **more)


def result_of(trainer: Trainer) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Weights, statistics and moments; the history without times."""
    rows = [{n: x for n, x in row.items() if n not in ("seconds", "images_per_second")} for row in trainer.history.rows]
    return {name: x.tobytes() for name, x in trainer.state().items()}, rows


def trained(trainer: Trainer) -> Any:
    trainer.run()
    return result_of(trainer)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_any_number_of_processes_and_threads_gives_the_same_bits(case: str, kernels: str) -> None:
    minigrad.use(kernels=kernels, threads=1)
    wanted = trained(trainer_of(case))
    assert len(wanted[1]) > 1
    for processes, threads in ((2, 2), (8 if case == "vae" else 4, 1)):
        minigrad.use(kernels=kernels, threads=threads)
        for found in in_threads(processes, lambda group: trained(trainer_of(case, group))):
            assert found == wanted, (processes, threads)


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_batch_end(self, trainer: Trainer) -> None:
        if trainer.progress.step == self.step:
            trainer.stop()


@pytest.mark.parametrize("step", [1, 5, 6, 9])
def test_a_run_goes_on_with_another_number_of_processes(step: int, tmp_path: Any) -> None:
    minigrad.use(kernels="numpy", threads=1)
    wanted = trained(trainer_of("stopped early"))

    def begin(group: Group) -> None:
        # one process alone asks for the end
        asks = [StopAt(step)] if group.rank == group.size - 1 else []
        trainer_of("stopped early", group, folder=None if group.rank else tmp_path, callbacks=asks).run()

    def resume(group: Group) -> Any:
        arrays, record, _ = group.first(lambda: load_checkpoint(tmp_path))
        trainer = trainer_of("stopped early", group, folder=None if group.rank else tmp_path)
        trainer.restore(arrays, record)
        return trained(trainer)

    in_threads(4, begin)
    for found in in_threads(2, resume):
        assert found == wanted


def test_only_the_first_process_writes(tmp_path: Any) -> None:
    minigrad.use(kernels="numpy", threads=1)
    in_threads(2, lambda group: trainer_of("vae", group, folder=tmp_path / str(group.rank)).run())
    assert (tmp_path / "0/checkpoints").exists()


def test_each_process_computes_only_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    minigrad.use(kernels="numpy", threads=1)
    seen: list[int] = []
    losses = VAE.losses

    def counted(self: VAE, images: Any, *rest: Any, **more: Any) -> Any:
        seen.append(len(images))
        return losses(self, images, *rest, **more)

    monkeypatch.setattr(VAE, "losses", counted)
    in_threads(4, lambda group: trainer_of("vae", group).run())
    assert sorted(set(seen)) == [3, 4, 16]  # the last batch, a fourth of the others, the check at the end of an epoch
    assert seen.count(4) == 4 * 2 * 5


def test_any_loss_may_be_trained() -> None:
    """A loss with a penalty, and with products whose sums over the batch the kernels do not know as such."""
    minigrad.use(kernels="numpy", threads=1)

    class Other(Autoencoder):
        def losses(self, images: Tensor, *given: Any, **more: Any) -> Any:
            loss, _ = super().losses(images, *given, **more)
            weight = self.network.layers["encoder_output"].weight  # type: ignore[attr-defined]
            latents = ops.matmul(self.encoder(images), weight)
            squares = ops.matmul(latents * latents, np.ones((3, 1), np.float32))
            N = len(images.data)
            more_loss = ops.matmul(np.full((1, N), 1 / N, np.float32), squares).reshape(())  # their mean
            return loss + more_loss + (weight * weight).mean(), [more_loss]

    def train(group: Group) -> Any:
        model = Other(IMAGES.shape[1:], *NETWORK, 3, momentum=0.9)
        model.compile(1e-3)
        trainer = Trainer(model, IMAGES, TrainingOptions(**BATCHES), progress=False, group=group)
        trainer.run()
        return {**{name: x.copy() for name, x in trainer.state().items()}, "loss": trainer.history["reconstruction"]}

    wanted, (first, second) = train(ALONE), in_threads(2, train)
    for name, x in wanted.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_allclose(first[name], x, rtol=1e-3, atol=1e-5, err_msg=name)


class FlipsABit(Callback):
    def on_epoch_end(self, trainer: Trainer) -> None:
        weights = trainer.optimizer.flat.values
        weights.view(np.uint32)[7] ^= 1


def test_a_process_whose_weights_differ_is_named() -> None:
    minigrad.use(kernels="numpy", threads=1)

    def train(group: Group) -> None:
        trainer_of("vae", group, callbacks=[FlipsABit()] if group.rank == 2 else []).run()

    with pytest.raises(RuntimeError, match="weights after step 6 of process 2 differ from those of process 0"):
        in_threads(4, train)


@pytest.mark.parametrize(
    ("kernels", "shards", "batch", "message"),
    [
        ("plain", 8, 16, "2 processes need the kernels numba, numpy or cuda, found device cpu, kernels plain"),
        ("numpy", None, 16, "2 processes need shards that they can deal out, found None"),
        ("numpy", 1, 16, "2 processes need shards that they can deal out, found 1"),
        ("numpy", 8, 20, "batch size is 20, .* multiple of 8, such as 16 or 24"),
        ("numpy", 8, 4, "batch size is 4, .* multiple of 8, such as 8 or 16"),
    ],
)
def test_what_cannot_be_shared_is_refused(kernels: str, shards: int | None, batch: int, message: str) -> None:
    minigrad.use(kernels=kernels, threads=1, shards=shards)
    model = VAE(IMAGES.shape[1:], *NETWORK, 3)
    model.compile(1e-2)
    with pytest.raises((DeviceError, ValueError), match=message):
        in_threads(2, lambda group: Trainer(model, IMAGES, TrainingOptions(batch_size=batch), group=group))
