"""`python -m lumina2_trainer`, or `python FOLDER` where the pack lies in a folder and is not installed."""

import sys
from pathlib import Path

if __package__:
    from .trainer_core.cli.main import main
else:
    from importlib import import_module
    from importlib.util import module_from_spec, spec_from_file_location

    folder = Path(__file__).resolve().parent
    sys.path.remove(sys.path[0])  # this folder, whose `nodes` and `tests` are nobody else's
    spec = spec_from_file_location("lumina2_trainer", folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    package = module_from_spec(spec)
    sys.modules["lumina2_trainer"] = package
    spec.loader.exec_module(package)
    main = import_module("lumina2_trainer.trainer_core.cli.main").main

sys.exit(main())
