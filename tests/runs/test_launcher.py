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


def launch(command, folder, num_ranks=2):
    """Run a command on each rank, as torchrun does; return the exit codes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = os.environ | {
        "SIDREC_ALLOW_IMPORTS": "tests",
        "TORCHELASTIC_RUN_ID": "test",
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = []
    for rank in range(num_ranks):
        with (folder / f"rank_{rank}.log").open("w") as log:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", *map(str, command)],
                    env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stderr=log,
                )
            )
    end = time.monotonic() + patient(300)
    is_ended = False
    while any(rank.poll() is None for rank in ranks) and time.monotonic() < end:
        if any(rank.poll() for rank in ranks) and not is_ended:
            is_ended = True
            for rank in ranks:
                rank.terminate()
        time.sleep(0.05)
    for rank in ranks:
        rank.kill()
    return [rank.wait() for rank in ranks]


@pytest.mark.slow
def test_a_preempted_run_has_one_exit_code_however_slowly_a_rank_exits(tiny, tmp_path):
    settings = encoder_settings(tiny.corpus, tiny.encoder)
    settings["trainer"] |= {"devices": 2, "strategy": "ddp"}
    settings["trainer"]["callbacks"] = [
        {
            "class_path": "tests.stops.SignalIn",
            "init_args": {"hook": "on_train_batch_start", "signal_name": "SIGUSR1"},
        },
        {"class_path": "tests.stops.Linger", "init_args": {"seconds": 2.0}},
    ]
    config = write_yaml(tmp_path / "config.yaml", settings)
    command = ["sidrec", "fit", "--config", config, "--run_dir", tmp_path / "run"]
    assert launch(command, tmp_path) == [85, 0], (tmp_path / "rank_1.log").read_text()
    assert RunDirectory(tmp_path / "run").state() == "preempted"
