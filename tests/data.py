"""Where the tests find data that is not part of the project.

The environment variable DPR_TEST_DATA names a folder that holds `squad/` and `medquad/` in BEIR's layout
(`corpus.jsonl.gz`, `queries.jsonl.gz`, `qrels.SPLIT.tsv.gz`), and `kuberay-crds/` with KubeRay's definitions
(`ray.io_rayclusters.yaml.gz`, …, as its Helm chart has them). Without it, `shared/data` beside the repository is used,
if it exists. Tests that need data which is not there are skipped, and say so.
"""

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"


def data_folder(name: str) -> Path:
    """Return the folder of that name, such as `squad` or `kuberay-crds`; if it is absent, skip the test that calls."""
    folder = Path(os.environ.get("DPR_TEST_DATA") or _DEFAULT) / name
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}; set DPR_TEST_DATA to the folder that holds {name}/")
    return folder
