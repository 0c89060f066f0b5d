"""Fast diffusion in JAX: teachers that train faster, students that sample in one to a few steps."""
