"""Measures Interlock against frozen reference servers and against other model servers, in one run."""
