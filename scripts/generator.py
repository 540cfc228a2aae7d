#!/usr/bin/env python
"""Draw what a saved model does: reconstructions, its latent space and, for a VAE, newly generated images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import autoencoders
import minigrad
from autoencoders import figures
from autoencoders.cli import Parser, add_common_options, add_model_options, run_program
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
    parser.add_argument("--show", action="store_true", help="open the pictures in windows as well")
    add_common_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.samples < 1 or args.seed < 0:
        parser.error("--samples must be at least 1 and --seed not negative")

    def body() -> None:
        minigrad.use(args.device or "cpu")
        folder = Path(args.model_dir)
        model = autoencoders.load(folder)
        dataset = load_dataset(*data_of_run(folder, args.dataset, args.data_dir))
        print(dataset.source)
        pictures = draw(model, dataset, seed=args.seed, count=args.samples)
        for path in save_pictures(pictures, Path(args.out) if args.out else folder / "figures"):
            print(f"drew {path}")
        if args.show:
            figures.show(list(pictures.values()))

    return run_program(body, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
