"""Class names without their package: the error names the path to write."""

import pytest

from sidrec.cli.parser import with_suggestion

AMBIGUOUS = (
    'Parser key "policy": Multiple subclasses with name KeepCollisions. Give the full class path '
    "to avoid ambiguity: sidrec.semantic_ids.collisions.policies.KeepCollisions, "
    "sidrec.KeepCollisions."
)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            'Parser key "quantizer": Expected a dot import path string: RqKMeans.',
            "Parser key \"quantizer\": 'RqKMeans' is not the path of a class; "
            "did you mean 'sidrec.RqKMeans'?",
        ),
        (
            'Parser key "quantizer": Expected a dot import path string: RqKmean.',
            "Parser key \"quantizer\": 'RqKmean' is not the path of a class; "
            "did you mean 'sidrec.RqKMeans'?",
        ),
        (
            AMBIGUOUS,
            "Parser key \"policy\": 'KeepCollisions' is not the path of a class; "
            "did you mean 'sidrec.KeepCollisions'?",
        ),
    ],
)
def test_a_name_without_sidrec_is_answered_with_its_path(message, line):
    assert with_suggestion(message, []) == line
