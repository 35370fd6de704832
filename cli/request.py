"""What the options of `build` and `estimate` ask for: a dataset, a teacher and a store, opened and checked."""

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdcache.cache.errors import NotFoundError, UsageError
from kdcache.cli import options
from kdcache.cli.output import Console

if TYPE_CHECKING:
    from accelerate import PartialState

    from kdcache.cache.build.builder import BuildOptions
    from kdcache.cache.build.plan import BuildPlan
    from kdcache.cache.images.datasets import SegmentationDataset
    from kdcache.cache.store.spec import StoreSpec
    from kdcache.cache.teachers.teacher import Teacher


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A store that the options ask for, with its dataset and its teacher opened."""

    dataset: "SegmentationDataset"
    teacher: "Teacher"
    spec: "StoreSpec"
    url: str
    passes: int
    options: "BuildOptions"
    state: "PartialState"


def open_request(given: dict[str, Any]) -> Request:
    """Open the dataset, load the teacher, and say which store that makes; nothing is written."""
    import torch
    from accelerate import PartialState

    from kdcache.cache.build.build import plan_store
    from kdcache.cache.build.builder import BuildOptions
    from kdcache.cache.codecs.request import canonical_request
    from kdcache.cache.images.datasets import open_dataset
    from kdcache.cache.storage.urls import join_url
    from kdcache.cache.store.spec import check_target_names
    from kdcache.cache.teachers.teacher import load_teacher
    from kdcache.cache.views.crops import canonical_inputs
    from kdcache.cache.views.policy import view_policy

    if given["threads"]:
        torch.set_num_threads(given["threads"])
    check_target_names(given["targets"])  # before anything that takes time
    inputs = canonical_inputs(given["inputs"])
    requests = {name: given[f"{name}_codec"] for name in given["targets"]}
    targets = {name: canonical_request(request) for name, request in _with_promise(requests, given).items()}
    state = PartialState(cpu=given["device"] == "cpu")
    dataset = open_dataset(given["dataset"], given["data_root"], given["split"])
    overrides = options.view_overrides(given)
    policy = view_policy(dataset.name, overrides.pop("recipe", None), **overrides)
    try:
        teacher = load_teacher(
            given["teacher"],
            weights=given["weights"],
            dataset_name=dataset.name,
            classes=len(dataset.classes.names),
            device=state.device,
            precision=given["precision"],
        )
    except NotFoundError as error:
        raise NotFoundError(str(error), hint=_with_data_root(error.hint, given["data_root"])) from None
    spec = plan_store(
        dataset,
        teacher,
        policy,
        seed=given["seed"],
        targets=targets,
        inputs=inputs,
        unit_entries=given["unit_entries"],
    )
    return Request(
        dataset=dataset,
        teacher=teacher,
        spec=spec,
        url=given["store"] or join_url(given["home"], spec.name),
        passes=given["views"],
        options=BuildOptions(
            batch_size=given["batch_size"], decode_threads=given["workers"], force=given["force"]
        ),
        state=state,
    )


def measure_request(console: Console, request: Request) -> "BuildPlan":
    """What building it would write, and how long that would take, from a few measured crops; nothing is left."""
    from kdcache.cache.build.plan import measure_plan
    from kdcache.cache.store.opening import find_store_of

    with console.progress("measure") as progress:
        return measure_plan(
            request.spec,
            request.dataset,
            request.teacher,
            passes=request.passes,
            options=request.options,
            store=find_store_of(request.spec, request.url),
            progress=progress,
            report=console.note,
        )


def _with_promise(requests: dict[str, str], given: dict[str, Any]) -> dict[str, str]:
    """The codec requests, `auto` with its --max-kl and --for-methods."""
    from kdcache.cache.codecs.request import DEFAULT_MAX_KL, DEFAULT_METHODS

    for name in ("max_kl", "for_methods"):
        if given[name] is not None and "auto" not in requests.values():
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option} needs a target with the codec auto, and none has it", hint=f"leave {option} out"
            )
    max_kl = DEFAULT_MAX_KL if given["max_kl"] is None else given["max_kl"]
    methods = ",".join(given["for_methods"] or DEFAULT_METHODS)
    return {
        name: f"auto:{max_kl!r}:{methods}" if request == "auto" else request
        for name, request in requests.items()
    }


def _with_data_root(hint: str | None, data_root: str | None) -> str | None:
    """The hint, in whose command to train a teacher the images are where they are here."""
    if not (hint and data_root):
        return hint
    return hint.replace(" --fresh-views", f" --data-root {shlex.quote(data_root)} --fresh-views")
