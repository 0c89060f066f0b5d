"""EDM's FID: statistics of feature sets, their distances by its formula, and its quantiser."""

from fastdiff_jax.data import stored
from fastdiff_jax.metrics import frechet


def replay(golden):
    names = [key.removeprefix("features_") for key in golden.keys("features_")]
    sets = {name: golden.input(f"features_{name}") for name in names}
    known = {name: frechet.statistics(frechet.moments(values)) for name, values in sets.items()}
    for name, (mean, covariance) in known.items():
        golden.check(f"mu_{name}", mean, rtol=1e-12)
        golden.check(f"sigma_{name}", covariance, rtol=1e-12)
    for key in golden.keys("fid_"):
        a, b = next((a, b) for a in names for b in names if key == f"fid_{a}{b}")
        singular = any(len(sets[name]) <= sets[name].shape[1] for name in (a, b))
        exact = frechet.distance(*known[a], *known[b])
        golden.check(key, exact, rtol=0, atol=1e-6 if singular else 1e-9)  # roots of rounding noise there
    golden.check("quant_u8", stored.encode(golden.input("quant_x")), rtol=0)
