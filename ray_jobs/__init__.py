"""Run dpr on Ray. Here is what must hold before other modules import Ray: where from, and its settings."""

import os

from ray_jobs.import_path import leave_out_current_folder

leave_out_current_folder()

# no usage reports without consent
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# how often a task is repeated that Ray ended because memory ran short; Ray's own default is for ever
os.environ.setdefault("RAY_task_oom_retries", "5")
# workers of a Ray that we start run at this process's own priority; Ray would lower it by 15, and a run beside other
# work would hardly get a CPU
os.environ.setdefault("RAY_worker_niceness", "0")
# a thread of Ray Data that outlives the connection must not start another Ray
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
