"""Flash Diffusion: levels and laws, solves, losses with gradients, samplers, and Stable Diffusion 3's flow."""

from replays import flash_flow, flash_levels, flash_losses, flash_samples


def replay(golden):
    flash_levels.replay(golden)
    flash_losses.replay(golden)
    flash_samples.replay(golden)
    flash_flow.replay(golden)
