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
from typing import Any

import autoencoders
from autoencoders.cli import (
    Option,
    Output,
    Parser,
    add_model_options,
    check_place,
    data_of_model,
    model_of,
    number,
    run_program,
    run_script,
    use_backend,
)
from autoencoders.conv_autoencoder import folder_of
from autoencoders.evaluation.diagnosis import diagnose, verdict
from autoencoders.evaluation.metrics import library_versions, measure, table
from autoencoders.evaluation.mixture import load_mixture
from autoencoders.pictures.report import all_pictures, draw_film, write_report
from autoencoders.runs import (
    CLOSE_UPS,
    PICTURES,
    RESULT_FILE,
    RESULTS,
    check_results,
    model_hash,
    read_record,
    save_pictures,
    tell_pictures,
    trained_on,
    training_of_run,
    write_json,
)
from autoencoders.training import check_writable, environment
from minigrad.serialize import DataError, write_atomically

MOST_IW_SAMPLES = 1_000_000  # an image: a day of work, and the bound has long stopped moving


WRITTEN: dict[str, Option] = {
    "out": (None, str, "folder for what is written (default: --model-dir)"),
    "overwrite": (None, bool, "replace files in --out that no run has made"),
    "iw-samples": (0, number(int, 0, MOST_IW_SAMPLES), "per image for iw_nll, a tighter bound; 500 take minutes"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        __doc__,
        "python scripts/evaluate.py --model-dir variational/model",
        "python scripts/evaluate.py --model-dir runs/vae10 --out results/vae10",
        prog="evaluate.py",
    )
    add_model_options(parser, WRITTEN, images="images to measure on", seed="of the latent noise and the samples")
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    console = Output(args)

    def body() -> None:
        backend = use_backend(args)
        folder = folder_of(args.model_dir)
        out = Path(args.out) if args.out else folder
        if args.out and not args.overwrite:
            check_results(out, (*RESULTS, *(f"figures/{name}.png" for name in PICTURES + CLOSE_UPS)))
        model, source, check_unchanged = model_of(args, console.line)
        mixture = None if isinstance(model, autoencoders.VAE) else load_mixture(source)
        dataset = data_of_model(model, folder, args, console.prose)
        check_place(args, folder, dataset)
        made = not out.exists()
        check_writable(out)
        if made:
            out.rmdir()  # until there is something to lie in it
        console.line(f"test set, {len(dataset.test_images):,} images:")
        given: dict[str, Any] = {"trained": trained_on(folder, dataset), "mixture": mixture, "progress": not args.quiet}
        figures, notes = measure(model, dataset, seed=args.seed, iw_samples=args.iw_samples, **given)
        if figures["iw_nll"] is not None and not training_of_run(folder)[1].binarise:
            notes.append("iw_nll is of binarised images, on which the model was not trained")
        console.tell(table(figures))
        record = {**figures, "model": model.config, "training": read_record(folder).get("training", {})}
        findings = diagnose(record)
        console.prose(verdict(record))
        for finding in findings:
            console.prose(f"  {finding['finding']}", "  ")
            console.prose(f"    why: {finding['why']}", " " * 9)
            console.prose(f"    try: {finding['option']}", " " * 9)
        for note in notes:
            console.prose(note)
        if source.parent != folder:
            notes.append(f"measured with {source.relative_to(folder)}, a checkpoint of the run")
        record |= {
            "diagnosis": findings,
            "verdict": verdict(record),
            "notes": notes,
            "seed": args.seed,
            "iw_samples": args.iw_samples,
            "command": f"python scripts/evaluate.py {shlex.join(argv)}".strip(),
            "model_sha256": model_hash(source),
            "data": {"name": dataset.name, "content_hash": dataset.content_hash},
            "environment": environment(backend),
            "versions": library_versions(),
        }
        check_unchanged()
        write_json(out / RESULT_FILE, record)
        console.line(f"wrote {out / RESULT_FILE}")
        drawn = all_pictures(model, dataset, folder, figures["kl_per_dim"], args.seed, mixture, console.warn)
        check_unchanged()
        pictures = save_pictures(drawn, out / "figures")
        tell_pictures(pictures, console.line, args.verbose)
        film = None  # and not what lay there before
        try:
            drawing = draw_film(folder, dataset)
        except DataError as error:
            drawing = b""
            console.warn(f"no film: {error}")
        if drawing:
            film = out / "figures" / "film.gif"
            write_atomically(film, drawing)
            console.line(f"drew {film}")
        check_unchanged()
        try:
            write_report(
                out / "report.html",
                model=model,
                dataset=dataset,
                measured=record,
                pictures=pictures,
                film=film,
                record=read_record(folder),
            )
            console.line(f"wrote {out / 'report.html'}; open it in a browser")
        except ImportError:
            console.line('report.html needs the extra eval: pip install ".[eval]"')

    return run_program(body, debug=args.debug, quiet=args.quiet)


if __name__ == "__main__":
    run_script(main)
