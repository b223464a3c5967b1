"""A real Ray hands NeuronCores to an actor that asks for them as an engine replica does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# The cores are only claimed: Ray reserves what it is told is there, and names it to the actor.
SCRIPT = """
import json, logging, os, ray
from mezzotint.config import Settings
from mezzotint.cores import VISIBLE_CORES, prepare_cores
from mezzotint.serve.app import replica_resources

class Replica:
    def cores(self):
        given = os.environ.get(VISIBLE_CORES, "")
        return given, prepare_cores(2), os.environ[VISIBLE_CORES]

ray.init(num_cpus=2, resources={"neuron_cores": 4}, include_dashboard=False, object_store_memory=100 * 2**20,
         logging_level=logging.ERROR)
asked = replica_resources(Settings(device="neuron", threads=1), 0, 2)
replicas = [ray.remote(Replica).options(**asked).remote() for _ in range(2)]
print(json.dumps(ray.get([replica.cores.remote() for replica in replicas], timeout=60)))
ray.shutdown()
"""


def test_two_replicas_get_two_neighbouring_cores_each_and_sort_them(tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "NEURON_"))
    }
    environment |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.urandom(32).hex(),
        "PYTHONWARNINGS": "ignore",
    }
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert sorted(prepared for _, _, prepared in told) == ["0,1", "2,3"]
    assert all(count == 2 and set(given.split(",")) == set(after.split(",")) for given, count, after in told)
