"""Owns what outlives a process: the registry of models, the artifact cache and the ledger (control only)."""
