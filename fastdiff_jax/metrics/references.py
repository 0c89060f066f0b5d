"""Reference statistics as files: the npz with `mu` and `sigma` that FID's publishers share.

Files of this package have a third entry, `about`, a JSON text of what the statistics are of.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastdiff_jax.interop import npz
from fastdiff_jax.metrics.frechet import Statistics

MOST = 8192  # dimensions
MOST_TEXT = 1 << 16  # characters of `about`
ABOUT = {"features": dict, "data": dict, "count": int}  # types of its entries


class Reference(NamedTuple):
    """The content of a file, and what identifies it."""

    statistics: Statistics
    about: Mapping[str, Any]  # {} in files of others
    sha256: str


def serialise(statistics: Statistics, about: Mapping[str, Any]) -> bytes:
    """The npz: `mu` (D,) and `sigma` (D,D), float64, and `about`."""
    buffer = io.BytesIO()
    mean, covariance = (np.asarray(part, np.float64) for part in statistics)
    np.savez(buffer, mu=mean, sigma=covariance, about=np.array(json.dumps(about, sort_keys=True)))
    return buffer.getvalue()


def read(path: Path) -> Reference:
    """The statistics of a file, ours or one that others have published.

    Raises: ValueError if it is missing, damaged, or holds no mean with a symmetric covariance, all finite.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"there are no reference statistics {str(path)!r}; write them by launch/reference_stats.py."
        )
    content = path.read_bytes()
    try:
        found = npz.read(content, {"mu": npz.NUMBERS, "sigma": npz.NUMBERS}, 8 * MOST**2)
        text = npz.read(content, {"about": "U"}, 4 * MOST_TEXT, absent=("about",))
        about = json.loads(str(text["about"])) if text else {}
        if not isinstance(about, dict) or not all(
            isinstance(about[key], kind) for key, kind in ABOUT.items() if key in about
        ):
            raise ValueError("its text `about` is of another form")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"reference statistics {path.name} are no npz with mu and sigma: {error}; get or write them anew."
        ) from None
    mean, covariance = (found[key].astype(np.float64) for key in ("mu", "sigma"))
    dim = len(mean) if mean.ndim == 1 else 0
    if not 0 < dim <= MOST or covariance.shape != (dim, dim):
        raise ValueError(
            f"reference statistics {path.name} have mu {mean.shape} and sigma {covariance.shape}; they must be "
            f"(D,) and (D,D), D up to {MOST}."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"reference statistics {path.name} are not finite; the file is damaged.")
    if np.abs(covariance - covariance.T).max() > 1e-8 * np.abs(covariance).max():
        raise ValueError(f"reference statistics {path.name}: sigma is not symmetric, so it is no covariance.")
    if np.diagonal(covariance).min() < 0:
        raise ValueError(f"reference statistics {path.name}: sigma has negative variances, so it is none.")
    return Reference(Statistics(mean, covariance), about, hashlib.sha256(content).hexdigest())


def check(reference: Reference, name: str, dim: int, identity: Mapping[str, str]) -> None:
    """Raises ValueError unless the statistics are of a net's features: their number, and what the file says.

    Files of others say nothing, so their net and resize protocol are the user's word.
    """
    found = len(reference.statistics.mean)
    if found != dim:
        raise ValueError(f"reference statistics {name} are of {found} dimensions, the features of {dim}.")
    said = reference.about.get("features", {})
    differing = [key for key in said if said[key] != identity.get(key, said[key])]
    if differing:
        key = differing[0]
        raise ValueError(
            f"reference statistics {name} are of other features: their {key} is {said[key]!r}, the panel's "
            f"{identity[key]!r}; write them anew by launch/reference_stats.py."
        )
