"""Everything that knows FAISS: choosing, training, coding, merging, searching, exact neighbours and tuning."""

import os

# FAISS reads this when it is loaded. Its threads synchronise thousands of times while product quantisers are
# trained. By default a thread busy-waits for the others: if another process uses a CPU, that takes 15 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
