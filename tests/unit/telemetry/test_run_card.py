from mgpt4_hpc.telemetry.run_card import hyperparameters, text_card


def test_what_was_set_and_the_usual_are_hyperparameters():
    settings = {
        "stage": 1,
        "train.lr": 0.5,
        "train.micro_batch_size": 2,
        "lora.rank": 8,
        "deterministic": True,
        "data.sources": [{"name": "laion"}],
        "launch.gpus": 4,
        "text.prompt": None,
    }
    changed = ["lora.rank", "deterministic", "data.sources", "launch.gpus", "text.prompt"]
    assert hyperparameters(settings, changed) == {
        "stage": 1.0,
        "train.lr": 0.5,
        "lora.rank": 8.0,
        "deterministic": True,
    }


def test_a_hostile_value_stays_in_its_cell():
    card = text_card(
        "one",
        {"code_version": "1", "created": "today"},
        {"nodes": ["n1", "n2"], "world_size": 2, "executor": "slurm", "job_id": "7"},
        {"stage": 1, "model.weights": "/a|b\n| x"},
        {"model.weights": "flag|"},
    )
    lines = card.splitlines()
    assert "| nodes | n1, n2 |" in lines
    assert "| job | slurm 7, restart 0 |" in lines
    assert lines[-1] == r'| model.weights | "/a\|b\\n\| x" | flag\| |'
