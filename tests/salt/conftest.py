"""Markers that diffusers' own tests use (`test_diffusers_mixins.py`)."""


def pytest_configure(config):
    for name in ("memory", "cpu_offload", "group_offload"):
        config.addinivalue_line("markers", f"{name}: a test of diffusers' checkout")
