"""Metrics on features: Frechet distance, KID, Inception Score, precision and recall, CLIP score; quantisers."""

import numpy as np
import scipy.linalg

from fastdiff_jax.data import stored
from fastdiff_jax.metrics import clip_score, frechet, inception_score, kid, precision_recall


def replay(golden):
    for prefix, part in PARTS.items():
        if golden.keys(prefix):
            part(golden)


def frechet_distances(golden):
    names = [key.removeprefix("fd_feat_") for key in golden.keys("fd_feat_")]
    sets = {name: golden.input(f"fd_feat_{name}") for name in names}
    known = {name: frechet.statistics(frechet.moments(values)) for name, values in sets.items()}
    for name, (mean, covariance) in known.items():
        golden.check(f"fd_mu_{name}", mean, rtol=1e-12)
        golden.check(f"fd_cov_{name}", covariance, rtol=1e-12)
    pairs = [(a, b) for a in names for b in names if f"fd_{a}{b}" in golden.arrays]
    for a, b in pairs:
        truth = golden.arrays[f"fd_{a}{b}"]
        golden.check(f"fd_{a}{b}", frechet.distance(*known[a], *known[b]), rtol=0, atol=1e-10)
        assert abs(frechet.distance(*known[a], *known[b], form="roots") - truth) <= 1e-6
        assert abs(frechet.of_features(sets[a], sets[b]) - truth) <= 1e-10
        golden.check(f"fd_{a}{b}_sqrtm", by_sqrtm(known[a], known[b]), rtol=0, atol=1e-6)
    values, sizes = golden.input("fd_offset_feat"), golden.input("fd_offset_sizes")
    total = frechet.gathered(np.split(values, np.cumsum(sizes)[:-1]))
    golden.check("fd_offset_mu", total.mean, rtol=1e-12)
    golden.check("fd_offset_cov", frechet.covariance(total), rtol=1e-8)


def by_sqrtm(left, right):
    """What publishers of FID compute, with scipy's own rounding."""
    root = scipy.linalg.sqrtm(left.covariance @ right.covariance)
    shift = np.sum((left.mean - right.mean) ** 2)
    return shift + np.trace(left.covariance) + np.trace(right.covariance) - 2 * np.trace(root).real


def kernel_distances(golden):
    x, y = golden.input("kid_x"), golden.input("kid_y")
    subsets, size = golden.arrays["kid_idx_x"].shape
    settings = kid.Settings(subsets, size)
    rows = list(kid.draws(len(x), len(y), settings))
    for name, drawn in zip("xy", zip(*rows, strict=True), strict=True):
        golden.check(f"kid_idx_{name}", drawn, rtol=0)
    found = kid.by_subset(x, y, settings)
    golden.check("kid_subset_mmd2", found, rtol=0, atol=1e-12)
    golden.check("kid_mean", found.mean(), rtol=0, atol=1e-12)
    golden.check("kid_std", found.std(), rtol=0, atol=1e-12)
    golden.check("kid_full_unbiased", kid.mmd2(x, y), rtol=0, atol=1e-12)
    golden.check("kid_full_biased", kid.mmd2(x, y, unbiased=False), rtol=0, atol=1e-12)
    golden.check("kid_same_unbiased", kid.mmd2(x[: len(x) // 2], x[len(x) // 2 :]), rtol=0, atol=1e-12)


def inception_scores(golden):
    logits = golden.input("is_logits")
    splits = len(golden.arrays["is_splits"])
    summary = lambda scores: [scores.mean(), scores.std()]
    found = inception_score.by_split(logits, splits)
    golden.check("is_splits", found, rtol=1e-12)
    golden.check("is_plain", summary(found), rtol=1e-12)
    golden.check("is_one_split", inception_score.by_split(logits, 1)[0], rtol=1e-12)
    order = np.random.RandomState(kid.SEED).permutation(len(logits))  # torch-fidelity's
    golden.check("is_perm", order, rtol=0)
    golden.check("is_shuffled", summary(inception_score.by_split(logits[order], splits)), rtol=1e-12)
    stream = inception_score.metric(len(logits), splits)
    total = stream.init()
    for part in np.array_split(logits, 7):
        total = stream.update(total, {}, {"logits": part})
    golden.check("is_plain", list(stream.compute(total).values()), rtol=1e-12)


def manifolds(prefix):
    def part(golden):
        sets = {name: golden.input(f"{prefix}_{name}") for name in ("real", "fake")}
        for key in golden.keys(f"{prefix}_k"):
            k, _, rest = key.removeprefix(f"{prefix}_k").partition("_")
            if rest.startswith("radii_"):
                squares = precision_recall.squared_radii(sets[rest.removeprefix("radii_")], int(k))
                golden.check(key, np.sqrt(squares), rtol=1e-12)
            else:
                found = precision_recall.precision_recall(**sets, k=int(k), strict=rest == "strict")
                golden.check(key, list(found.values()), rtol=0, atol=1e-12)

    return part


def clip_scores(golden):
    images, texts = golden.input("clip_img"), golden.input("clip_txt")
    golden.check("clip_raw", clip_score.by_pair(images, texts, clamp=False), rtol=1e-12)
    golden.check("clip_clamped", clip_score.by_pair(images, texts), rtol=1e-12, atol=1e-12)


def quantisers(golden):
    values = golden.input("q_x")
    golden.check("q_edm", stored.encode(values), rtol=0)
    golden.check("q_round", stored.rounded(values), rtol=0)


PARTS = {
    "fd_": frechet_distances,
    "kid_": kernel_distances,
    "is_": inception_scores,
    "pr_": manifolds("pr"),
    "prt_": manifolds("prt"),
    "clip_": clip_scores,
    "q_": quantisers,
}
