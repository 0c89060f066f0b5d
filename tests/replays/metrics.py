"""The metrics' recorded values, metric by metric."""

from replays import metrics_ema, metrics_inception, metrics_lpips, metrics_statistics

PARTS = (metrics_statistics, metrics_ema, metrics_lpips, metrics_inception)


def replay(golden):
    for part in PARTS:
        part.replay(golden)
