"""The jobs of a nightly run as separate programs on a Ray that they join, and the workers that they request.

In test_surroundings.py the nightly job starts a Ray.
"""

from pathlib import Path
from uuid import uuid4

from tests.ray_jobs.conftest import OUR_LINE
from tests.ray_jobs.forked import Forks
from tests.ray_jobs.test_nightly import make_collection


def test_stage_jobs_and_the_nightly_job_in_turn(drivers: Forks, tmp_path: Path, static_encoder: Path) -> None:
    recipe = make_collection(tmp_path, static_encoder, 200).write_recipe()

    def run_job(job: str) -> tuple[str, str]:
        """Return what a job printed, which joins a Ray that runs; on stderr are lines of progress, and no other."""
        started = drivers.start(tmp_path / f"job-{uuid4().hex}", f"ray_jobs.{job}", "--recipe", recipe)
        assert started.wait(300) == 0, started.errors()
        assert [line for line in started.errors().splitlines() if not OUR_LINE.fullmatch(line)] == []
        return started.output(), started.errors()

    assert run_job("scan")[0] == "200 passages: 200 new, 200 to embed, 0 gone\n"
    out, err = run_job("embed")
    assert out == "2 segments with 200 live passages\n"
    assert "2 of 2 units done now" in err
    assert "encoder   fp32" in err or "encoder   bf16" in err
    out, err = run_job("index")
    assert out.endswith(" (IVF8,PQ8x4) with 200 passages\n")
    assert "0 of 2 units done now, 2 were done before" in err  # the results of the previous job are used
    assert err.index("index     IVF8,PQ8x4: ") < err.index("train   ")  # chosen before it is made
    assert run_job("nightly")[0].startswith("published snapshot 1: 200 passages ")
    out, err = run_job("nightly")
    assert "nothing changed, nothing was embedded" in out
    assert err == ""


def test_a_stage_that_embeds_asks_for_a_gpu(drivers: Forks, tmp_path: Path) -> None:
    demand = drivers.start(tmp_path / "demand", "tests.ray_jobs.gpu_demand")
    assert demand.wait(150) == 0, demand.errors()
    assert float(demand.output()) == 1
