"""Where everything of a store stands.

zarr.json                                  Zarr group
kd/spec.json  kd/images.json               the request, and the image ids in order
kd/calibration.json                        what the request left open, measured once
kd/goals/0004                              four passes are wanted
kd/passes/000/units/000012-0.json          commit of unit 12 of pass 0, generation 0
kd/passes/000/manifest-0.json              all commits of the complete pass
kd/partial/000  000-logits                 a copy without all arrays of pass 0; its logits are whole
passes/000/views/zarr.json   c/12/0        inputs: view parameters and crop digests, int32
passes/000/crops/...  labels/...           inputs too, where the crops themselves are kept
passes/000/logits/zarr.json  c/12/0/0/0    targets, (entry, channel, y, x)
passes/000/features/...
"""

import re

SPEC = "kd/spec.json"
IMAGES = "kd/images.json"
CALIBRATION = "kd/calibration.json"
GOALS = "kd/goals"
PARTIAL = "kd/partial"

TOP = {"zarr.json", "kd", "passes"}  # all that stands at the top of a store

# Names of records. Others in the ledger's folders are nobody's: file systems and people leave such files.
COMMIT_NAME = re.compile(r"([0-9]{6,9})-([0-9]{1,9})\.json")
MANIFEST_NAME = re.compile(r"manifest-([0-9]{1,9})\.json")
PASS_NAME = re.compile(r"([0-9]{3,9})")
GOAL_NAME = re.compile(r"([0-9]{4,9})")
PARTIAL_NAME = re.compile(r"([0-9]{3,9})(?:-(\w+))?")


def pass_folder(pass_index: int) -> str:
    """The group of a pass."""
    return f"passes/{pass_index:03d}"


def array_path(pass_index: int, name: str) -> str:
    """Where an array of a pass stands in the store."""
    return f"{pass_folder(pass_index)}/{name}"


def ledger_folder(pass_index: int) -> str:
    """Where the commits and manifests of a pass stand."""
    return f"kd/passes/{pass_index:03d}"


def goal_path(passes: int) -> str:
    """Where the goal of that many passes is on record."""
    return f"{GOALS}/{passes:04d}"


def manifest_path(pass_index: int, generation: int) -> str:
    """Where a manifest of a pass stands."""
    return f"{ledger_folder(pass_index)}/manifest-{generation}.json"


def commit_path(pass_index: int, unit: int, generation: int) -> str:
    """Where the commit record of a unit stands."""
    return f"{ledger_folder(pass_index)}/units/{unit:06d}-{generation}.json"
