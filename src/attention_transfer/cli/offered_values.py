"""Values that a shell offers for settings which take other values too, by the settings' names.

Settings of a fixed list of values have it in their type. The names of timm's optimizers and of the
loss terms are repeated here, because importing what knows them takes seconds.
"""

from attention_transfer.config.fields import TRACKERS

__all__ = ["NO_FILES", "OFFERED", "OR_FILES"]

OPTIMIZERS = (
    "adabelief adadelta adafactor adafactorbv adafactorbvc adagrad adam adamax adamc adamp "
    "adamuon adamw adamwlegacy adan adanw adopt adoptc adoptw cadafactor cadafactorbv "
    "cadafactorbvc cadamc cadamp cadamw cadan cadanw cadopt cadoptc cadoptw clamb clambw "
    "claprop clion clionc cmars cnadamc cnadamw crmsproptf csgdc csgdp csgdw kron kronc kronw "
    "lamb lambc lambcd lambcw lambw laprop lapropc larc lars lion lionc madgrad madgradw mars "
    "momentum muon nadam nadamc nadamlegacy nadamuon nadamw nesterov nesterovw nlarc nlars "
    "nmuon novograd novogradc novogradw radabelief radam radamlegacy radamw rmsprop rmsproptf "
    "rmsproptfc rmsproptfw sgd sgdc sgdp sgdw"
)

TERMS = (
    "activation_attention attention_distillation binary_cross_entropy class_attention "
    "cross_entropy dist dkd flip_symmetry full_activation gradient_attention "
    "input_gradient_norm knowledge_distillation logit_standardization"
)

OFFERED: dict[str, list[str]] = {
    "optimizer": OPTIMIZERS.split(),
    "terms": TERMS.split(),
    "track": list(TRACKERS),
    "points": ["low", "middle", "top", "all"],
    "class_order": ["string", "natural"],
    "data": ["cluttered-digits", "cifar10", "cifar100"],
}
"""Setting -> values to offer."""

OR_FILES = ("class_order", "data")
"""Settings of these that may be a file or a folder too."""

NO_FILES = (
    "columns",
    "image_size",
    "pixel_range",
    "freeze",
    "pairs",
    "flip_classes",
    "trust",
    "ray",
)
"""Settings of any text that are no file."""
