"""A trained bi-encoder, from a run directory alone."""

from sidrec.encoder.module import BiEncoder
from sidrec.errors import RunError
from sidrec.run_directory import RunDirectory
from sidrec.run_directory.checkpoints import read_checkpoint


def load_bi_encoder(run: RunDirectory) -> BiEncoder:
    """Return the best bi-encoder of a finished run, on the CPU, in evaluation mode.

    Everything comes from the checkpoint: no hub, no package, no folder of the pretrained encoder
    is needed.

    Raises:
        RunError: If the run has not finished, is no encoder run, or its checkpoint is damaged.
    """
    file = run.finished_checkpoint()
    checkpoint = read_checkpoint(file)
    if "text_tower" not in checkpoint:
        raise RunError(f"{file} is no bi-encoder; give --from the folder of an encoder run.")
    arguments = {
        name: value
        for name, value in checkpoint["hyper_parameters"].items()
        if not name.startswith("_")
    }
    model = BiEncoder(**arguments)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    model.eval()
    return model
