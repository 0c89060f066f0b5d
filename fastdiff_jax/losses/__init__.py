"""Differentiable functionals of arrays and denoisers."""
