from __future__ import annotations

import shutil

import pytest

NEEDS_KUBECTL = ("test_kubernetes_versions.py", "test_manifests.py", "test_names.py", "test_serve_config.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("kubectl") is not None:
        return
    for item in items:
        if item.path.name in NEEDS_KUBECTL:
            item.add_marker(pytest.mark.skip(reason="kubectl, which renders the overlays, is not installed"))
