"""Parts of tools/bench_train.py."""
