"""Registry of fitted quantizers: from the name that a bundle stores to its codebooks."""

from importlib import import_module
from typing import Any

from torch import Tensor

from sidrec.errors import DataError
from sidrec.plugins import find_class
from sidrec.semantic_ids.quantizers.base import FittedQuantizer, Quantizer

_CLASSES = {
    "rq_kmeans": "sidrec.semantic_ids.quantizers.rq_codebooks.FittedRqKMeans",
    "given": "sidrec.semantic_ids.quantizers.rq_codebooks.FittedRqKMeans",
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
        name: ``quantizer["name"]`` of the bundle: a name of sidrec, of an entry point
            ``sidrec.quantizers``, or the path of a ``Quantizer`` class with a ``fitted_class``.
        tensors: What the fitted quantizer's ``tensors()`` returned.

    Raises:
        DataError: If no quantizer has that name, or tensors are missing.
        ConfigError: If a plug-in cannot be imported.
    """
    try:
        return _fitted_class(name).from_tensors(tensors)
    except KeyError as missing:
        raise DataError(
            f"The codebooks of quantizer '{name}' lack the tensor {missing}; make the bundle again."
        ) from None


def _fitted_class(name: str) -> type[FittedQuantizer]:
    if name in _CLASSES:
        module, _, class_name = _CLASSES[name].rpartition(".")
        found: type[FittedQuantizer] = getattr(import_module(module), class_name)
        return found
    base: type[Any] = Quantizer
    kind = find_class("quantizers", name, base, known=_CLASSES)
    fitted: type[FittedQuantizer] | None = getattr(kind, "fitted_class", None)
    if fitted is None:
        raise DataError(
            f"The quantizer '{name}' has no class attribute fitted_class, which opens its bundles "
            "again; set it to the class that fit returns."
        )
    return fitted
