"""Interlock: a trained model becomes a production service that cannot silently ship a worse version."""
