"""The data plane: batching, placement, admission, versions and counting, without protocol or database."""
