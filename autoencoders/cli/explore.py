"""Write a page in which you move through the latent space of a saved model,
and open it in a browser."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

from ..page.page import is_page
from ..runs.report import write_report
from ..training.folder import check_writable
from .models import COMPARE, add_model_options, compared_runs, data_of_model, mixture_of, model_of, places_of
from .options import Option, Parser, use_backend
from .program import Output, Program, UsageError, run_program

WRITTEN: dict[str, Option] = {
    "overwrite": (None, bool, "replace a file of this name that is no such page"),
    "no-open": (None, bool, "do not open the page in a browser"),
    **COMPARE,
}


def build_parser(program: Program) -> Parser:
    """The options of the program."""
    examples = "--model vae16", "--model-dir runs/vae10", "--model-dir runs/vae10 --compare runs/vae2"
    parser = Parser(__doc__, program, *examples)
    add_model_options(parser, WRITTEN, images="images to show", seed="the choice of images and the samples")
    about = "HTML file to write (default: explore.html in --model-dir)"
    parser.add_argument("--out", metavar="FILE", help=about)
    return parser


def main(argv: list[str] | None = None, program: Program | None = None) -> int:
    """Run the program; returns its exit code."""
    args = build_parser(program or Program.installed("explore")).parse_args(argv)
    console = Output(args.quiet)

    def body() -> None:
        use_backend(args)
        folder, place = places_of(args)
        out = Path(args.out) if args.out else place / "explore.html"
        if out.suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"--out is {args.out!r} but must end in .html")
        if os.path.lexists(out) and not (args.overwrite or is_page(out)):
            raise FileExistsError(f"{out} exists and is no such page; use --overwrite to replace it, or another --out")
        model, source, check_unchanged = model_of(args, console.line)
        runs = compared_runs(args, folder)
        mixture = mixture_of(model, source, (out.parent, place), console.warn)
        dataset = data_of_model(model, folder, args, console.prose, few=True)
        check_writable(out.parent)
        check_unchanged()
        write_report(out, folder, model, dataset, None, mixture, args.seed, console.warn, runs)
        console.line(f"wrote {out}")
        if not args.no_open and has_display():
            webbrowser.open(out.resolve().as_uri())

    return run_program(body, debug=args.debug, quiet=args.quiet)


def has_display() -> bool:
    """Whether a browser with a window can be opened here, and not one in the terminal."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
