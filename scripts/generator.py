#!/usr/bin/env python
"""Draw what a saved model does: reconstructions, its latent space and newly
generated images."""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys._getframe().f_back is None and not sys.flags.safe_path:  # a process of its own
    import early  # noqa: F401  before what takes a second to import

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import autoencoders
from autoencoders import figures
from autoencoders.bounds import latents_of
from autoencoders.cli import (
    Output,
    Parser,
    UsageError,
    add_common_options,
    add_model_options,
    data_of_model,
    number,
    run_program,
    run_script,
    text,
    use_backend,
)
from autoencoders.conv_autoencoder import folder_of
from autoencoders.data import Dataset
from autoencoders.dataset import did_you_mean
from autoencoders.mixture import MIXTURE_FILE, Mixture, fit_mixture, load_mixture, save_mixture
from autoencoders.runs import PICTURES, check_results, check_unchanged, draw, model_hash, recover, save_pictures
from autoencoders.training import check_writable

MOST_SAMPLES = 1000  # that a picture can hold


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        __doc__,
        "python scripts/generator.py --model-dir runs/vae10 --samples 100 --seed 7",
        'python scripts/generator.py --model-dir runs/cvae --class "Ankle boot"',
    )
    add_model_options(parser, images="images to encode", seed="of all choices")
    parser.add_argument(
        "--out", metavar="DIR", type=text, help="folder for the pictures (default: figures in --model-dir)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace pictures in --out that no run has made")
    parser.add_argument(
        "--samples",
        metavar="N",
        type=number(int, 1, MOST_SAMPLES),
        default=48,
        help="new images to draw, rounded up to as many of every class (default: %(default)s)",
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="CLASS",
        help="draw new images of this class, a name or number, with a conditional model (default: of every class)",
    )
    parser.add_argument(
        "--mixture-components",
        metavar="N",
        type=number(int, 1),
        help="Gaussians that are fitted now to the latents of a plain autoencoder, to draw new images from, and saved "
        "in --model-dir (default: those saved there, if any)",
    )
    parser.add_argument("--show", action="store_true", help="open the pictures in windows as well")
    add_common_options(parser)
    return parser


def class_number(model: autoencoders.Autoencoder, wanted: str) -> int:
    """The number of a class of a conditional model by its name or number.

    Raises:
        UsageError: there is no such class, or the model is not conditional.
    """
    if not model.classes:
        raise UsageError("--class needs a conditional model (train one with --conditional); this one is not")
    numbers = [str(i) for i in range(model.classes)]
    for names in (model.class_names, numbers):
        found = [i for i, name in enumerate(names) if name.casefold() == wanted.casefold()]
        if found:
            return found[0]
    known = ", ".join(model.class_names) or f"0 to {model.classes - 1}"
    raise UsageError(f"--class is {wanted!r} but this model knows {known}{did_you_mean(wanted, model.class_names)}")


def mixture_of(
    model: autoencoders.Autoencoder, folder: Path, known: str, dataset: Dataset, args: Any, tell: Callable[[str], None]
) -> Mixture | None:
    """What a plain autoencoder draws new images from: the mixture in its folder, or one that is fitted and saved now.

    Raises:
        DataError: it cannot be read, fitted or written. RuntimeError: the model's hash is not the one known any more.
    """
    if args.mixture_components is None:
        mixture = load_mixture(folder)
        if mixture is None:
            tell("no new images: a plain autoencoder draws them from a mixture; --mixture-components 50 fits one")
        return mixture
    mixture = fit_mixture(latents_of(model, dataset.train_images), args.mixture_components, args.seed)
    check_unchanged(folder, known)
    save_mixture(folder, mixture)
    tell(f"fitted {len(mixture.weights)} Gaussians to the latents of {len(dataset.train_images):,} training images")
    tell(f"saved {folder / MIXTURE_FILE}")
    return mixture


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    console = Output(args)

    def body() -> None:
        use_backend(args)
        folder = folder_of(args.model_dir)
        out = Path(args.out) if args.out else folder / "figures"
        if args.out and not args.overwrite and out.resolve() != (folder / "figures").resolve():
            check_results(out, tuple(f"{name}.png" for name in PICTURES))
        recover(folder, console.line)
        known = model_hash(folder)
        model = autoencoders.load(folder)
        generates = isinstance(model, autoencoders.VAE)
        if generates and args.mixture_components is not None:
            raise UsageError("--mixture-components belongs to a plain autoencoder; a vae draws from its prior")
        label = None if args.class_name is None else class_number(model, args.class_name)
        dataset = data_of_model(model, folder, args, console.line)
        mixture = None if generates else mixture_of(model, folder, known, dataset, args, console.line)
        pictures = draw(model, dataset, seed=args.seed, count=args.samples, label=label, mixture=mixture)
        check_unchanged(folder, known)
        if not args.out:
            check_writable(folder)
        console.drew(save_pictures(pictures, out))
        if args.show:
            figures.show(list(pictures.values()))

    return run_program(body, debug=args.debug)


if __name__ == "__main__":
    run_script(main)
