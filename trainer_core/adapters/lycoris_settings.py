"""What LyCORIS Settings offers."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import TrainerError
from ..settings import check_settings, setting
from .targets import TARGETS, check_targets

LYCORIS_ALGORITHMS = ("lokr", "loha", "locon", "dylora", "glora", "diag-oft", "boft", "full")
WITH_MAGNITUDES = ("lokr", "loha", "locon")
"""They can learn the length of each row of a weight apart from its direction."""
USED_BY: dict[str, tuple[str, ...]] = {
    "full_matrix": ("lokr",),
    "decompose_both": ("lokr",),
    "factor": ("lokr",),
    "block_size": ("dylora",),
    "constraint": ("diag-oft", "boft"),
    "rescaled": ("boft",),
    "weight_decompose": WITH_MAGNITUDES,
}
"""Settings that only some algorithms read."""


@dataclass(frozen=True, kw_only=True)
class LyCORISSettings:
    """Widgets of LyCORIS Settings; rank and alpha are on Train LoRA."""

    algorithm: str = setting("lokr", choices=LYCORIS_ALGORITHMS)
    """Kind of adapter. "lokr" gives small files that learn much, "loha" products of two LoRAs, "locon" a plain LoRA,
    "dylora" one that can be cut to a lower rank, "glora" one that also sees the weight, "diag-oft" and "boft" rotations
    of the weight, "full" a difference to every entry."""
    targets: str = setting("attention_mlp", choices=TARGETS)
    """Which layers are adapted. More layers learn more and make a larger file."""
    target_pattern: str = setting("")
    """Regular expression over whole module names when targets is "pattern", such as
    `layers\\.\\d+\\.attention\\.(qkv|out)`."""
    factor: int = setting(16, minimum=-1, maximum=512)
    """Size of the smaller factor of lokr: larger makes smaller files. -1 makes both factors about equal."""
    full_matrix: bool = setting(True)
    """Keep the larger factor of lokr whole; rank and alpha of Train LoRA then play no role."""
    decompose_both: bool = setting(False, is_advanced=True)
    """Split the smaller factor of lokr by rank too."""
    block_size: int = setting(4, minimum=1, maximum=512, is_advanced=True)
    """Ranks that dylora adds at once; must divide the rank."""
    constraint: float = setting(0.0, minimum=0.0, maximum=100.0, step=0.0001, is_advanced=True)
    """Limit of what diag-oft and boft turn, as a share of the number of outputs; 0 for none."""
    rescaled: bool = setting(False, is_advanced=True)
    """Let boft also learn the length of each row."""
    weight_decompose: bool = setting(False)
    """Learn the length of each row of the weight apart from its direction (DoRA), for lokr, loha and locon."""
    dropout: float = setting(0.0, minimum=0.0, maximum=0.99, step=0.05)
    """Share of the adapter's outputs set to zero in training; a little can slow overfitting."""
    rank_dropout: float = setting(0.0, minimum=0.0, maximum=0.99, step=0.05, is_advanced=True)
    """Share of the rows of the update that is left out in each step, the same for every token."""
    module_dropout: float = setting(0.0, minimum=0.0, maximum=0.99, step=0.05, is_advanced=True)
    """Share of the layers whose adapter is left out in each step."""
    overrides: str = setting("", multiline=True, is_advanced=True)
    """Other numbers for some layers: a line for each group, a regular expression over whole module names and then
    rank, alpha or factor, such as `.*feed_forward.* factor=8`. The first line that matches counts."""
    start_from: str = setting("", is_optional=True)
    """A file of the same algorithm in models/loras to go on from, with ComfyUI's names; empty starts anew. Rank, factor
    and the other sizes must be those it was trained with."""

    def __post_init__(self) -> None:
        check_settings(self)
        check_targets(self, self.override_names)
        if self.factor == 0:
            raise TrainerError("factor is 0: choose a size of at least 1, or -1 for factors of about equal size")
        if self.full_matrix and self.decompose_both:
            raise TrainerError("decompose_both splits what full_matrix keeps whole: switch one of them off")
        for field in fields(self):
            users, value = USED_BY.get(field.name), getattr(self, field.name)
            if users and self.algorithm not in users and value != field.default:
                raise TrainerError(
                    f"{field.name} is {value} but algorithm {self.algorithm} does not use it (it is for"
                    f" {', '.join(users)}): set it back to {field.default}"
                )

    @property
    def kind(self) -> str:
        """Key of ADAPTERS."""
        return self.algorithm

    @property
    def is_plain(self) -> bool:
        """Whether a layer can be computed as one operation with its frozen weight."""
        return False

    @property
    def override_names(self) -> tuple[str, ...]:
        """What a line of overrides may set."""
        return ("rank", "alpha", "factor") if self.algorithm == "lokr" else ("rank", "alpha")
