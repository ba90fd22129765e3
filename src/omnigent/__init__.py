"""Omnigent: one layer above coding agents. See docs/architecture.md for the map."""

__version__ = "0.1.0"
