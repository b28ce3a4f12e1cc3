from sidrec.run_directory import RunDirectory


def test_both_stages_finish(tiny):
    for run in (tiny.encoder_run, tiny.generator_run):
        assert RunDirectory(run).state() == "finished"
