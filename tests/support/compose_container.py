"""What compose would start, without Docker: a command of a service, in mounts as its image and its volumes have them.

Processes are unprivileged, and see a file system that is read-only but for volumes and /tmp; the profiles' kernels are
those that were compiled into the image, by another user and for any processor of its kind.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
READABLE, WARM_UP = "chmod --recursive a+rX .", "python -m dataflow.kernels"
"""What the image's RUN does to what was copied."""


def environment(dockerfile: str) -> dict[str, str]:
    """What the ENV lines of a Dockerfile, or of its beginning, set."""
    lines = re.findall(r"^ENV (.*)$", dockerfile, re.MULTILINE)
    return dict(each.split("=", 1) for line in lines for each in line.split())


BUILD = environment(DOCKERFILE.partition(WARM_UP)[0])
"""The environment in which the kernels are compiled."""
IMAGE = environment(DOCKERFILE)
"""The environment of what runs in the image."""

# A root of its own: the system's programs, what is copied into the image, and Python where it is, all read-only.
_CONTAINER = """
set -eu
umask 022  # as when an image is built, whatever this machine's is
root=$1 model=$2 tree=$3 mode=$4
shift 4
mount -t tmpfs -o mode=755 tmpfs "$root"
for each in /usr /bin /sbin /lib /lib64 /etc /proc /dev; do
    if [ -L "$each" ]; then cp -P "$each" "$root$each"
    elif [ -d "$each" ]; then mkdir "$root$each"; mount --rbind "$each" "$root$each"; fi
done
mkdir "$root/tmp" "$root/redflag"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
while [ "$1" != -- ]; do
    mkdir "$root$2"
    mount --bind "$1" "$root$2"
    mount -o "remount,bind,$3" "$root$2"
    shift 3
done
shift
while [ "$1" != -- ]; do
    mkdir -p "$root$1"
    mount --bind "$1" "$root$1"
    mount -o remount,bind,ro "$root$1"
    shift
done
shift
for each in dataflow training console; do
    mkdir "$root/redflag/$each"
    mount --bind "$tree/$each" "$root/redflag/$each"
    mount -o "remount,bind,$mode" "$root/redflag/$each"
done
cp "$model" "$root/redflag/fraud_model.pkl"
cp "${model%.pkl}.json" "$root/redflag/fraud_model.json"
mount -o "remount,$mode" "$root"
exec chroot "$root" /bin/sh -c 'cd /redflag && exec "$@"' sh "$@"
"""
_PYTHON = [str(Path(sys.prefix)), str(Path(sys.prefix).resolve()), str(Path(sys.base_prefix))]


def unshared() -> list[str]:
    """What gives a process mounts of its own."""
    return ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]


class Container:
    """What compose would start, without Docker."""

    def __init__(self, directory: Path, model: Path, kernels: Path):
        """Builds it in `directory`; `kernels` keeps what was compiled, from one run of the tests to the next."""
        if not shutil.which("setpriv") or subprocess.run([*unshared(), "true"], check=False).returncode:
            pytest.skip("a process cannot be given mounts of its own here")
        self._root = directory / "root"
        self._root.mkdir()
        self.volumes = directory / "volumes"
        self._model = model
        self._tree = directory / "tree"
        for copied in re.findall(r"^COPY (\w+) \./\w+$", DOCKERFILE, re.MULTILINE):
            shutil.copytree(ROOT / copied, self._tree / copied, ignore=shutil.ignore_patterns("__pycache__"))
        for path in [self._tree, *self._tree.rglob("*")]:
            path.chmod(0o700 if path.is_dir() else 0o600)  # as in the clone of one whose umask is 077
        self._compile_kernels(kernels)
        self._user = re.findall(r"useradd .*--uid (\d+)", DOCKERFILE)[0] if os.geteuid() == 0 else None
        for name in COMPOSE["volumes"]:
            (self.volumes / name).mkdir(parents=True)
            if self._user is not None:  # as a new volume takes over the image's directory at its mount point
                os.chown(self.volumes / name, int(self._user), int(self._user))

    def _compile_kernels(self, kept: Path) -> None:
        """As the Dockerfile does, as root and where it can be written to."""
        assert re.search(rf"&& {re.escape(READABLE)} .*&& {WARM_UP} ", DOCKERFILE, re.DOTALL)
        cache = self._tree / "dataflow" / "profiles" / "__pycache__"
        shutil.copytree(kept, cache, dirs_exist_ok=True)
        subprocess.run(
            self._inside({}, "rw", "sh", "-c", f'{READABLE} && exec "$0" "$@"', sys.executable, *WARM_UP.split()[1:]),
            env={"PATH": os.environ["PATH"], **BUILD}, check=True, timeout=300,
        )  # fmt: skip
        shutil.rmtree(kept)
        shutil.copytree(cache, kept)

    def command(self, service: str, *command: str) -> list[str]:
        """What runs a command as this service's, with its volumes."""
        privileges = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        if self._user is not None:
            privileges += [f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups"]
        return self._inside(SERVICES[service], "ro", *privileges, *command)

    def _inside(self, service: dict[str, Any], mode: str, *command: str) -> list[str]:
        volumes = []
        for volume in service.get("volumes", []):
            name, mountpoint, *options = volume.split(":")
            volumes += [str(self.volumes / name), mountpoint, *(options or ["rw"])]
        directories = [str(each) for each in (self._root, self._model, self._tree)]
        script = ["sh", "-c", _CONTAINER, "container", *directories, mode, *volumes, "--"]
        return [*unshared(), *script, *dict.fromkeys(_PYTHON), "--", *command]


def environment_of(service: str) -> dict[str, str]:
    """What the file sets for a service, where the environment of compose says nothing."""
    given = SERVICES[service]["environment"]
    return {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(value)) for name, value in given.items()}


@contextlib.contextmanager
def as_when_an_image_is_built() -> Iterator[None]:
    """Files that are made can be read by all, unless the program says otherwise."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)
