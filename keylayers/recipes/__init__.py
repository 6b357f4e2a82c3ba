"""Compositions: what the command line runs, as functions of plain requests; each reads like its summary."""
