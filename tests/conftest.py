"""What every test shares."""

import os

# Before torch loads, and for every process a test starts. More than one thread waits longer than it works on nets as
# small as those of the tests, above all where tests run side by side.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ["HF_HUB_OFFLINE"] = "1"
