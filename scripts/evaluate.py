#!/usr/bin/env python
"""Measure a saved model on the test images, say what the figures mean, and write
it all down: evaluation.json, and with pictures report.html."""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys._getframe().f_back is None and not sys.flags.safe_path:  # a process of its own
    import early  # noqa: F401  before what takes a second to import

import argparse
import shlex
from pathlib import Path

import autoencoders
from autoencoders.cli import (
    Parser,
    add_common_options,
    add_model_options,
    data_of_model,
    number,
    run_program,
    run_script,
    show,
    text,
    use_backend,
)
from autoencoders.conv_autoencoder import folder_of
from autoencoders.diagnosis import diagnose, verdict
from autoencoders.metrics import library_versions, measure, table
from autoencoders.mixture import load_mixture
from autoencoders.report import all_pictures, draw_film, title_of, write_report
from autoencoders.runs import (
    CLOSE_UPS,
    PICTURES,
    RESULT_FILE,
    RESULTS,
    check_results,
    check_unchanged,
    model_hash,
    read_record,
    recover,
    save_pictures,
    trained_on,
    training_of_run,
    write_json,
)
from autoencoders.training import check_writable, environment
from minigrad.serialize import DataError, write_atomically

MOST_IW_SAMPLES = 1_000_000  # an image: a day of work, and the bound has long stopped moving


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        __doc__,
        "python scripts/evaluate.py --model-dir variational/model",
        "python scripts/evaluate.py --model-dir runs/vae10 --out results/vae10",
    )
    add_model_options(parser, images="images to measure on", seed="of the latent noise and the samples")
    parser.add_argument("--out", metavar="DIR", type=text, help="folder for what is written (default: --model-dir)")
    parser.add_argument("--overwrite", action="store_true", help="replace files in --out that no run has made")
    parser.add_argument(
        "--iw-samples",
        metavar="K",
        type=number(int, 0, MOST_IW_SAMPLES),
        default=500,
        help="importance samples an image for iw_nll, which takes most of the time; 0: without (default: %(default)s)",
    )
    add_common_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)

    def body() -> None:
        backend = use_backend(args)
        folder = folder_of(args.model_dir)
        out = Path(args.out) if args.out else folder
        if args.out and not args.overwrite:
            check_results(out, (*RESULTS, *(f"figures/{name}.png" for name in PICTURES + CLOSE_UPS)))
        recover(folder, show)
        known = model_hash(folder)
        model = autoencoders.load(folder)
        mixture = None if isinstance(model, autoencoders.VAE) else load_mixture(folder)
        dataset = data_of_model(model, folder, args)
        made = not out.exists()
        check_writable(out)
        if made:
            out.rmdir()  # until there is something to lie in it
        trained = trained_on(folder, dataset)
        figures, notes = measure(
            model, dataset, seed=args.seed, iw_samples=args.iw_samples, trained=trained, mixture=mixture
        )
        if figures["iw_nll"] is not None and not training_of_run(folder)[1].binarise:
            notes.append("iw_nll is of binarised images, on which the model was not trained")
        print(f"test set, {len(dataset.test_images)} images:")
        print(table(figures))
        record = {**figures, "model": model.config}
        findings = diagnose(record)
        print(verdict(record))
        for finding in findings:
            print(f"  {finding['finding']}\n    why: {finding['why']}\n    try: {finding['option']}")
        for note in notes:
            show(note)
        record |= {
            "diagnosis": findings,
            "verdict": verdict(record),
            "notes": notes,
            "seed": args.seed,
            "iw_samples": args.iw_samples,
            "command": f"python scripts/evaluate.py {shlex.join(argv)}".strip(),
            "model_sha256": known,
            "data": {"name": dataset.name, "content_hash": dataset.content_hash},
            "environment": environment(backend),
            "versions": library_versions(),
        }
        check_unchanged(folder, known)
        write_json(out / RESULT_FILE, record)
        print(f"wrote {out / RESULT_FILE}")
        drawn = all_pictures(model, dataset, folder, figures["kl_per_dim"], args.seed, mixture, show)
        check_unchanged(folder, known)
        pictures = save_pictures(drawn, out / "figures")
        for path in pictures:
            print(f"drew {path}")
        film = None  # and not what lay there before
        try:
            drawing = draw_film(folder, dataset)
        except DataError as error:
            drawing = b""
            show(f"no film: {error}")
        if drawing:
            film = out / "figures" / "film.gif"
            write_atomically(film, drawing)
            print(f"drew {film}")
        check_unchanged(folder, known)
        try:
            write_report(
                out / "report.html",
                title=title_of(model),
                model=model,
                dataset=dataset,
                measured=record,
                pictures=pictures,
                film=film,
                record=read_record(folder),
            )
            print(f"wrote {out / 'report.html'}")
        except ImportError:
            print('report.html needs the extra eval: pip install ".[eval]"')

    return run_program(body, debug=args.debug)


if __name__ == "__main__":
    run_script(main)
