"""Run folders: what a training leaves behind, and how it goes on after an interruption.

A folder holds model.safetensors, checkpoints/, history.csv, history.jsonl, run.json, figures/ and film/; what
`evaluate` and `explore` add (evaluation.json, report.html, explore.html); old-1, old-2 ... with the runs that
--overwrite has replaced; and the hidden .lock, which one training holds.
"""

from .run import Run
from .start import resume_run, start_run

__all__ = ["Run", "resume_run", "start_run"]
