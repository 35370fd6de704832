"""Names that the help lists and that options check at once, without the imports of the modules that define them.

A test holds each list to its source: losses.methods, networks.network, images.datasets, views.view, codecs.request.
"""

METHODS = (
    *("none", "logit", "feature", "logit+feature", "at", "skd", "ifvd", "cwd", "cwd-feature", "cirkd"),
    *("cirkd-published", "dist", "mgd", "af-dcd", "dkd", "dsd"),
)
NETWORKS = (
    *("pspnet_resnet18", "pspnet_resnet34", "pspnet_resnet50", "pspnet_resnet101"),
    *("deeplabv3_resnet18", "deeplabv3_resnet50", "deeplabv3_resnet101", "fcn_resnet50", "fcn_resnet101"),
)
PRESETS = ("kdcache", "mmseg", "cirkd", "semseg", "skd")
DATASETS = ("cityscapes", "ade20k", "voc2012", "camvid", "folder", "streets")
VIEW_POLICIES = ("mmseg", "cirkd", "skd")  # scales and colours alone
RECIPES = (  # of views and training
    *("paper-cityscapes", "paper-ade20k", "camvid", "streets"),
    *("teacher-cityscapes", "teacher-ade20k", "teacher-streets"),
)
CODECS = ("fp16", "uniform", "delta", "pca", "dct", "dct-range")
JUDGED_METHODS = ("logit", "cwd", "dist", "dkd")  # `build --for-methods`
TARGETS = ("logits", "features", "aux", "backbone")


def listed(names: tuple[str, ...]) -> str:
    """As in "a, b or c"."""
    return f"{', '.join(names[:-1])} or {names[-1]}"
