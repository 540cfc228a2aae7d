#!/usr/bin/env python
"""Draw what a saved model does: reconstructions, its latent space and, for a VAE, newly generated images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import autoencoders
import minigrad
from autoencoders import figures
from autoencoders.cli import Parser, UsageError, add_common_options, add_model_options, run_program
from autoencoders.data import load_dataset
from autoencoders.runs import data_of_run, draw, save_pictures


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        description=__doc__,
        epilog="example: python scripts/generator.py --model-dir variational/model --samples 100 --seed 7",
    )
    add_model_options(parser, images="images to encode", seed="of all choices")
    parser.add_argument("--out", metavar="DIR", help="folder for the pictures (default: figures in --model-dir)")
    parser.add_argument(
        "--samples", metavar="N", type=int, default=48, help="new images to draw (default: %(default)s)"
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="CLASS",
        help="draw new images of this class, a name or number, with a conditional model (default: of every class)",
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
    raise UsageError(f"--class is {wanted!r} but this model knows {known}")


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.samples < 1 or args.seed < 0:
        parser.error("--samples must be at least 1 and --seed not negative")

    def body() -> None:
        minigrad.use(args.device or "cpu")
        folder = Path(args.model_dir)
        model = autoencoders.load(folder)
        label = None if args.class_name is None else class_number(model, args.class_name)
        dataset = load_dataset(*data_of_run(folder, args.dataset, args.data_dir))
        print(dataset.source)
        pictures = draw(model, dataset, seed=args.seed, count=args.samples, label=label)
        for path in save_pictures(pictures, Path(args.out) if args.out else folder / "figures"):
            print(f"drew {path}")
        if args.show:
            figures.show(list(pictures.values()))

    return run_program(body, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
