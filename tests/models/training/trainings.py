"""Small models and trainings for the tests beside this file."""

from pathlib import Path

import numpy as np

from autoencoders import VAE, Autoencoder, Callback, TrainingOptions
from autoencoders.conv_autoencoder import from_config
from autoencoders.data import load_dataset
from autoencoders.runs import resume_run, start_run
from autoencoders.training import Trainer
from minigrad.serialize import load_state

SHAPE = (8, 8, 1)
COUNT, BATCH = 26, 4  # of them 3 are held out, 23 are left: 6 steps an epoch, the last with 3 images
TIMES = ("seconds", "images_per_second")


def pictures(count: int = COUNT, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), dtype=np.uint8)


def model_of(kind: str = "ae", **options) -> Autoencoder:
    cls = Autoencoder if kind == "ae" else VAE
    return cls(SHAPE, (2, 3), (3, 3), (2, 1), 2, **options)


def compiled(kind: str = "ae", rate: float = 1e-2, **options) -> Autoencoder:
    model = model_of(kind, **options)
    model.compile(rate)
    return model


def unconditional(model: VAE, label: np.ndarray) -> VAE:
    """What a conditional model is for one label, of shape (classes,): the label's weights are part of the biases."""
    plain, state = from_config({**model.config, "classes": 0, "class_names": ()}), model.network.state_dict()
    for name in ("mu", "log_variance", "decoder_dense"):
        weight, of_label = np.split(state[f"{name}.weight"], [-len(label)])
        state |= {f"{name}.weight": weight, f"{name}.bias": state[f"{name}.bias"] + label @ of_label}
    plain.to(dtype=state["mu.weight"].dtype)
    plain.network.load_state_dict(state)
    return plain


def weights(model: Autoencoder) -> dict[str, bytes]:
    return {name: x.tobytes() for name, x in model.network.state_dict().items()}


def timeless(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def steps_of(folder: Path) -> list[int]:
    return [int(path.stem[5:]) for path in sorted((folder / "checkpoints").glob("step-*"))]


def as_floats(images: np.ndarray) -> np.ndarray:
    """As a step gets them."""
    return images.astype(np.float32) / 255


class Recorded(Callback):
    """Events, and what each step received and gave."""

    def __init__(self):
        self.events: list[str] = []
        self.steps: list[dict] = []

    def on_fit_begin(self, trainer):
        self.events.append("fit begin")
        real = trainer.step

        def step(*given):
            losses = real(*given)
            copies = [None if x is None else np.array(x) for x in (*given, losses)]
            names = ["images", "noise", "scalars", "labels", "targets"][: len(given)]
            self.steps.append(dict(zip([*names, "losses"], copies, strict=True)))
            return losses

        trainer.step = step

    def on_epoch_begin(self, trainer):
        self.events.append(f"epoch begin {trainer.progress.epoch}")

    def on_batch_begin(self, trainer):
        self.events.append(f"batch begin {trainer.progress.step}")

    def on_batch_end(self, trainer):
        self.events.append(f"batch end {trainer.progress.step}")

    def on_epoch_end(self, trainer):
        self.events.append(f"epoch end {trainer.progress.epoch} {len(trainer.history)}")

    def on_fit_end(self, trainer):
        self.events.append("fit end")


def recorded(kind: str = "vae", images: np.ndarray | None = None, rate: float = 1e-2, epochs: int = 2, **options):
    """(what the callback saw, the history, the trainer) of a run."""
    callback, model = Recorded(), compiled(kind, rate, **options.pop("model", {}))
    labels, images = options.pop("labels", None), pictures() if images is None else images
    chosen = TrainingOptions(**{"batch_size": BATCH, "epochs": epochs, **options})
    trainer = Trainer(model, images, chosen, labels=labels, callbacks=[callback], progress=False)
    return callback, trainer.run(), trainer


FULL = {"validation": 3, "patience": 2, "schedule": "cosine", "warmup_steps": 4, "clip_norm": 1.0, "epochs": 3}
RESUMED = {
    "ae": {**FULL},
    "vae": {**FULL, "kl_warmup": 1.5},
    "plain": {"epochs": 3},
    "conditional": {**FULL},
    "binarised": {**FULL, "binarise": True},
    "denoising": {**FULL, "denoise": 0.3},
    "weighted": {**FULL, "iw_samples": 3, "kl_warmup": 1.5},
    "ae denoising": {**FULL, "denoise": 0.3},
    "augmented": {**FULL, "augment": True},
}
MODELS: dict[str, dict] = {"conditional": {"classes": 3}}
LABELS = np.random.default_rng(1).integers(0, 3, COUNT)


def trainer_of(kind: str, folder: Path | None, callbacks=(), **options) -> Trainer:
    options = {"batch_size": BATCH, **RESUMED[kind], **options}
    model = compiled("ae" if kind.startswith("ae") else "vae", **MODELS.get(kind, {}))
    return Trainer(
        model, pictures(), TrainingOptions(**options), labels=LABELS, folder=folder, callbacks=callbacks, progress=False
    )


def resume(folder: Path, told: list[str] | None = None, **options):
    return resume_run(folder, progress=False, tell=[].append if told is None else told.append, **options)


def digest(folder: Path) -> str:
    """That of a finished run's model."""
    return load_state(folder / "model.safetensors")[2]


def run_of(array_file: Path, folder: Path, *callbacks: Callback, overwrite: bool = False, **options):
    """A run of a VAE on the images of a file, not begun."""
    options = TrainingOptions(**{"batch_size": BATCH, "epochs": 2, **options})
    how = {"learning_rate": 1e-2, "overwrite": overwrite, "progress": False, "command": "test"}
    run = start_run(model_of("vae"), load_dataset(array_file), options, folder, **how)
    run.trainer.callbacks = callbacks or run.trainer.callbacks
    return run


def execute(run) -> list[str]:
    told: list[str] = []
    run.execute(told.append)
    return told


def files_in(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
