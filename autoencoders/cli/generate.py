"""Draw what a saved model does: reconstructions, its latent space and newly
generated images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from minigrad.serialize import DataError, numbered

from ..conv_autoencoder import VAE, Autoencoder
from ..data import Dataset
from ..data.dataset import did_you_mean
from ..evaluation.bounds import binarised, draws_of, latents_of
from ..evaluation.mixture import MIXTURE_FILE, NORMAL, Mixture, fit_mixture, prior_of, save_mixture
from ..pictures import canvas
from ..pictures.export import save_latents, save_singles
from ..pictures.gallery import draw, draw_files, save_pictures
from ..pictures.images import new_images
from ..runs.record import has_used, trained_on, training_of_run
from ..runs.replace import PICTURES, check_results
from ..training.folder import check_writable
from .models import add_model_options, check_place, data_of_model, mixture_of, model_of, places_of
from .options import Option, Parser, number, use_backend
from .program import Output, Program, UsageError, run_program

MOST_SAMPLES, MOST_SINGLES = 1000, 100_000  # that one picture can hold, and that --format writes

DRAWN: dict[str, Option] = {
    "out": (None, str, "folder for the pictures (default: figures in --model-dir)"),
    "overwrite": (None, bool, "replace pictures in --out that no run has made"),
    "samples": (48, number(int, 1, MOST_SINGLES), "new images to draw, rounded up to as many of every class"),
    "class": (None, str, "draw new images of this class, a name or number, with a conditional model (default: all)"),
    "format": (None, str, "write new images also as --out/samples/0001.png and so on, or samples.npz (default: no)"),
    "encode": (None, str, ".csv or .npz file for the latents of the test images, or of all --dataset (default: no)"),
    "mixture-components": (
        None,
        number(int, 0),
        "Gaussians to fit to the latents of the training images, and to draw new images from, now and later; 0 removes "
        f"them, so that new images come from {NORMAL} again; not for conditional models (default: those of an earlier "
        "call, if any)",
    ),
    "show": (None, bool, "open the pictures in windows as well"),
}


def build_parser(program: Program) -> Parser:
    """The options of the program."""
    examples = "--model vae16", "--model-dir runs/vae10 --samples 100", '--model-dir runs/cvae --class "Ankle boot"'
    parser = Parser(__doc__, program, *examples)
    add_model_options(parser, DRAWN, images="images to encode", seed="all choices")
    parser.add_argument(
        "--image",
        metavar="FILE",
        type=Path,
        nargs="+",
        help="reconstruct these picture files, and draw nothing else (default: draw samples and test images)",
    )
    return parser


def class_number(model: Autoencoder, wanted: str) -> int:
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


def latents_to_fit(model: Autoencoder, images: np.ndarray, binarise: bool, seed: int) -> np.ndarray:
    """What a mixture is fitted to (N, Z): the latents of images, for a VAE one draw of q(z | x) for each.

    binarise: whether the model was trained on binarised images.
    """
    images = binarised(images) if binarise else images
    return draws_of(model, images, seed=seed) if isinstance(model, VAE) else latents_of(model, images)


def fitted(
    model: Autoencoder, folder: Path, dataset: Dataset, components: int, seed: int, tell: Callable[[str], None]
) -> Mixture:
    """A mixture for the model of a folder, of the images that it was trained on; tell hears how many they are. If they
    are not known, it is of all training images of the data set.

    Raises:
        UsageError: there are fewer images than components. DivergedError: the latents are not finite.
    """
    images = dataset.train_images[trained_on(folder, dataset)]
    count = len(images)
    if components > count:
        raise UsageError(f"--mixture-components is {components} but must be at most {count}, the number of images")
    whose = f"{'training ' * has_used(folder, dataset)}image{'s' * (count != 1)}"
    time = ", which takes some minutes" if count * components > 1_000_000 else ""
    tell(f"fitting {components} Gaussian{'s' * (components != 1)} to the latents of {count:,} {whose}{time}")
    return fit_mixture(latents_to_fit(model, images, training_of_run(folder)[1].binarise, seed), components, seed)


def main(argv: list[str] | None = None, program: Program | None = None) -> int:
    """Run the program; returns its exit code."""
    program = program or Program.installed("generate")
    parser = build_parser(program)
    args = parser.parse_args(argv)
    if args.samples > MOST_SAMPLES and not args.format:
        parser.error(f"--samples is {args.samples}, but a picture holds {MOST_SAMPLES}; --format writes more")
    if args.encode and Path(args.encode).suffix.lower() not in (".csv", ".npz"):
        parser.error(f"--encode is {args.encode!r} but must end in .csv or .npz")
    if len(asked := [f"--{name}" for name in ("image", "encode", "format") if getattr(args, name)]) > 1:
        parser.error(f"{' and '.join(asked)} cannot be combined; call the program once for each")
    components = args.mixture_components
    if components is not None and (args.image or args.encode):
        both = f"--{'image' if args.image else 'encode'} and --mixture-components cannot be combined"
        parser.error(f"{both}; call the program once for each. Fitting needs training images, which --dataset names")
    console = Output(args.quiet)

    def body() -> None:
        use_backend(args)
        folder, place = places_of(args)
        home = Path(args.out) if args.out else place  # of a mixture
        out = Path(args.out) if args.out else place / "figures"
        if args.encode and os.path.lexists(args.encode) and not args.overwrite:
            raise FileExistsError(f"{args.encode} exists; use --overwrite to replace it, or another name")
        if args.out and not args.overwrite and out.resolve() != (folder / "figures").resolve():
            singles = (path.relative_to(out).as_posix() for path in numbered(out, "samples/*.png"))
            fits = [] if components is None else [MIXTURE_FILE]
            check_results(out, (*(f"{name}.png" for name in PICTURES), "samples.npz", *singles, *fits))
        model, source, check_unchanged = model_of(args, console.line)
        generates = isinstance(model, VAE)
        if components is not None and model.classes:
            why = "its samples are drawn for each class; a mixture knows no classes"
            raise UsageError(f"--mixture-components cannot be used with a conditional model: {why}")
        label = None if vars(args)["class"] is None else class_number(model, vars(args)["class"])
        if args.image:
            if model.classes and label is None:
                raise UsageError("--image needs the --class of the pictures with a conditional model")
            check_writable(out)
            save_pictures(draw_files(model, args.image, label, console.line), out, console.line, args.verbose)
            return
        saved = components is None and not args.encode
        mixture = mixture_of(model, source, (home, place), console.warn) if saved else None
        dataset = None
        try:
            dataset = data_of_model(model, folder, args, console.prose, few=not components)
        except DataError as error:
            if components and not (args.dataset or args.data_dir):
                needed = "--mixture-components: fitting needs training images, which --dataset names"
                raise UsageError(f"{needed} ({error})") from error
            if args.dataset or args.data_dir or args.encode or not (generates or mixture):
                raise
            console.warn(f"left out are reconstructions, latent space and interpolations, which need images: {error}")
        if args.encode and dataset:
            parts = ("train", "test") if args.dataset else ("test",)
            split = not args.dataset or has_used(folder, dataset)
            console.prose(f"wrote {save_latents(model, dataset, parts, split, Path(args.encode))}")
            return
        if dataset:
            check_place(args, place, dataset)
        if components and dataset:
            check_writable(home, keep=False)
            mixture = fitted(model, folder, dataset, components, args.seed, console.line)
        if prior := prior_of(model, mixture):
            console.line(f"new images come from {'the ' * (prior != NORMAL)}{prior}")
        if not (generates or mixture):
            none = "no new images: a plain autoencoder draws them from a mixture; --mixture-components 50 fits one"
            if args.format:
                raise UsageError(none)
            console.prose(none)
        count = min(args.samples, MOST_SAMPLES)
        pictures = draw(model, dataset, seed=args.seed, count=count, label=label, mixture=mixture)
        check_unchanged()
        if not args.out:
            check_writable(place)
        save_pictures(pictures, out, console.line, args.verbose)
        if args.format:
            classes = range(model.classes) if label is None else [label]
            new, labels = new_images(model, args.samples, args.seed, classes, mixture)
            console.line(f"wrote {len(new):,} new images to {save_singles(new, labels, out, args.format)}")
        if components is not None:
            check_unchanged()
            if mixture:
                console.line(f"saved {save_mixture(source, mixture, home)}")
            elif os.path.lexists(home / MIXTURE_FILE):
                (home / MIXTURE_FILE).unlink()
                console.line(f"removed {home / MIXTURE_FILE}")
        if args.show:
            canvas.show(pictures.values())

    return run_program(body, debug=args.debug, quiet=args.quiet)
