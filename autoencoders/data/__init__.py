"""Data sets: the published ones, which are found, fetched and verified, and a user's own.

Every fault of a file is a `DataError` whose message names the file, the field, what was expected and what was found.
"""

from minigrad.serialize import DataError

from .dataset import Dataset, Reading
from .idx import read_idx
from .load import NAMES, load_dataset

__all__ = ["NAMES", "DataError", "Dataset", "Reading", "load_dataset", "read_idx"]
