"""CLIP score: the cosine of embeddings of images and texts. With a number, name model, weights and prompts."""

import numpy as np

from fastdiff_jax.metrics.frechet import checked


def cosines(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """(N,) cosines <i, t> / (|i| |t|) of paired embeddings (N,D).

    Raises: ValueError for sets that do not pair, are empty or not finite, or an embedding of norm zero.
    """
    images, texts = checked(images), checked(texts)
    if images.shape != texts.shape or not len(images):
        raise ValueError(f"CLIP scores pair images with texts; got {images.shape} and {texts.shape}.")
    norms = np.linalg.norm(images, axis=1) * np.linalg.norm(texts, axis=1)
    if not norms.all():
        raise ValueError(f"pair {int(np.argmin(norms > 0))} has an embedding of norm zero.")
    return np.sum(images * texts, axis=1) / norms


def by_pair(images: np.ndarray, texts: np.ndarray, *, scale: float = 100.0, clamp: bool = True) -> np.ndarray:
    """(N,) scores: scale max(cosine, 0), or scale cosine without the clamp. The CLIP score is their mean.

    Hessel et al. have scale 2.5 and clamp; SFD 100 without clamp; SiD-LSG 1 without clamp: state it.

    Raises: ValueError as `cosines`.
    Source: Hessel et al. 2021 (arXiv:2104.08718), eq. 1.
    """
    found = scale * cosines(images, texts)
    return np.maximum(found, 0) if clamp else found
