"""Write a saved model for another program: ONNX, PyTorch or Keras 3. It reads
files of PyTorch (.safetensors) and Keras (.keras), too."""

from __future__ import annotations

from pathlib import Path

from minigrad.serialize import DataError

from ..export import FILES, export
from .models import add_place_options, model_of, places_of
from .options import Option, Parser, add_common_options, add_options, one_of, use_backend
from .program import Output, Program, run_program

WRITTEN: dict[str, Option] = {
    "out": (None, str, "folder for the files (default: export in --model-dir)"),
    "overwrite": (None, bool, "replace files in --out"),
}


def build_parser(program: Program) -> Parser:
    """The options of the program."""
    examples = "--model-dir runs/vae10 --format onnx", "--model-dir model.keras --format torch --out for_torch"
    parser = Parser(__doc__, program, *examples)
    parser.add_argument(
        "--format",
        metavar=f"{{{','.join(FILES)}}}",
        type=one_of(tuple(FILES)),
        default="onnx",
        help="; ".join(f"{name}: {', '.join(files)}" for name, files in FILES.items()) + " (default: onnx)",
    )
    add_place_options(parser, "a trained model's folder, or a model's file")
    add_options(parser, WRITTEN, keep=True)
    add_common_options(parser)
    return parser


def main(argv: list[str] | None = None, program: Program | None = None) -> int:
    """Run the program; returns its exit code."""
    args = build_parser(program or Program.installed("export")).parse_args(argv)
    console = Output(args.quiet)

    def body() -> None:
        use_backend(args)
        _, place = places_of(args)
        model, _, _ = model_of(args, console.line)
        out = Path(args.out) if args.out else place / "export"
        if not args.out and out.is_symlink():
            raise DataError(f"{out}: expected a folder, found a link; remove the link, or choose a folder with --out")
        console.line(model.title)
        for path in export(model, args.format, out, overwrite=args.overwrite):
            console.line(f"wrote {path}")

    return run_program(body, debug=args.debug, quiet=args.quiet)
