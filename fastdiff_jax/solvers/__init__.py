"""Solver steps, their tables and the driver that scans them."""
