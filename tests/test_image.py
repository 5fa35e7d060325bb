"""The image that cluster/ describes is made of what is in this repository, and all parts of a cluster run it."""

import importlib
import re
import shlex
import tomllib

from tests.manifests import CLUSTER, CONTAINERS, ROOT, every

DOCKERFILE = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_all_run_the_image_that_the_dockerfile_makes() -> None:
    image = f"dpr:{PROJECT['version']}"
    assert {container["image"] for container in CONTAINERS} == {image}
    for path in (CLUSTER / "Dockerfile", ROOT / "docs" / "cluster.md"):
        assert f"docker build -f cluster/Dockerfile -t {image}" in path.read_text(encoding="utf-8")


def test_the_image_is_made_of_what_is_here() -> None:
    copied = [source for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE) for source in line.split()[:-1]]
    sources = {source.rstrip("/") for source in copied if not source.startswith("--")}
    assert sources == {"constraints.txt", "dpr", "pyproject.toml", "ray_jobs", "README.md", "recipes"}
    assert [source for source in sources if not (ROOT / source).exists()] == []
    ignored, *kept = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert ignored == "*"
    assert {line[1:].rstrip("/") for line in kept if line.startswith("!")} == sources


def test_pip_installs_this_project_and_the_models_of_the_recipes() -> None:
    steps = DOCKERFILE.replace("\\\n", " ")
    installs = [shlex.split(step) for step in re.findall(r"python -m pip install (.+)", steps)]
    assert len(installs) == 2
    for install in installs:
        assert install[install.index("--constraint") + 1] == "constraints.txt"
        assert re.fullmatch(r"\.(\[\w+\])?", install[-1])
    extra = installs[0][-1].strip(".[]")
    (model,) = PROJECT["optional-dependencies"][extra]
    for recipes in every("ConfigMap"):
        assert f"model: package:{model.replace('-', '_')}/" in recipes["data"]["recipe.yaml"]


def test_the_image_starts_with_a_command_of_this_project() -> None:
    (command,) = re.findall(r'^ENTRYPOINT \["(\w+)"\]$', DOCKERFILE, re.MULTILINE)
    module, _, function = PROJECT["scripts"][command].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_base_images_are_plain_names() -> None:
    named = re.findall(r"^(?:ARG BASE=|FROM )(\S+)$", DOCKERFILE, re.MULTILINE)
    assert named[-1] == "${BASE}"
    assert all(re.fullmatch(r"[a-z0-9-]+:[a-z0-9.-]+", name) for name in named[:-1])
