"""Test cases that run inside ComfyUI's own Python: `python -m salt_cases.NAME CASE [FLAGS OF COMFYUI]`.

`tests/comfyui` alone is on PYTHONPATH there: with the repository root on it, the pack's `nodes` would hide ComfyUI's.
"""
