"""The metrics' recorded values, metric by metric."""

from replays import metrics_lpips

PARTS = (metrics_lpips,)


def replay(golden):
    for part in PARTS:
        part.replay(golden)
