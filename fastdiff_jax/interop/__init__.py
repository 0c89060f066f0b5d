"""Weights and names of other code bases; reads files, writes none."""
