"""What several test files share."""

from __future__ import annotations

PROCESSORS = {
    "vis_processor": {"train": {"name": "blip2_image_train", "image_size": 224}},
    "text_processor": {"train": {"name": "blip_caption"}},
}

RUN = {
    "task": "image_text_pretrain",
    "lr_sched": "linear_warmup_cosine_lr",
    "init_lr": "1e-4",  # as PyYAML reads a number without a dot
    "min_lr": "8e-5",
    "warmup_lr": "1e-6",
    "weight_decay": 0.05,
    "max_epoch": 4,
    "num_workers": 4,
    "warmup_steps": 5000,
    "iters_per_epoch": 5000,
    "seed": 42,
    "output_dir": "output/minigpt4_stage1_pretrain",
    "amp": True,
    "resume_ckpt_path": None,
    "evaluate": False,
    "train_splits": ["train"],
    "device": "cuda",
    "world_size": 1,
    "dist_url": "env://",
    "distributed": True,
    "wandb_log": True,
    "job_name": "minigpt4_pretrain",
}


# The content of the original's minigpt4_stage1_pretrain.yaml and minigpt4_llama2_stage2_finetune.
STAGE1 = {
    "model": {"arch": "minigpt4", "model_type": "pretrain_vicuna0"},
    "datasets": {
        "laion": {"batch_size": 64, "sample_ratio": 115, **PROCESSORS},
        "cc_sbu": {"batch_size": 64, "sample_ratio": 14, **PROCESSORS},
    },
    "run": RUN,
}
