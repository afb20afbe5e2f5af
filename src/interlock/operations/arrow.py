"""Decides how pyarrow is imported: it is an extra, and whoever lacks it hears which."""

from interlock.core.errors import MissingExtra

try:
    import pyarrow as pyarrow
    import pyarrow.parquet as parquet
except ImportError:
    raise MissingExtra("pyarrow", "parquet") from None

__all__ = ["parquet", "pyarrow"]
