"""Make demo/dataset and demo/held_out: captioned pictures from Fluent Emoji 3D (MIT), by the emoji's Unicode names.

    make_demo_dataset.py --fluent DIR --out demo

--fluent is the folder `assets` of the npm package @lobehub/fluent-emoji-3d.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from demo_model.material import draw_fluent, read_emoji

TRAINED = (
    *("cat face", "tiger face", "fox", "panda", "frog", "penguin", "bear", "lion", "owl", "koala", "unicorn"),
    *("red apple", "strawberry", "watermelon", "hamburger", "doughnut", "cactus", "cherry blossom"),
    *("grinning face", "robot", "rocket", "house", "red heart", "soccer ball"),
)
HELD_OUT = ("dog face", "tangerine", "mushroom", "blue heart")


def write_pictures(directory: Path, names: tuple[str, ...], fluent_dir: Path) -> None:
    """Write each emoji as 128 x 128 WebP on white, its name beside it as caption."""
    directory.mkdir(parents=True, exist_ok=True)
    emoji = {one.name: one for one in read_emoji()}
    for name in names:
        stem = directory / name.replace(" ", "_")
        draw_fluent(fluent_dir / emoji[name].fluent_file).save(stem.with_suffix(".webp"), quality=95, method=6)
        stem.with_suffix(".txt").write_text(name + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fluent", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    write_pictures(arguments.out / "dataset", TRAINED, arguments.fluent)
    write_pictures(arguments.out / "held_out", HELD_OUT, arguments.fluent)


if __name__ == "__main__":
    main()
