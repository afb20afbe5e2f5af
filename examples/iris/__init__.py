"""Owns the iris example: two classifiers, one node, one client, and releases under load."""
