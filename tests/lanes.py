"""Which tests stay together when several processes run the suite, as `make test` has them do.

Files are handed out one by one, but those of a lane go to one process, in turn and first: a server is started
once for all who share it, no two of them start at a time, and what takes long does not begin last
(docs/decisions/0012).
"""

from __future__ import annotations

__all__ = ["LANES", "lane_of"]

LANES = {
    # Those with a real Ray. It takes ports and both cores while it starts, and waits for most of the rest.
    "servers": (
        "tests/chaos/",
        "tests/deploy/test_serve_config.py",
        "tests/deploy/test_watched.py",
        "tests/neuron/test_serving.py",
        "tests/serve/test_app.py",
        "tests/serve/test_neuron_cores.py",
        "tests/serve/test_observability.py",
        "tests/serve/test_ray.py",
        "tests/serve/test_scaling.py",
        "tests/ui/test_beside_a_server.py",
    ),
    # Those with compiled graphs of the tiny model, which take ten seconds to make.
    "graphs": (
        "tests/neuron/test_artefact.py",
        "tests/neuron/test_compile.py",
        "tests/neuron/test_cores.py",
        "tests/neuron/test_standin.py",
        "tests/parity/test_batching.py",
        "tests/parity/test_diffusers_backend.py",
        "tests/parity/test_graphs.py",
        "tests/parity/test_image_inputs.py",
        "tests/parity/test_tuning.py",
        "tests/parity/test_windows.py",
        "tests/unit/test_engine.py",
    ),
}


def lane_of(node_id: str) -> str:
    """The lane of a test, or its file."""
    file = node_id.partition("::")[0]
    return next((lane for lane, starts in LANES.items() if file.startswith(starts)), file)
