"""Fitted quantisers by the name that a bundle stores: codebooks on disk, ready to encode again."""

from importlib import import_module
from typing import cast

from torch import Tensor

from sidrec.errors import DataError
from sidrec.semantic_ids.quantiser import FittedQuantiser

_CLASSES = {
    "rq_kmeans": "sidrec.semantic_ids.rq_codebooks.RqKMeans",
    "balanced_rq_kmeans": "sidrec.semantic_ids.balanced_codebooks.BalancedRqKMeans",
    "rq_vae": "sidrec.semantic_ids.learned.codebooks.LearnedCodebooks",
    "residual_lfq": "sidrec.semantic_ids.learned.codebooks.LearnedCodebooks",
    "dictionary": "sidrec.semantic_ids.atoms.DictionaryAtoms",
    "pq": "sidrec.semantic_ids.product_codebooks.ProductCodebooks",
    "opq": "sidrec.semantic_ids.product_codebooks.ProductCodebooks",
    "random": "sidrec.semantic_ids.controls.RandomCodes",
    "atomic": "sidrec.semantic_ids.controls.AtomicCodes",
}


def load_quantiser(name: str, tensors: dict[str, Tensor]) -> FittedQuantiser:
    """Build the fitted quantiser that a bundle's ``codebooks.safetensors`` holds.

    Args:
        name: ``quantiser["name"]`` of the bundle.
        tensors: What the fitted quantiser's ``tensors()`` returned.

    Raises:
        DataError: If this sidrec knows no quantiser of that name, or tensors are missing.
    """
    if name not in _CLASSES:
        raise DataError(
            f"The bundle's quantiser is '{name}', expected one of {', '.join(sorted(_CLASSES))}; "
            "make the bundle again with `sidrec ids`."
        )
    module, _, class_name = _CLASSES[name].rpartition(".")
    try:
        fitted = getattr(import_module(module), class_name).from_tensors(tensors)
    except KeyError as missing:
        raise DataError(
            f"The codebooks of quantiser '{name}' lack the tensor {missing}; make the bundle again."
        ) from None
    return cast("FittedQuantiser", fitted)
