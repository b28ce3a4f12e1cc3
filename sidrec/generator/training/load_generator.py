"""Loading of a trained joint generator from its run directories, without training code."""

from dataclasses import dataclass
from pathlib import Path

from sidrec.errors import RunError
from sidrec.generator.model.factory import generator_from
from sidrec.generator.model.generator_model import GeneratorModel
from sidrec.generator.model.generator_settings import SearchSettings
from sidrec.generator.model.request_embedder import InputSettings
from sidrec.runs.checkpoints import read_checkpoint
from sidrec.runs.directory import RunDirectory
from sidrec.semantic_ids.per_task.task_bundles import TaskBundles
from sidrec.training.lora import merge_lora, restore_base

_PREFIX = "model."  # of the weights in the checkpoint of a JointGenerator


@dataclass(frozen=True)
class TrainedGenerator:
    """Trained generator and its Semantic IDs.

    Attributes:
        model: Generator in evaluation mode.
        ids: Semantic IDs that it was trained on.
        num_beams: Beam width that its run was configured with.
        exclude_history: Whether a user's own items were left out of its lists in training.
    """

    model: GeneratorModel
    ids: TaskBundles
    num_beams: int
    exclude_history: bool = True


def load_generator(run: RunDirectory) -> TrainedGenerator:
    """Load the best generator of a finished run, on the CPU.

    Needs the Semantic IDs of its training and, where a bi-encoder reads its queries, the encoder
    run; needs no corpus, hub or Trainer. Adapters are merged into the model of their training,
    which is read from the hub or its folder.

    Raises:
        RunError: If the run has not finished, is not a generator run, or its checkpoint is
            damaged.
        DataError: If its Semantic IDs are missing or differ from those of its training.
    """
    file = run.finished_checkpoint()
    checkpoint = read_checkpoint(file)
    if "bundle_hash" not in checkpoint:
        raise RunError(
            f"{file} is not a generator checkpoint; give --from the folder of a generator run."
        )
    settings = checkpoint["hyper_parameters"]
    ids = TaskBundles.load(Path(settings["semantic_ids"]), corpus_fingerprint=None)
    ids.refuse_other_than(checkpoint["bundle_hash"], settings["semantic_ids"])
    model = generator_from(
        checkpoint["generator"],
        inputs=InputSettings(**settings["inputs"]),
        ids=ids,
        encoder_run=settings["encoder_run"],
    )
    search = SearchSettings(**settings["search"])
    model.decoding = search.strategy()
    if model.base is not None:
        restore_base(checkpoint, model, base=model.base["name"], prefix=_PREFIX)
    weights = checkpoint["state_dict"].items()
    try:
        model.load_state_dict({name.removeprefix(_PREFIX): value for name, value in weights})
    except RuntimeError:  # torch lists every tensor
        raise RunError(
            f"{file} does not fit the model that its own settings describe; it was written by "
            "another version of sidrec: use that version, or train again."
        ) from None
    merge_lora(model.t5)
    return TrainedGenerator(model.eval(), ids, search.num_beams, checkpoint["exclude_history"])
