"""The jobs of a nightly run as programs of their own, on a Ray that they join, and what they ask it for.

In test_surroundings.py the nightly job starts a Ray.
"""

import subprocess
import sys
from pathlib import Path

from tests.ray_jobs.conftest import OUR_LINE
from tests.ray_jobs.own_ray import OwnRay
from tests.ray_jobs.test_nightly import make_collection


def test_stage_jobs_and_the_nightly_job_in_turn(lasting_ray: OwnRay, tmp_path: Path, static_encoder: Path) -> None:
    recipe = make_collection(tmp_path, static_encoder, 200).write_recipe()

    def run_job(job: str) -> tuple[str, str]:
        """Return what a job printed, which joins a Ray that runs; on stderr are lines of progress, and no other."""
        command = [sys.executable, "-m", f"ray_jobs.{job}", "--recipe", str(recipe)]
        ended = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=300, env=lasting_ray.environment
        )
        assert ended.returncode == 0, ended.stderr
        assert [line for line in ended.stderr.splitlines() if not OUR_LINE.fullmatch(line)] == []
        return ended.stdout, ended.stderr

    assert run_job("scan")[0] == "200 passages: 200 new, 200 to embed, 0 gone\n"
    out, err = run_job("embed")
    assert out == "2 segments with 200 live passages\n"
    assert "2 of 2 units done now" in err
    assert "encoder   fp32" in err or "encoder   bf16" in err
    out, err = run_job("index")
    assert out.endswith(" (IVF8,PQ8x4) with 200 passages\n")
    assert "0 of 2 units done now, 2 were done before" in err  # what the job before it made is used
    assert err.index("index     IVF8,PQ8x4: ") < err.index("train   ")  # chosen before it is made
    assert run_job("nightly")[0].startswith("published snapshot 1: 200 passages ")
    out, err = run_job("nightly")
    assert "nothing changed, nothing was embedded" in out
    assert err == ""


def test_a_stage_that_embeds_asks_for_a_gpu(lasting_ray: OwnRay) -> None:
    command = [sys.executable, "-m", "tests.ray_jobs.gpu_demand"]
    asked = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=150, env=lasting_ray.environment
    )
    assert float(asked.stdout) == 1
