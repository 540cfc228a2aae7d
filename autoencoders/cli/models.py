"""What the programs that read a saved model share: the model, its images, and where results go."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from minigrad.serialize import DataError

from ..conv_autoencoder import BATCH, Autoencoder, load
from ..data import NAMES, Dataset, Reading, load_dataset
from ..data.collections import COLLECTIONS
from ..data.dataset import did_you_mean
from ..evaluation.mixture import MIXTURE_FILE, Mixture, load_mixture
from ..keras_files import WEIGHTS_FILE
from ..page.curves import Curves
from ..pictures.gallery import reading_for
from ..runs.record import RECORD_FILE, data_of_run, model_hash, read_record
from ..runs.report import runs_to_compare
from ..runs.start import check_fit
from ..saved import MODEL_FILE, folder_of, source_of
from ..shipped import shipped, shipped_folder
from ..training import latest_checkpoint
from ..training.folder import check_readable
from ..training.memory import check_size
from .options import Option, add_common_options, add_options, number
from .program import UsageError

COMPARE: dict[str, Option] = {
    "compare": (None, str, "another run; the page shows both runs' losses and what differs (default: none)")
}
SAMPLE = "fashion-mnist-sample"
GENERATED = "generated"  # folder, in the working folder, for the results of shipped models


def add_place_options(parser: argparse.ArgumentParser, about: str = "a trained model's folder") -> None:
    """--model-dir or --model: either is enough."""
    either = parser.add_mutually_exclusive_group()
    add_options(either, {"model-dir": ("variational/model", str, about)}, keep=True)
    known = f"a trained model that comes with the package: {', '.join(shipped())}; results go to {GENERATED}/NAME"
    either.add_argument("--model", metavar="NAME", type=shipped_name, help=f"{known} (default: --model-dir)")


def shipped_name(value: str) -> str:
    """The type of --model."""
    names = shipped()
    if value not in names:
        known = f"one of {', '.join(names)} (--model-dir takes a folder){did_you_mean(value, names)}"
        raise argparse.ArgumentTypeError(f"is {value!r} but must be {known}")
    return value


def places_of(args: argparse.Namespace) -> tuple[Path, Path]:
    """(the folder of the model of the options, the folder for its results unless --out names another). Nothing is
    written into the package.

    Raises:
        DataError: a shipped model has changed.
    """
    if not args.model:
        return folder_of(args.model_dir), folder_of(args.model_dir)
    args.model_dir = shipped_folder(args.model)
    return args.model_dir, Path(GENERATED) / args.model


def add_model_options(parser: argparse.ArgumentParser, options: dict[str, Option], *, images: str, seed: str) -> None:
    """The model, what is done with it, which images and random numbers it gets, and the common options."""
    add_place_options(parser)
    add_options(parser, options, keep=True)
    data: dict[str, Option] = {
        "dataset": (None, str, f"{images} (default: the run's; your own images must be named again)"),
        "skip-broken": (None, bool, "leave out picture files that cannot be read"),
        "data-dir": (None, str, "folder of the data set's files (default: the run's)"),
        "seed": (0, number(least=0), f"seed of {seed}"),
    }
    add_options(parser.add_argument_group("data"), data, keep=True)
    add_common_options(parser)


def model_of(args: argparse.Namespace, tell: Callable[[str], None]) -> tuple[Autoencoder, Path, Callable[[], None]]:
    """(the model of `places_of`, its file, a check that raises RuntimeError if the folder's model has changed since).

    If the folder has no model, its newest checkpoint is used, even if the run is still training.

    Raises:
        DataError: there is no model, or no valid one. UsageError: --out is needed for results of this file.
    """
    folder = folder_of(args.model_dir)
    check_readable(folder)
    source = source_of(args.model_dir, tell)
    if Path(args.model_dir).is_file() and source.name not in (MODEL_FILE, WEIGHTS_FILE) and not args.out:
        raise UsageError(f"--out is needed: the results in {folder} belong to its own model, not to {source.name}")
    watched = source if source.parent == folder else folder / MODEL_FILE
    known = model_hash(watched)
    steps = read_record(folder).get("training", {}).get("steps")
    newest = latest_checkpoint(folder)
    if source.name == MODEL_FILE and steps and newest and int(newest.stem.rpartition("-")[2]) > steps:
        tell(f"the run continued after {source} was saved; training with --finish makes a model from {newest.name}")

    def check() -> None:
        if model_hash(watched) != known:
            raise RuntimeError(f"{folder}: the model was changed while this program ran; run it again")

    return load(source), source, check


def mixture_of(
    model: Autoencoder, source: Path, folders: Iterable[Path], warn: Callable[[str], None]
) -> Mixture | None:
    """What samples of a model are drawn from, if one of the folders holds a mixture that was fitted to it; the first
    one counts, and a conditional model has none. warn hears of one that was fitted to other weights.

    Raises:
        DataError: a mixture is damaged.
    """
    for path in () if model.classes else dict.fromkeys(folder / MIXTURE_FILE for folder in folders):
        if os.path.lexists(path):
            if found := load_mixture(source, path.parent):
                return found
            replaced = "generate --mixture-components 50 fits a new one, --mixture-components 0 removes it"
            warn(f"{path} is not used: it was fitted to other weights than those of {source}; {replaced}")
    return None


def check_data_dir(dataset: str, data_dir: str | None) -> None:
    """Raise UsageError where a folder is given for a data set that takes none."""
    if data_dir is not None and dataset not in ("auto", *COLLECTIONS):
        raise UsageError(f"--data-dir is of no use with --dataset {dataset}; leave it out")


def reading_of_data(model: Autoencoder, folder: Path, dataset: str) -> Reading:
    """How a data set is read for a model: as in its run, but folders always in the model's size and colour."""
    data = read_record(folder).get("data", {})
    path, found = Path(dataset).expanduser(), Reading.recorded(data)
    if os.path.realpath(path) != os.path.realpath(data.get("name") or ""):  # of the run's own data set alone
        found = replace(found, test_dir=None, every_tenth=False)
    if found.image_size or found.grayscale or path.is_dir():
        fitting = reading_for(model)
        found = replace(found, image_size=fitting.image_size, grayscale=fitting.grayscale)
    return found


def data_of_model(
    model: Autoencoder, folder: Path, args: argparse.Namespace, tell: Callable[[str], None], *, few: bool = False
) -> Dataset:
    """The data set that the options name, or else the published one of the run in a folder. tell gets its name.

    few: a few images will do, so a shipped model gets the sample that comes with the package, and needs no download.

    A folder may come from a stranger, so a path that only its run.json names is not read, and gets no downloads.

    Raises:
        UsageError: --data-dir has no effect. DataError: the data set is not available, or does not fit the model.
            DeviceError: the model needs more memory than is free.
    """
    sample = SAMPLE if few and args.model and not args.data_dir else None
    name, place = data_of_run(folder, args.dataset or sample, args.data_dir, tell)
    record = folder / RECORD_FILE
    if not args.dataset and name not in NAMES:
        raise DataError(f"{record}: data: names images by a path; if you trust it, add --dataset {shlex.quote(name)}")
    check_data_dir(name, args.data_dir)
    mine = place == args.data_dir
    try:
        how = vars(reading_of_data(model, folder, name))
        how["skip_broken"] |= args.skip_broken
        dataset = load_dataset(name, place, **how, download=mine, progress=not args.quiet)
    except DataError as error:
        hint = "" if mine else f"; {record} names this folder; nothing is written there unless --data-dir names it too"
        raise DataError(f"{error}{hint}") from error
    data = read_record(folder).get("data", {})
    dataset = dataset.as_recorded(data.get("content_hash"), "image_size" not in data)
    tell(dataset.source)
    check_fit(model, dataset)
    check_size(model.config, next(model.batches(BATCH)).stop)
    return dataset


def compared_runs(args: argparse.Namespace, folder: Path) -> list[Curves]:
    """The losses of the run in a folder and of the one that --compare names; none without the option.

    Raises:
        UsageError: they are the same run. DataError: one is no run, or the losses of the two cannot be compared.
    """
    if not args.compare:
        return []
    other = folder_of(args.compare)
    if other.resolve() == folder.resolve():
        raise UsageError("--compare names the run of --model-dir; name another one")
    return runs_to_compare(folder, other)


def other_images(folder: Path, dataset: Dataset) -> str:
    """What to know of a measurement on other images than those of the run in a folder; empty if they are the same."""
    data = read_record(folder).get("data", {})
    if data.get("content_hash") in (None, dataset.content_hash):
        return ""
    if os.path.realpath(data.get("name") or "") == os.path.realpath(dataset.name):
        return f"{dataset.name} has changed since the run: some of the test images may be training images of the run"
    return f"these are not the images of the run, {data.get('name')}, but those of {dataset.name}"


def check_place(args: argparse.Namespace, folder: Path, dataset: Dataset) -> None:
    """Raise UsageError where results of other images would take the place of those of the run's own in its folder."""
    recorded = read_record(folder).get("data", {}).get("content_hash")
    own = not args.out or Path(args.out).resolve() == folder.resolve()
    if own and recorded not in (None, dataset.content_hash):
        needed = "another --out" if args.out else "--out"
        raise UsageError(f"{needed} is needed: the results in {folder} belong to its own images, not to {dataset.name}")
