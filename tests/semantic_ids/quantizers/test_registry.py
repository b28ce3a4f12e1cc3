import subprocess
import sys

import pytest
import torch

from sidrec.errors import DataError
from sidrec.semantic_ids.quantizers.registry import load_quantizer
from sidrec.semantic_ids.quantizers.rq_kmeans import RqKMeans


def test_a_stored_quantizer_encodes_as_the_fitted_one():
    vectors = torch.randn(40, 6)
    fitted = RqKMeans((4, 4), 5, 0.0, 1, "progressive", 16, True, 0).fit(vectors)
    again = load_quantizer("rq_kmeans", fitted.tensors())
    torch.testing.assert_close(again.encode(vectors), fitted.encode(vectors))


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        DataError, match=r"No Quantizer is named 'magic', expected one of .*rq_kmeans"
    ):
        load_quantizer("magic", {})


def test_missing_tensors_are_named():
    with pytest.raises(DataError, match=r"lack the tensor 'lengths'"):
        load_quantizer("rq_kmeans", {"codebooks.1": torch.zeros(2, 3)})


def test_decoding_needs_none_of_the_libraries_that_fit():
    code = (
        "import sys; from importlib import import_module;"
        "from sidrec.semantic_ids.quantizers import registry;"
        "[import_module(name.rpartition('.')[0]) for name in registry._CLASSES.values()];"
        "print(*{'sklearn', 'faiss', 'vector_quantize_pytorch', 'lightning'} & {*sys.modules})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == ""
