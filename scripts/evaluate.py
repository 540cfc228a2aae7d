#!/usr/bin/env python
"""Measure a saved model on the test images and write the figures to evaluation.json."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import autoencoders
import minigrad
from autoencoders.cli import Parser, add_common_options, add_model_options, run_program
from autoencoders.data import load_dataset
from autoencoders.evaluation import evaluate, table
from autoencoders.runs import data_of_run, write_json
from autoencoders.training import environment


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, epilog="example: python scripts/evaluate.py --model-dir variational/model")
    add_model_options(parser, images="images to measure on", seed="of the latent noise")
    parser.add_argument("--out", metavar="DIR", help="folder for evaluation.json (default: --model-dir)")
    add_common_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.seed < 0:
        parser.error("--seed must not be negative")

    def body() -> None:
        backend = minigrad.use(args.device or "cpu")
        folder = Path(args.model_dir)
        model = autoencoders.load(folder)
        dataset = load_dataset(*data_of_run(folder, args.dataset, args.data_dir))
        print(dataset.source)
        measured = evaluate(model, dataset.test_images, args.seed, labels=dataset.test_labels)
        print(f"test set, {len(dataset.test_images)} images:")
        print(table(measured))
        record = {
            **measured,
            "seed": args.seed,
            "data": {"name": dataset.name, "content_hash": dataset.content_hash},
            "environment": environment(backend),
        }
        path = (Path(args.out) if args.out else folder) / "evaluation.json"
        write_json(path, record)
        print(f"wrote {path}")

    return run_program(body, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
