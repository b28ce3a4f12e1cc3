"""Fitted quantizers by the name that a bundle stores: codebooks on disk, ready to encode again."""

from importlib import import_module
from typing import cast

from torch import Tensor

from sidrec.errors import DataError
from sidrec.semantic_ids.quantizers.base import FittedQuantizer

_CLASSES = {
    "rq_kmeans": "sidrec.semantic_ids.quantizers.rq_codebooks.FittedRqKMeans",
    "balanced_rq_kmeans": "sidrec.semantic_ids.quantizers.balanced.FittedBalancedRqKMeans",
    "rq_vae": "sidrec.semantic_ids.learned.codebooks.FittedLearnedQuantizer",
    "residual_lfq": "sidrec.semantic_ids.learned.codebooks.FittedLearnedQuantizer",
    "dictionary": "sidrec.semantic_ids.quantizers.dictionary.FittedDictionary",
    "pq": "sidrec.semantic_ids.quantizers.product.FittedProductQuantizer",
    "opq": "sidrec.semantic_ids.quantizers.product.FittedProductQuantizer",
    "random": "sidrec.semantic_ids.quantizers.controls.FittedRandomCodes",
    "atomic": "sidrec.semantic_ids.quantizers.controls.FittedAtomicCodes",
}


def load_quantizer(name: str, tensors: dict[str, Tensor]) -> FittedQuantizer:
    """Build the fitted quantizer that a bundle's ``codebooks.safetensors`` holds.

    Args:
        name: ``quantizer["name"]`` of the bundle.
        tensors: What the fitted quantizer's ``tensors()`` returned.

    Raises:
        DataError: If this sidrec knows no quantizer of that name, or tensors are missing.
    """
    if name not in _CLASSES:
        raise DataError(
            f"The bundle's quantizer is '{name}', expected one of {', '.join(sorted(_CLASSES))}; "
            "make the bundle again with `sidrec ids`."
        )
    module, _, class_name = _CLASSES[name].rpartition(".")
    try:
        fitted = getattr(import_module(module), class_name).from_tensors(tensors)
    except KeyError as missing:
        raise DataError(
            f"The codebooks of quantizer '{name}' lack the tensor {missing}; make the bundle again."
        ) from None
    return cast("FittedQuantizer", fitted)
