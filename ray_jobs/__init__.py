"""Running dpr on Ray. Here are the settings that Ray reads when it is imported, which every module does later."""

import os

# no usage reports without consent
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# a task that Ray ends because memory runs short is begun again so often; Ray's own default is for ever
os.environ.setdefault("RAY_task_oom_retries", "5")
