"""Dense passage retrieval as a plain library: every stage of the pipeline, without Ray."""

import os

__version__ = "0.1.0"

# Arrow reads this when it is loaded. Its own allocator takes pages of 2 MB and keeps them: a process that reads one
# small file after another holds 25 MB more in the end, and one that writes segments 70 MB.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
