"""Two ranks of a launcher that ends all when one fails, as ``srun --kill-on-bad-exit`` does."""

import os
import socket
import subprocess
import sys
import time

import pytest

from sidrec.runs.directory import RunDirectory
from tests.patience import patient
from tests.tiny import encoder_settings, write_yaml

NUM_RANKS = 2


@pytest.fixture
def launch(tiny, tmp_path):
    """Return a function that runs a fit; it returns the exit code of each rank."""
    settings = encoder_settings(tiny.corpus, tiny.encoder)
    settings["trainer"] |= {"devices": NUM_RANKS, "strategy": "ddp", "callbacks": []}
    config = write_yaml(tmp_path / "config.yaml", settings)
    command = [sys.executable, "-m", "sidrec", "fit", "--config", str(config)]
    command += ["--run_dir", str(tmp_path / "run")]

    def run(*arguments):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        environment = os.environ | {
            "SIDREC_ALLOW_IMPORTS": "tests",
            "TORCHELASTIC_RUN_ID": "test",
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(NUM_RANKS),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        ranks = [
            subprocess.Popen(
                [*command, *arguments],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=(tmp_path / f"rank_{rank}.log").open("a"),
            )
            for rank in range(NUM_RANKS)
        ]
        try:
            return exit_codes(ranks)
        finally:
            for rank in ranks:
                rank.kill()

    return run


def exit_codes(ranks):
    end = time.monotonic() + patient(300)
    is_ended = False
    while any(rank.poll() is None for rank in ranks):
        assert time.monotonic() < end
        if any(rank.poll() for rank in ranks) and not is_ended:
            is_ended = True
            for rank in ranks:
                rank.terminate()
        time.sleep(0.05)
    return [rank.returncode for rank in ranks]


@pytest.mark.slow
@pytest.mark.parametrize("told", range(NUM_RANKS))
def test_a_preempted_run_has_one_exit_code_however_slowly_a_rank_exits(launch, tmp_path, told):
    stop = {"hook": "on_train_batch_start", "signal_name": "SIGUSR1", "rank": told}
    codes = launch(
        "--trainer.callbacks+=tests.stops.SignalIn",
        *(f"--trainer.callbacks.{name}={value}" for name, value in stop.items()),
        "--trainer.callbacks+=tests.stops.Linger",
        "--trainer.callbacks.seconds=2",
    )
    assert codes == [85, 0], (tmp_path / "rank_1.log").read_text()
    assert RunDirectory(tmp_path / "run").state() == "preempted"
    assert launch() == [0, 0], (tmp_path / "rank_0.log").read_text()
