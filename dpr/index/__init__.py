"""Everything that knows FAISS: choosing, training, building, merging, searching, exact truth and tuning."""

import os

# Read when FAISS is loaded. Its threads meet thousands of times while product quantisers are trained, and wait for each
# other by turning in place: where anything else wants a CPU that takes 15 times as long as sleeping does.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
