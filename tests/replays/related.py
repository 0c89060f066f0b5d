"""The related systems' recorded values, system by system."""

from replays import (
    related_deis,
    related_ggdm,
    related_paradigms,
    related_pndm,
    related_rhork,
    related_scheduler,
)

PARTS = (
    related_paradigms,
    related_deis,
    related_rhork,
    related_pndm,
    related_ggdm,
    related_scheduler,
)


def replay(golden):
    for part in PARTS:
        part.replay(golden)
