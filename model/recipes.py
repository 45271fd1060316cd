"""Recipes: plain tables of training values, by the option that changes each (imports no torch).

How strong was found, and what did not help, stands in docs/recipe.md.
"""

# As published: Lin et al., CVPR 2023.
PAPER = {
    "draws": "triplets",
    "per_class": 1,
    "own_photo": 0.0,
    "batch": 15,
    "datasetLen": 10000,
    "epoch": 30,
    "augment": "none",
    "downsampling": "published",
    "shortcut": False,
    "whitening": False,
    "dropout": 0.1,
    "learning_rate": 1e-5,
    "layer_decay": 1.0,
    "new_rate": 1.0,
    "weight_decay": 1e-2,
    "schedule": "constant",
    "ema": 0.0,
    "triplet_weight": 2.0,
    "relation_weight": 4.0,
    "relation_loss": "mse",
    "contrastive_weight": 0.0,
    "temperature": 0.07,
    "learn_temperature": False,
    "classification_weight": 0.0,
    "distillation_weight": 0.0,
}

STRONG = {
    "draws": "classes",
    "per_class": 1,
    "own_photo": 0.5,
    "batch": 24,
    "datasetLen": 10000,
    "epoch": 15,
    "augment": "strong",
    "downsampling": "spatial",
    "shortcut": True,
    "whitening": True,
    "dropout": 0.0,
    "learning_rate": 6e-5,
    "layer_decay": 1.0,
    "new_rate": 10.0,
    "weight_decay": 5e-2,
    "schedule": "cosine",
    "ema": 0.0,
    "triplet_weight": 0.0,
    "relation_weight": 1.0,
    "relation_loss": "logistic",
    "contrastive_weight": 1.0,
    "temperature": 0.07,
    "learn_temperature": True,
    "classification_weight": 0.5,
    "distillation_weight": 0.0,
}

# What strong changes where no weights are pretrained. The relation network, at full weight and with
# a score that starts as the tokens' cosine, keeps an untrained tokenizer in one point.
FROM_SCRATCH = {
    "own_photo": 0.0,
    "augment": "flip",
    "shortcut": False,
    "learning_rate": 1e-3,
    "new_rate": 1.0,
    "relation_weight": 0.1,
    "classification_weight": 1.0,
    "distillation_weight": 0.0,
}

RECIPES = {"strong": STRONG, "paper": PAPER}


def values_of(recipe: str, pretrained: bool) -> dict:
    """The values of a recipe, by option. pretrained: whether training starts from such weights."""
    changes = FROM_SCRATCH if recipe == "strong" and not pretrained else {}
    return {**RECIPES[recipe], **changes}
