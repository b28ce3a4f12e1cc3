"""A trained generator from its checkpoint file alone, by Lightning's own call."""

import sidrec
from sidrec.generator.model.generator_settings import SearchSettings
from tests.generator.trained import equal, train


def test_generator_loads_and_predicts_without_a_run(corpus, semantic_ids, tmp_path):
    trainer, model = train(str(corpus.folder), semantic_ids, tmp_path, max_steps=1)
    file = tmp_path / "model.ckpt"
    trainer.save_checkpoint(file)
    loaded = sidrec.JointGenerator.load_from_checkpoint(file)
    assert equal(loaded, model)
    assert loaded.inputs == model.inputs
    wide = SearchSettings(num_beams=20, top_k=10)
    assert sidrec.JointGenerator.load_from_checkpoint(file, search=wide).search == wide
    answers = trainer.predict(loaded, datamodule=trainer.datamodule)
    assert len(answers) == 2
