"""Benchmarks: ``python -m benchmarks.NAME [--json]``. CPU seconds on one thread, ours beside a reference in the same run."""

import os

# before any library that reads them is imported
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
