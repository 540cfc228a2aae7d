"""The programs: `autoencoders train`, `generate` and `evaluate`, which scripts/ starts, too, and `export`."""

import os

# A notebook sets this for programs that it starts, too, and matplotlib does not start where that backend is missing.
if os.environ.get("MPLBACKEND", "").startswith("module://matplotlib_inline"):
    del os.environ["MPLBACKEND"]
