"""Measure a saved model on the test images, say what the metrics mean, and write
it all down: evaluation.json, and with pictures report.html."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from minigrad.serialize import DataError, write_atomically

from ..evaluation.diagnosis import diagnose, verdict
from ..evaluation.metrics import library_versions, measure, table
from ..evaluation.mixture import prior_of
from ..pictures.gallery import save_pictures
from ..runs.record import model_hash, read_record, trained_on, training_of_run, write_json
from ..runs.replace import CLOSE_UPS, PICTURES, RESULT_FILE, RESULTS, check_results
from ..runs.report import all_pictures, draw_film, write_report
from ..training.checkpoints import environment
from ..training.folder import check_writable
from .models import (
    COMPARE,
    add_model_options,
    check_place,
    compared_runs,
    data_of_model,
    mixture_of,
    model_of,
    other_images,
    places_of,
)
from .options import Option, Parser, number, use_backend
from .program import Output, Program, run_program

MOST_IW_SAMPLES = 1_000_000  # an image: a day of work, and the bound has long stopped moving

WRITTEN: dict[str, Option] = {
    "out": (None, str, "folder for the results (default: --model-dir)"),
    "overwrite": (None, bool, "replace files in --out that no run has made"),
    "iw-samples": (
        0,
        number(int, 0, MOST_IW_SAMPLES),
        "samples per image for iw_nll, a tighter bound; 500 take minutes",
    ),
    **COMPARE,
}


def build_parser(program: Program) -> Parser:
    """The options of the program."""
    examples = "--model-dir variational/model", "--model vae16", "--model-dir runs/vae10 --out results/vae10"
    parser = Parser(__doc__, program, *examples)
    add_model_options(parser, WRITTEN, images="images to measure on", seed="the latent noise and the samples")
    return parser


def main(argv: list[str] | None = None, program: Program | None = None) -> int:
    """Run the program; returns its exit code."""
    program = program or Program.installed("evaluate")
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser(program).parse_args(argv)
    console = Output(args.quiet)

    def body() -> None:
        backend = use_backend(args)
        folder, place = places_of(args)
        out = Path(args.out) if args.out else place
        if args.out and not args.overwrite:
            check_results(out, (*RESULTS, *(f"figures/{name}.png" for name in PICTURES + CLOSE_UPS)))
        model, source, check_unchanged = model_of(args, console.line)
        runs = compared_runs(args, folder)
        mixture = mixture_of(model, source, (out, place), console.warn)
        dataset = data_of_model(model, folder, args, console.prose)
        check_place(args, place, dataset)
        if others := other_images(folder, dataset):
            console.warn(others)
        check_writable(out, keep=False)
        console.line(f"test set, {len(dataset.test_images):,} images:")
        given: dict[str, Any] = {"trained": trained_on(folder, dataset), "mixture": mixture, "progress": not args.quiet}
        metrics, notes = measure(model, dataset, seed=args.seed, iw_samples=args.iw_samples, **given)
        notes += [others] if others else []
        if metrics["iw_nll"] is not None and not training_of_run(folder)[1].binarise:
            notes.append("iw_nll is measured on binarised images, but the model was not trained on such images")
        record = {**metrics, "prior": prior_of(model, mixture), "test_images": len(dataset.test_images)}
        record["model"] = model.config
        console.tell(table(record))
        record["training"] = read_record(folder).get("training", {})
        record |= {"diagnosis": diagnose(record), "verdict": verdict(record)}
        console.prose(record["verdict"])
        for finding in record["diagnosis"]:
            console.prose(f"  {finding['finding']}", "  ")
            console.prose(f"    why: {finding['why']}", " " * 9)
            console.prose(f"    try: {finding['option']}", " " * 9)
        for note in notes:
            console.prose(note)
        if source.parent != folder:
            notes.append(f"measured with {source.relative_to(folder)}, a checkpoint of the run")
        record |= {
            "notes": notes,
            "seed": args.seed,
            "iw_samples": args.iw_samples,
            "command": f"{program} {shlex.join(argv)}".strip(),
            "model_sha256": model_hash(source),
            "data": {"name": dataset.name, "content_hash": dataset.content_hash},
            "environment": environment(backend),
            "versions": library_versions(),
        }
        check_unchanged()
        write_json(out / RESULT_FILE, record)
        console.line(f"wrote {out / RESULT_FILE}")
        drawn = all_pictures(model, dataset, folder, metrics["kl_per_dim"], args.seed, mixture, console.warn)
        check_unchanged()
        save_pictures(drawn, out / "figures", console.line, args.verbose)
        try:
            drawing = draw_film(folder, dataset)
        except DataError as error:
            drawing = b""
            console.warn(f"no film: {error}")
        if drawing:
            write_atomically(out / "figures" / "film.gif", drawing)
            console.line(f"drew {out / 'figures' / 'film.gif'}")
        check_unchanged()
        write_report(out / "report.html", folder, model, dataset, record, mixture, args.seed, lambda _: None, runs)
        console.line(f"wrote {out / 'report.html'}; open it in a browser")

    return run_program(body, debug=args.debug, quiet=args.quiet)
