"""The network of an LPIPS loss: a model of its own, from the file that a method's setting names."""

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from fastdiff_jax.losses.perceptual import variant_of
from fastdiff_jax.metrics import features
from fastdiff_jax.types import Params

ROLE = "lpips"
NETWORK = {"name": "vgg"}


def roles(config: ConfigDict) -> Mapping[str, ConfigDict]:
    """The models of a config: its own section, and what `method.lpips` implies.

    Raises: ValueError for an unknown variant, or if the section has a model of that name already.
    """
    request = config.method.get("lpips")
    if not isinstance(request, ConfigDict):  # what is no section, the method refuses
        return config.models
    if ROLE in config.models:
        raise ValueError(f"config.models.{ROLE} follows from method.lpips; leave it out.")
    pooling = variant_of(request.get("variant", "sfd")).pooling
    weights = dict(file=request.get("weights", ""), sha256=request.get("sha256", ""))
    implied = dict(network=NETWORK | {"pooling": pooling}, precond=dict(name="identity"), weights=weights)
    return {**config.models, ROLE: ConfigDict(implied)}


def load(request: ConfigDict) -> Params:
    """{"trunk": ..., "heads": {tap: (C,)}} from the file of launch/convert.py.

    Raises: ValueError if there is no such file, its hash is another, or it holds something else.
    """
    path = Path(request.weights.file)
    if not path.is_file():
        raise ValueError(
            f"there are no LPIPS weights {str(path)!r}; convert them by launch/convert.py --kind lpips, or set "
            "method.lpips=None."
        )
    params, metadata = features.read(path, request.weights.sha256)
    if metadata.get("network") != NETWORK or set(params) != {"trunk", "heads"}:
        raise ValueError(
            f"LPIPS weights {path.name} hold {', '.join(params)} of the network {metadata.get('network')}, not "
            f"trunk and heads of {NETWORK}; convert the published files."
        )
    return params
