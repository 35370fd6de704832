"""The kinds of objects in a store, and one wrong bit in one of them."""

KINDS = {  # of objects, by what their paths look like
    "root": "zarr.json",
    "spec": "kd/spec.json",
    "images": "kd/images.json",
    "calibration": "kd/calibration.json",
    "goal": "kd/goals/*",
    "commit": "kd/passes/*/units/*",
    "manifest": "kd/passes/*/manifest-*",
    "group": "passes/zarr.json",
    "pass": "passes/*/zarr.json",
    "array": "passes/*/*/zarr.json",
    "views": "passes/*/views/c/**/*",
    "crops": "passes/*/crops/c/**/*",
    "labels": "passes/*/labels/c/**/*",
    "logits": "passes/*/logits/c/**/*",
    "features": "passes/*/features/c/**/*",
}


def flipped(data: bytes, bit: int) -> bytes:
    """The bytes with that bit flipped."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
