"""Decides how pyarrow is imported: it is an extra, and whoever lacks it hears which."""

import os

from interlock.core.errors import MissingExtra

# Arrow's own pool takes fresh pages from the kernel for each batch of rows: clearing them is what costs.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
try:
    import pyarrow as pyarrow
    import pyarrow.parquet as parquet
except ImportError:
    raise MissingExtra("pyarrow", "parquet") from None

__all__ = ["parquet", "pyarrow"]
